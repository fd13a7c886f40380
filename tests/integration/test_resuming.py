"""A later run goes on from the journal: after failures, retries, changes and `kill -9`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.filesystems import LocalFileSystem

from evolve_tasks import (
    EvolveFailed,
    EvolveTaskRunner,
    Failure,
    InvalidInput,
    JournalBusy,
    More,
    Outcome,
    aevolve,
    evolve,
    evolve_iter,
    file_fingerprint,
    forget_journal,
    journal_info,
    list_journals,
)
from evolve_tasks.call import Call
from evolve_tasks.journal import journal_sources
from tests.conformance.flows import in_flow
from tests.integration.servers import prefect_environment

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

Source = tuple[str, int]


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    return EvolveTaskRunner(address=thread_workers)


def note(diary: str, what: str) -> None:
    Path(diary, f"{what}.{os.urandom(4).hex()}").touch()


def executions(diary: Path) -> Counter[str]:
    return Counter(path.name.split(".")[0] for path in diary.iterdir())


def ten(source: Source) -> list[tuple[str, int, int]]:
    diary, number = source
    note(diary, f"parse-{number}")
    return [(diary, number, item) for item in range(10)]


def work(item: tuple[str, int, int]) -> int:
    """Fail for each seventh item while there is a mark that says so."""
    diary, source, position = item
    note(diary, f"item-{source}-{position}")
    if position == 7 and Path(diary).with_suffix(".bad").exists():
        raise ValueError("a bad day")
    return source * 10 + position


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    folder = tmp_path / "diary"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("options", [{}, {"batch": 4}, {"record": "items"}], ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_later_run_does_only_what_is_missing(
    strategy: str, options: dict[str, Any], diary: Path, runner: Any
) -> None:
    sources = [(str(diary), number) for number in range(8)]
    name = f"missing-{diary}"
    bad = diary.with_suffix(".bad")
    bad.touch()

    def body() -> Outcome:
        return evolve(
            sources, ten, work, strategy=strategy, journal=name, on_failure="ignore", **options
        )

    first = in_flow(runner, body)
    assert (first.counts.done, first.counts.failed, first.counts.resumed) == (72, 8, 0)
    bad.unlink()
    second = in_flow(runner, body)
    assert second.results == list(range(80))
    assert (second.counts.done, second.counts.resumed, second.counts.discovered) == (8, 72, 80)
    third = in_flow(runner, body)
    assert third.results == second.results
    assert (third.counts.done, third.counts.resumed) == (0, 80)
    assert third.counts.by_stage["ten"].resumed == 8
    ran = executions(diary)
    expected = {f"item-{source}-{item}": 1 for source in range(8) for item in range(10)}
    expected |= {f"item-{source}-7": 2 for source in range(8)}
    assert ran == expected | {f"parse-{source}": 2 for source in range(8)}
    forget_journal(name)


def summary(source: Source, results: list[int]) -> int:
    note(source[0], f"summary-{source[1]}")
    return sum(results)


def total(source: Source, results: list[int]) -> int:
    """Other code than `summary`."""
    note(source[0], f"total-{source[1]}")
    return sum(results) + 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_was_collected_of_the_same_results_is_not_collected_again(
    strategy: str, diary: Path, runner: Any
) -> None:
    sources = [(str(diary), number) for number in range(3)]
    name = f"collected-{diary}"
    bad = diary.with_suffix(".bad")
    bad.touch()

    def body(collect: Any = summary) -> Outcome:
        options: Any = {"strategy": strategy, "journal": name, "on_failure": "ignore"}
        return evolve(sources, ten, work, collect=collect, **options)

    def ran(what: str) -> list[int]:
        return [executions(diary)[f"{what}-{number}"] for number in range(3)]

    whole = [sum(range(10 * number, 10 * number + 10)) for number in range(3)]
    first = in_flow(runner, body)
    assert [value for _, value in first.collected] == [
        value - 10 * number - 7 for number, value in enumerate(whole)
    ]
    in_flow(runner, body)  # item 7 fails again: nothing is new
    assert ran("summary") == [1, 1, 1]
    bad.unlink()
    for _ in range(2):
        outcome = in_flow(runner, body)
        assert outcome.collected == list(zip(sources, whole, strict=True))
    assert ran("summary") == [2, 2, 2]
    # Neither an item nor a source: the counts of the journal are those of before.
    assert (journal_info(name).items, journal_info(name).sources) == (30, 3)
    assert [source.done for source in journal_sources(name)] == [10, 10, 10]
    changed = in_flow(runner, lambda: body(total))
    assert [value for _, value in changed.collected] == [value + 1 for value in whole]
    assert ran("total") == [1, 1, 1]
    forget_journal(name)


def parts(source: Source) -> list[tuple[str, int, int]]:
    return [(source[0], source[1], part) for part in range(2)]


def three(part: tuple[str, int, int]) -> list[tuple[str, int, int]]:
    diary, source, number = part
    return [(diary, source, 3 * number + item) for item in range(3)]


def of_part(part: tuple[str, int, int], results: list[int], failures: list[Failure]) -> list[int]:
    note(part[0], f"part-{part[1]}-{part[2]}")
    if part[2] and Path(part[0]).with_suffix(".bad").exists():
        raise ValueError("cannot be collected today")
    return [len(failures), *results]


@pytest.mark.parametrize("strategy", ["sequential", "as_completed", "async"])
def test_inner_items_are_collected_once_as_well(strategy: str, diary: Path, runner: Any) -> None:
    sources = [(str(diary), number) for number in range(2)]
    bad = diary.with_suffix(".bad")
    bad.touch()

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "journal": str(diary), "on_failure": "ignore"}
        return evolve(sources, parts, three, work, collect={"three": of_part}, **options)

    expected = [
        ((str(diary), source, part), [0, *(10 * source + 3 * part + item for item in range(3))])
        for source in range(2)
        for part in range(2)
    ]
    first = in_flow(runner, body)
    assert first.collected_by_stage["three"] == [one for one in expected if one[0][2] == 0]
    bad.unlink()
    for _ in range(2):
        assert in_flow(runner, body).collected_by_stage["three"] == expected
    ran = executions(diary)
    assert [ran[f"part-{s}-{p}"] for s in range(2) for p in range(2)] == [1, 2, 1, 2]
    forget_journal(str(diary))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_leaving_the_loop_keeps_what_was_given(strategy: str, diary: Path, runner: Any) -> None:
    sources = [(str(diary), number) for number in range(6)]

    def some(most: int) -> list[tuple[Any, bool]]:
        given = []
        for item in evolve_iter(sources, ten, work, strategy=strategy, journal=str(diary), batch=3):
            given.append((item.index, item.resumed))
            if len(given) == most:
                break
        return given

    first = in_flow(runner, lambda: some(25))
    before = executions(diary)
    second = in_flow(runner, lambda: some(10**6))
    assert sorted(index for index, _ in second) == [(s, i) for s in range(6) for i in range(10)]
    resumed = {index for index, was in second if was}
    assert resumed >= {index for index, _ in first}
    after = executions(diary)
    for source, item in resumed:
        assert after[f"item-{source}-{item}"] == before[f"item-{source}-{item}"]


def test_retries_of_a_flow_run_resume(diary: Path, runner: Any) -> None:
    sources = [(str(diary), number) for number in range(4)]
    attempts: list[Outcome] = []
    diary.with_suffix(".bad").touch()

    @flow(task_runner=runner, retries=1)
    def nightly() -> None:
        try:
            attempts.append(evolve(sources, ten, work, journal=True))
        except EvolveFailed as failed:
            attempts.append(failed.outcome)
            diary.with_suffix(".bad").unlink()
            raise
        # The same again in one flow is another run with another journal.
        attempts.append(evolve(sources[:1], ten, work, journal=True))

    nightly()
    assert [(one.counts.done, one.counts.resumed) for one in attempts] == [
        (36, 0),
        (4, 36),
        (10, 0),
    ]


def test_calls_that_are_awaited_together_have_their_journals_in_each_attempt(
    diary: Path, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them is opened first: threads do that, in an order of their own."""
    sources = [[(str(diary), 1)], [(str(diary), 2)]]
    attempts: list[list[int]] = []
    real, opened = Call.open, threading.Event()

    def in_turn(call: Call) -> Any:
        late = call.sources == sources[len(attempts) % 2]
        assert not late or opened.wait(60)
        here = real(call)
        if not late:
            opened.set()
        return here

    monkeypatch.setattr(Call, "open", in_turn)

    @flow(task_runner=runner, retries=1)
    async def nightly() -> None:
        opened.clear()
        with pytest.raises(InvalidInput):
            await aevolve(3, ten, work, journal=True)  # type: ignore[arg-type]
        options: Any = {"journal": True, "strategy": "sequential"}
        both = await asyncio.gather(*(aevolve(one, ten, work, **options) for one in sources))
        attempts.append([one.counts.resumed for one in both])
        if len(attempts) == 1:
            raise RuntimeError("again")

    asyncio.run(nightly())
    assert attempts == [[0, 0], [10, 10]]


def test_only_changed_sources_are_worked_on_and_vanished_ones_are_told(
    tmp_path: Path, runner: Any
) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(5)]
    for file in files:
        file.write_text("1 2 3")

    def ingest(paths: list[Path]) -> Outcome:
        names = [str(path) for path in paths]
        options: dict[str, Any] = {"journal": f"ingest-{tmp_path}", "strategy": "as_completed"}
        return in_flow(
            runner,
            lambda: evolve(names, words, int, fingerprint=file_fingerprint, **options),
        )

    assert ingest(files).counts.done == 15
    assert ingest(files).counts.resumed == 15
    files[2].write_text("1 2 3 4")
    changed = ingest(files)
    assert (changed.counts.done, changed.counts.resumed) == (4, 12)
    assert changed.results == [1, 2, 3, 1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 1, 2, 3]
    gone = ingest([*files[:1], *files[2:]])
    assert gone.vanished == ["1.txt"]
    assert gone.report["vanished"] == ["1.txt"]
    assert ingest([*files[:1], *files[2:]]).vanished == []


def test_a_source_that_came_is_not_missed(tmp_path: Path, runner: Any) -> None:
    """Its fingerprint may be unknown tonight, and another like it may be there."""

    def broken(_: str) -> int:
        raise OSError("nobody knows")

    def night(sources: list[str], fingerprint: Any = len) -> Outcome:
        options: Any = {"journal": str(tmp_path), "strategy": "sequential"}
        return in_flow(
            runner, lambda: evolve(sources, list, str.upper, fingerprint=fingerprint, **options)
        )

    assert night(["a", "a", "bc"]).counts.done == 4
    unknown = night(["a", "a", "bc"], broken)
    assert (unknown.vanished, unknown.counts.done) == ([], 4)
    fewer = night(["a", "bc"])
    assert (fewer.vanished, fewer.counts.resumed) == ([], 3)
    assert night(["a", "a"]).vanished == ["bc"]
    assert night(["a", "a"]).vanished == []
    assert night(["a", "a", "bc"]).counts.resumed == 4


@pytest.mark.parametrize("unique", [False, True])
def test_lists_further_down_are_not_missed_and_their_source_is_once(
    unique: bool, tmp_path: Path, runner: Any
) -> None:
    away = tmp_path / "away"

    def words(text: str) -> list[str]:
        return text.split()

    def letters(word: str) -> list[str]:
        if word == "cd" and away.exists():
            raise OSError("not tonight")
        return list(word)

    options: Any = {"journal": str(tmp_path), "strategy": "sequential", "on_failure": "ignore"}

    def plain(sources: list[str]) -> Outcome:
        return in_flow(runner, lambda: evolve(sources, words, str.upper, **options))

    def deep(sources: list[str]) -> Outcome:
        return in_flow(
            runner, lambda: evolve(sources, words, letters, str.upper, unique=unique, **options)
        )

    both = ["ab cd", "ef"]
    # The same journal, with a stage less.
    assert plain(both).counts.done == 3
    assert deep(both).vanished == []
    assert deep(both).counts.resumed == 6
    away.touch()
    partly = deep(both)
    assert (partly.vanished, len(partly.failures)) == ([], 1)
    away.unlink()
    again = deep(both)
    assert (again.vanished, again.counts.resumed) == ([], 6)
    assert deep(both[:1]).vanished == ["ef"]
    assert deep(both[:1]).vanished == []
    back = deep([*both, "gh"])
    assert (back.vanished, back.counts.resumed, back.counts.done) == ([], 6, 2)
    assert deep(both).vanished == ["gh"]
    assert plain(both).vanished == []


def test_what_led_further_is_not_missed_by_itself(tmp_path: Path, runner: Any) -> None:
    closed = tmp_path / "closed"

    def itself(number: int) -> list[int]:
        if closed.exists():
            raise OSError("closed")
        return [number]

    def leads(number: int) -> Any:
        return More(number, [number - 1], stage=1) if number else number

    def night(sources: list[int], fingerprint: Any) -> Outcome:
        options: Any = {"journal": str(tmp_path), "strategy": "sequential"}
        return in_flow(
            runner,
            lambda: evolve(
                sources, itself, leads, fingerprint=fingerprint, on_failure="ignore", **options
            ),
        )

    assert night([3, 1], None).counts.done == 6
    closed.touch()
    # Changed, and then not to be had: nobody asks for what lies below.
    failed = night([3, 1], lambda number: number)
    assert (failed.vanished, len(failed.failures)) == ([], 2)
    closed.unlink()
    assert night([3, 1], None).counts.resumed == 6
    assert night([1], None).vanished == ["3"]
    assert night([1], None).vanished == []


def words(path: str) -> list[str]:
    return Path(path).read_text().split()


def test_changed_code_is_worked_on_again_and_only_that(diary: Path, runner: Any) -> None:
    sources = [(str(diary), number) for number in range(3)]

    def run(parse: Any, process: Any) -> Outcome:
        return in_flow(runner, lambda: evolve(sources, parse, process, journal=f"code-{diary}"))

    def minus(item: tuple[str, int, int]) -> int:
        return -work(item)

    def ten_in_other_words(source: Source) -> list[tuple[str, int, int]]:
        return list(reversed(list(reversed(ten(source)))))

    assert run(ten, work).counts.done == 30
    other = run(ten, minus)
    assert (other.counts.done, other.counts.resumed) == (30, 0)
    assert other.results[:3] == [0, -1, -2]
    # The same items, given by other code: their results hold.
    same_items = run(ten_in_other_words, work)
    assert (same_items.counts.done, same_items.counts.resumed) == (0, 30)
    assert executions(diary)["parse-0"] == 3


def test_equal_sources_are_kept_apart(diary: Path, runner: Any) -> None:
    sources = [(str(diary), 1), (str(diary), 1), (str(diary), 1)]

    def run(most: int) -> Outcome:
        return in_flow(runner, lambda: evolve(sources[:most], ten, work, journal=f"equal-{diary}"))

    assert run(2).counts.done == 20
    third = run(3)
    assert (third.counts.done, third.counts.resumed) == (10, 20)
    assert third.results == [*range(10, 20)] * 3


def test_two_runs_with_one_journal(diary: Path, runner: Any) -> None:
    def nested() -> list[Any]:
        given = []
        sources = [(str(diary), number) for number in range(2)]
        for item in evolve_iter(sources, ten, work, journal=f"two-{diary}"):
            if not given:
                with pytest.raises(JournalBusy, match="flow run"):
                    evolve(sources, ten, work, journal=f"two-{diary}")
            given.append(item.value)
        return given

    assert sorted(in_flow(runner, nested)) == list(range(20))
    assert any(info.name == f"two-{diary}" for info in list_journals())


def test_what_cannot_be_meant_is_refused(diary: Path, runner: Any) -> None:
    def call(**options: Any) -> Any:
        return in_flow(runner, lambda: evolve([(str(diary), 1)], ten, work, **options))

    with pytest.raises(InvalidInput, match="file_fingerprint"):
        call(fingerprint="size", journal="a")
    with pytest.raises(InvalidInput, match="no journal that runs share"):
        call(fingerprint=file_fingerprint)

    @task
    def inside() -> Any:
        return evolve([(str(diary), 1)], ten, work, journal=True)

    with pytest.raises(InvalidInput, match="give the journal a name"):
        in_flow(runner, lambda: inside.submit().result())
    assert executions(diary) == {}


def test_results_storage_and_serializer_of_the_flow_are_used(
    diary: Path, tmp_path: Path, runner: Any
) -> None:
    storage = LocalFileSystem(basepath=str(tmp_path / "storage"))
    storage.save("evolve-journal-test", overwrite=True)

    @flow(task_runner=runner, result_storage=storage, result_serializer="json")
    def kept() -> Outcome:
        return evolve([(str(diary), 1)], ten, work, journal="kept")

    assert kept().counts.done == 10
    assert kept().counts.resumed == 10
    assert list((tmp_path / "storage" / "evolve-journals").iterdir())


# -- kill -9 -----------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys, time
from pathlib import Path
from prefect import flow
from evolve_tasks import EvolveTaskRunner, evolve_iter

def parse(source):
    diary, number = source
    return [(diary, number, item) for item in range(50)]

def work(item):
    diary, source, position = item
    Path(diary, f"item-{source}-{position}.{os.urandom(4).hex()}").touch()
    time.sleep(0.01)
    return source * 1000 + position

@flow
def night(diary, address, strategy, out):
    sources = [(diary, number) for number in range(20)]
    results, resumed = {}, 0
    options = dict(journal="night", strategy=strategy, in_flight=20, batch=5)
    with open(out, "a", buffering=1) as reported:
        for item in evolve_iter(sources, parse, work, **options):
            assert item.ok, item.failure
            results[".".join(map(str, item.index))] = item.value
            resumed += item.resumed
            if not item.resumed:
                reported.write(f"item-{item.index[0]}-{item.index[1]}\\n")
    Path(out).with_suffix(".json").write_text(json.dumps([results, resumed]))

if __name__ == "__main__":
    diary, address, strategy, out = sys.argv[1:]
    night.with_options(task_runner=EvolveTaskRunner(address=address))(*sys.argv[1:])
"""


@pytest.mark.parametrize(("strategy", "kills"), [("as_completed", 4), ("async", 3), ("nested", 3)])
def test_a_killed_flow_loses_nothing_that_it_reported(
    strategy: str, kills: int, diary: Path, tmp_path: Path, prefect_api: str, process_workers: str
) -> None:
    script, out = tmp_path / "night.py", tmp_path / "reported"
    script.write_text(SCRIPT)
    chance = random.Random(7)
    for kill in range(kills + 1):
        before = len(list(diary.iterdir()))
        process = subprocess.Popen(
            [sys.executable, str(script), str(diary), process_workers, strategy, str(out)],
            env=prefect_environment(tmp_path / "home", prefect_api),
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / "errors").open("w"),
        )
        if kill < kills:
            more = chance.randint(20, 700 // kills)
            while process.poll() is None and len(list(diary.iterdir())) < before + more:
                time.sleep(0.01)
            assert process.poll() is None, "it was over before it was killed"
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, (tmp_path / "errors").read_text()
    results, _ = json.loads(out.with_suffix(".json").read_text())
    assert results == {f"{s}.{i}": s * 1000 + i for s in range(20) for i in range(50)}
    reported = Counter(out.read_text().split())
    assert max(reported.values()) == 1, "reported twice as not resumed"
    ran = executions(diary)
    # Beyond its own items, a run that was killed leaves at most what was in flight to do again.
    assert sum(ran.values()) <= 1_000 + kills * 20


def test_two_clusters_one_journal(diary: Path) -> None:
    """The journal does not care where it ran before."""

    def body() -> Outcome:
        return evolve([(str(diary), 1)], ten, work, journal=f"clusters-{diary}")

    for resumed in (0, 10):
        with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
            outcome = in_flow(EvolveTaskRunner(cluster=cluster), body)
        assert outcome.counts.resumed == resumed


def test_changed_parsing_gives_items_of_the_same_key_anew(tmp_path: Path, runner: Any) -> None:
    def two(source: str) -> list[tuple[str, int]]:
        return [(f"{source}{number}", 1) for number in range(2)]

    def two_changed(source: str) -> list[tuple[str, int]]:
        return [(f"{source}{number}", 2) for number in range(2)]

    def second(item: tuple[str, int]) -> int:
        return item[1]

    def night(parse: Any) -> Outcome:
        options: Any = {"journal": str(tmp_path), "unique": True, "strategy": "sequential"}
        return in_flow(runner, lambda: evolve(["a"], parse, second, key=itemgetter(0), **options))

    assert night(two).results == [1, 1]
    again = night(two)
    assert (again.results, again.counts.resumed) == ([1, 1], 2)
    changed = night(two_changed)
    assert (changed.results, changed.counts.resumed) == ([2, 2], 0)
