"""More than two stages: the same outcome with every strategy, and one window over all levels."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.runtime import flow_run

from evolve_tasks import EvolveFailed, EvolveTaskRunner, Limits, Outcome, evolve, evolve_iter
from tests.conformance.flows import in_flow
from tests.integration.api import task_runs

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

Path3 = tuple[int, ...]


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    return EvolveTaskRunner(address=thread_workers)


@task
def listed(root: int) -> list[Path3]:
    """As many folders as the root says; the fourth root cannot be listed."""
    if root == 9:
        raise PermissionError("no access")
    return [(root, folder) for folder in range(root)]


def parsed(folder: Path3) -> Iterator[Path3]:
    """As many items as the folder's number; one folder is broken."""
    if folder == (4, 2):
        raise OSError("broken")
    for item in range(folder[-1] + 1):
        yield (*folder, item)


@task
def processed(item: Path3) -> Path3:
    if item[-1] == 1 and item[0] == 3:
        raise ValueError("an odd one")
    return item


ROOTS = [3, 0, 9, 4, 1]
EXPECTED = [
    *[(3, f, i) for f in range(3) for i in range(f + 1) if i != 1],
    *[(4, f, i) for f in range(4) for i in range(f + 1) if f != 2],
    (1, 0, 0),
]
FAILURES = [
    ("processed", (0, 1, 1), "ValueError"),
    ("processed", (0, 2, 1), "ValueError"),
    ("listed", (2,), "PermissionError"),
    ("parsed", (3, 2), "OSError"),
]


def check(outcome: Outcome) -> None:
    assert outcome.results == EXPECTED
    told = [(one.stage, one.index, one.error_type) for one in outcome.failures]
    assert told == FAILURES
    assert [one.source for one in outcome.failures] == [3, 3, 9, 4]
    assert [source for source, _ in outcome.by_source] == ROOTS
    assert [len(results) for _, results in outcome.by_source] == [4, 0, 0, 7, 1]
    counts = outcome.counts
    assert (counts.sources, counts.sources_failed) == (5, 1)
    assert (counts.discovered, counts.done, counts.failed) == (14, 12, 2)
    stages = counts.by_stage
    assert list(stages) == ["listed", "parsed", "processed"]
    assert (stages["parsed"].discovered, stages["parsed"].done, stages["parsed"].failed) == (
        8,
        7,
        1,
    )
    assert all(one.discovered == one.done + one.failed for one in stages.values())


@pytest.mark.parametrize(
    ("batch", "record"), [(1, "items"), (2, "batches"), ("auto", "sources"), ("auto", "items")]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_levels(strategy: str, batch: Any, record: str, runner: Any) -> None:
    ids: list[UUID] = []

    def body() -> None:
        ids.append(UUID(flow_run.id))
        options: Any = {"strategy": strategy, "batch": batch, "record": record}
        with pytest.raises(EvolveFailed) as raised:
            evolve(ROOTS, listed, parsed, processed, **options)
        check(raised.value.outcome)

    in_flow(runner, body)
    names = Counter(one.name for one in task_runs(ids[0]))
    roots = {f"listed[{root}]" for root in ROOTS}
    if record == "sources":
        assert set(names) == roots
    if record == "items":
        # `parsed` is no task, and has no task runs.
        assert max(names.values()) == 1
        assert roots < set(names)
        assert len(names) == len(ROOTS) + 14
        assert "processed[3 2 1]" in names
    if record == "batches":
        assert {"listed[9]", "processed[3 1 1]", "processed[3 2 1]"} <= set(names)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_iter_gives_each_item_with_its_path(strategy: str, runner: Any) -> None:
    def body() -> list[Any]:
        options: Any = {"strategy": strategy, "on_failure": "ignore"}
        return list(evolve_iter(ROOTS, listed, parsed, processed, **options))

    given = sorted(in_flow(runner, body), key=lambda one: one.index)
    assert [one.value for one in given if one.ok] == EXPECTED
    told = [(one.failure.stage, one.index) for one in given if not one.ok]
    assert told == [(stage, index) for stage, index, _ in FAILURES]


WIDE = 7


@task
def wide(place: tuple[str, int]) -> list[tuple[str, int]]:
    diary, number = place
    _at_work(diary)
    return [(diary, WIDE * number + below) for below in range(WIDE)]


@task
def leaf(place: tuple[str, int]) -> int:
    _at_work(place[0])
    return place[1]


running: list[int] = []
most: list[int] = [0]
lock = threading.Lock()


def _at_work(_: str) -> None:
    """Note how many run at once; the workers are threads of this process."""
    with lock:
        running.append(1)
        most[0] = max(most[0], len(running))
    time.sleep(0.002)
    with lock:
        running.pop()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("in_flight", [1, 2])
def test_one_window_is_over_all_levels(
    strategy: str, in_flight: int, tmp_path: Path, runner: Any
) -> None:
    most[0] = 0

    def body() -> Outcome:
        limits = Limits(in_flight=in_flight, buffered=10)
        options: Any = {"strategy": strategy, "limits": limits, "record": "sources"}
        return evolve([(str(tmp_path), 0)] * 2, wide, wide, wide, leaf, **options)

    outcome = in_flow(runner, body)
    assert outcome.results == list(range(WIDE**3)) * 2
    assert most[0] <= in_flight


class Crowd:
    """How much is known and not done; the workers are threads of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.running = self.most_running = self.open = self.most_open = self.done = 0

    def begins(self) -> None:
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)

    def ends(self, gave: int, took: int) -> None:
        with self.lock:
            self.running -= 1
            self.done += not gave
            self.open += gave - took
            self.most_open = max(self.most_open, self.open)


crowd = Crowd()
FORTY = 40


def forty(place: int) -> list[int]:
    crowd.begins()
    try:
        return [FORTY * place + below for below in range(FORTY)]
    finally:
        crowd.ends(FORTY, 1)


def trivial(place: int) -> int:
    crowd.begins()
    crowd.ends(0, 1)
    return place


@pytest.mark.parametrize("strategy", ["as_completed"])
def test_a_wide_tree_is_never_open_as_a_whole(strategy: str, runner: Any) -> None:
    in_flight, buffered = 32, 400
    done_before: list[int] = []
    crowd.reset()

    def body() -> int:
        count = 0
        options: Any = {"strategy": strategy, "record": "sources", "in_flight": in_flight}
        for one in evolve_iter([0], forty, forty, forty, trivial, buffered=buffered, **options):
            if not count:
                done_before.append(crowd.done)
            count += one.ok
        return count

    assert in_flow(runner, body) == FORTY**3
    assert crowd.most_running <= in_flight
    # What waits, what is in flight, and a fan-out of each level above them.
    assert crowd.most_open <= in_flight + buffered + 3 * FORTY, crowd.most_open
    assert done_before[0] < FORTY**3 * 0.05


# -- resuming ------------------------------------------------------------------------------------


@task
def folders(root: tuple[str, int]) -> list[tuple[str, int]]:
    diary, number = root
    return [(diary, 10 * number + folder) for folder in range(3)]


@task
def files(folder: tuple[str, int]) -> list[tuple[str, int]]:
    diary, number = folder
    return [(diary, 10 * number + file) for file in range(4)]


@task
def fails_at_first(item: tuple[str, int]) -> int:
    diary, number = item
    Path(diary, f"{number}.{os.urandom(4).hex()}").touch()
    if number % 7 == 0 and not Path(diary, "mended").exists():
        raise ValueError(number)
    return number


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_done_at_the_deepest_level_is_not_done_again(
    strategy: str, tmp_path: Path, runner: Any
) -> None:
    roots = [(str(tmp_path), number) for number in range(5)]

    @flow(task_runner=runner)
    def night() -> Any:
        options: Any = {"strategy": strategy, "journal": f"levels {strategy}", "batch": 2}
        return evolve(roots, folders, files, fails_at_first, on_failure="ignore", **options)

    expected = [100 * r + 10 * f + i for r in range(5) for f in range(3) for i in range(4)]
    failing = [number for number in expected if number % 7 == 0]
    first = night()
    assert first.results == [number for number in expected if number % 7]
    Path(tmp_path, "mended").touch()
    second = night()
    assert second.results == expected
    assert second.counts.resumed == len(expected) - len(failing)
    ran = Counter(path.name.split(".")[0] for path in tmp_path.iterdir())
    del ran["mended"]
    assert {number: ran[str(number)] for number in expected} == {
        number: 2 if number in failing else 1 for number in expected
    }
