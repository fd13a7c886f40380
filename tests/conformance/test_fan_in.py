"""What `collect=` makes of each source, and `reduce=` of all: the same with every strategy."""

from __future__ import annotations

import operator
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import task
from prefect.runtime import flow_run

from evolve_tasks import (
    EvolveFailed,
    EvolveTaskRunner,
    Failure,
    InvalidInput,
    More,
    Outcome,
    evolve,
    evolve_iter,
)
from tests.conformance.flows import in_flow
from tests.integration.api import task_runs
from tests.integration.waiting import until

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    return EvolveTaskRunner(address=thread_workers)


def letters(source: str) -> list[str]:
    if source == "broken":
        raise OSError("cannot be read")
    return list(source)


@task
def read(source: str) -> list[str]:
    return letters(source)


@task
def upper(letter: str) -> str:
    if letter == "x":
        raise ValueError("no x")
    return letter.upper()


def joined(source: str, results: list[str]) -> str:
    if source == "bad":
        raise RuntimeError("cannot be joined")
    return f"{source}: {''.join(results)}"


@task
def joined_task(source: str, results: list[str]) -> str:
    return joined(source, results)


def counted(source: str, results: list[str], failures: list[Failure]) -> tuple[int, int]:
    return len(results), len(failures)


SOURCES = ["abc", "", "broken", "axb", "bad", "abc", "z"]
COLLECTED = [
    ("abc", "abc: ABC"),
    ("", ": "),
    ("axb", "axb: AB"),
    ("abc", "abc: ABC"),
    ("z", "z: Z"),
]


@pytest.mark.parametrize(("collect", "batch"), [(joined, 1), (joined_task, "auto")])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_source_is_collected(strategy: str, collect: Any, batch: Any, runner: Any) -> None:
    ids: list[UUID] = []

    def body() -> None:
        ids.append(UUID(flow_run.id))
        options: Any = {"strategy": strategy, "batch": batch}
        evolve(SOURCES, read, upper, collect=collect, **options)

    with pytest.raises(EvolveFailed) as raised:
        in_flow(runner, body)
    outcome = raised.value.outcome
    assert outcome.collected == COLLECTED
    assert outcome.results == list("ABCABBADABCZ")
    told = [(one.stage, one.index, one.error_type) for one in outcome.failures]
    name = "joined" if collect is joined else "joined_task"
    assert told == [
        ("read", (2,), "OSError"),
        ("upper", (3, 1), "ValueError"),
        (name, (4,), "RuntimeError"),
    ]
    assert outcome.failures[-1].source == "bad"
    assert outcome.counts.failed == 1
    if collect is joined_task:
        names = Counter(one.name for one in task_runs(ids[0]) if one.name.startswith("joined"))
        assert sum(names.values()) == len(SOURCES) - 1  # what could not be read is not collected
        assert names["joined_task[abc]"] == 2
        states = {one.name: one.state_name for one in task_runs(ids[0])}
        assert states["joined_task[bad]"] == "Failed"
        assert states["joined_task[z]"] == "Completed"
    groups = {group["stage"]: group for group in outcome.report["failure_groups"]}
    (example,) = groups[name]["examples"]
    assert "cannot be joined" in example["message"]
    linked = {str(one.id): one.name for one in task_runs(ids[0])}.get(example["task_run"] or "")
    assert linked == ("joined_task[bad]" if collect is joined_task else None)


def written(source: str, results: list[str], separator: str = "-") -> str:
    return separator.join([source, *results])


@pytest.mark.parametrize("strategy", ["sequential", "as_completed"])
def test_a_third_parameter_of_the_users_own_keeps_its_value(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        return evolve(["ab", ""], letters, upper, collect=written, strategy=strategy)

    assert in_flow(runner, body).collected == [("ab", "ab-A-B"), ("", "")]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_asks_for_failures_is_given_them(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "on_failure": "ignore"}
        return evolve(SOURCES, letters, upper, collect=counted, **options)

    collected = in_flow(runner, body).collected
    assert collected == [
        *[("abc", (3, 0)), ("", (0, 0)), ("broken", (0, 1)), ("axb", (2, 1))],
        *[("bad", (3, 0)), ("abc", (3, 0)), ("z", (1, 0))],
    ]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_to_collect_waits_for_the_next_source(
    strategy: str, in_flight: int, runner: Any, tmp_path: Path
) -> None:
    def sources() -> Iterator[str]:
        for source in ("ab", "c", "d"):
            yield source
            until((tmp_path / source).exists, f"{source} is collected", 30)

    def noted(source: str, results: list[str]) -> str:
        (tmp_path / source).touch()
        return joined(source, results)

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "in_flight": in_flight}
        return evolve(sources(), letters, upper, collect=noted, **options)

    collected = in_flow(runner, body).collected
    assert collected == [("ab", "ab: AB"), ("c", "c: C"), ("d", "d: D")]


def twice(letter: str) -> Any:
    return More(letter, [letter.upper()], stage=1) if letter.islower() else letter


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_was_found_on_the_way_is_collected_with_its_source(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        return evolve(["ab", "c"], letters, twice, collect=joined, strategy=strategy)

    assert in_flow(runner, body).collected == [("ab", "ab: aAbB"), ("c", "c: cC")]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_stages_are_collected_by_source(strategy: str, runner: Any) -> None:
    def words(source: str) -> list[str]:
        return source.split()

    def body() -> Outcome:
        sources = ["one two", "three"]
        return evolve(sources, words, letters, upper, collect=joined, strategy=strategy)

    assert in_flow(runner, body).collected == [
        ("one two", "one two: ONETWO"),
        ("three", "three: THREE"),
    ]


def words(source: str) -> list[str]:
    if source == "torn":
        raise OSError("torn")
    return source.split()


def yields_words(source: str) -> Iterator[str]:
    yield from words(source)


def counted_words(source: str, results: list[str]) -> tuple[str, int]:
    return "".join(results), len(results)


TEXTS = ["one two", "", "torn", "axe broken six", "one"]


@pytest.mark.parametrize(
    ("first", "of_words", "batch"),
    [(words, joined, 1), (task(words), joined_task, "auto"), (yields_words, joined, "auto")],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_inner_items_are_collected_by_stage(
    strategy: str, first: Any, of_words: Any, batch: Any, runner: Any
) -> None:
    name = getattr(first, "fn", first).__name__

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "batch": batch, "on_failure": "ignore"}
        collect = {"letters": of_words, name: counted_words}
        return evolve(TEXTS, first, letters, upper, collect=collect, **options)

    outcome = in_flow(runner, body)
    # "broken" cannot be expanded, and so is not collected; what has it within is.
    assert outcome.collected_by_stage["letters"] == [
        ("one", "one: ONE"),
        ("two", "two: TWO"),
        ("axe", "axe: AE"),
        ("six", "six: SI"),
        ("one", "one: ONE"),
    ]
    assert outcome.collected == outcome.collected_by_stage[name]
    assert outcome.collected == [
        ("one two", ("ONETWO", 6)),
        ("", ("", 0)),
        ("axe broken six", ("AESI", 4)),
        ("one", ("ONE", 3)),
    ]
    assert [(one.stage, one.index) for one in outcome.failures] == [
        (name, (2,)),
        ("upper", (3, 0, 1)),
        ("letters", (3, 1)),
        ("upper", (3, 2, 2)),
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_inner_items_alone_are_collected_with_their_failures(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "on_failure": "ignore"}
        collect = {"letters": counted}
        return evolve(TEXTS, words, letters, upper, collect=collect, **options)

    outcome = in_flow(runner, body)
    assert outcome.collected == []
    assert outcome.collected_by_stage == {
        "letters": [
            *[("one", (3, 0)), ("two", (3, 0)), ("axe", (2, 1)), ("broken", (0, 1))],
            *[("six", (2, 1)), ("one", (3, 0))],
        ]
    }


def itself(word: str) -> list[str]:
    return [word]


def grows(word: str) -> Any:
    return More(word, [word[1:]], stage=1) if len(word) > 1 else word


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_inner_items_are_collected_with_what_was_found_below(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        collect = {"itself": joined}
        return evolve(["abc d"], words, itself, grows, collect=collect, strategy=strategy)

    assert in_flow(runner, body).collected_by_stage["itself"] == [
        ("abc", "abc: abcbcc"),
        ("bc", "bc: bcc"),
        ("c", "c: c"),
        ("d", "d: d"),
    ]


def leads_to_its_number(word: str) -> Any:
    return More(word, [word[1:]], stage=1) if word.startswith("w") else word


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_inner_items_are_collected_each_with_its_own(strategy: str, runner: Any) -> None:
    # Short ones are expanded together, and their items are worked on in passing.
    text = " ".join(f"w{number}" for number in range(300))

    def body() -> Outcome:
        collect = {"itself": joined}
        return evolve(
            [text], words, itself, leads_to_its_number, collect=collect, strategy=strategy
        )

    assert in_flow(runner, body).collected_by_stage["itself"] == [
        pair
        for number in range(300)
        for pair in [
            (f"w{number}", f"w{number}: w{number}{number}"),
            (f"{number}", f"{number}: {number}"),
        ]
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_resumed_is_collected_by_stage(strategy: str, runner: Any, tmp_path: Path) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "journal": str(tmp_path), "on_failure": "ignore"}
        collect = {"words": joined, "letters": joined}
        return evolve(TEXTS, words, letters, upper, collect=collect, **options)

    first, second = in_flow(runner, body), in_flow(runner, body)
    assert second.counts.resumed == first.counts.done > 0
    assert second.collected_by_stage == first.collected_by_stage
    assert [item for item, _ in first.collected_by_stage["letters"]] == [
        *["one", "two", "axe", "six", "one"]
    ]


class Waits:
    """An item that waits until another source has been collected."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def process(self, letter: str) -> str:
        deadline = time.monotonic() + 60
        while letter == "w" and not os.path.exists(f"{self.folder}/quick"):
            if time.monotonic() > deadline:
                raise TimeoutError("the other source is not collected")
            time.sleep(0.01)
        return letter

    def collect(self, source: str, results: list[str]) -> int:
        Path(self.folder, source).touch()
        return len(results)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "sequential"])
def test_a_source_is_collected_while_others_run(strategy: str, runner: Any, tmp_path: Path) -> None:
    waits = Waits(tmp_path)

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "batch": 1}
        return evolve(["w", "quick"], letters, waits.process, collect=waits.collect, **options)

    assert in_flow(runner, body).collected == [("w", 1), ("quick", 5)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_collected_after_the_stop(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "on_failure": "fail_fast", "batch": 1}
        return evolve(["x"], letters, upper, collect=joined, **options)

    with pytest.raises(EvolveFailed) as raised:
        in_flow(runner, body)
    assert raised.value.outcome.collected == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_resumed_is_collected_too(strategy: str, runner: Any, tmp_path: Path) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "journal": str(tmp_path), "on_failure": "ignore"}
        return evolve(SOURCES, letters, upper, collect=joined, **options)

    first, second = in_flow(runner, body), in_flow(runner, body)
    assert second.counts.resumed == first.counts.done
    assert second.collected == first.collected == COLLECTED


@pytest.mark.parametrize("strategy", ["as_completed", "async", "nested"])
def test_a_source_that_cannot_travel_cannot_be_collected(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "on_failure": "ignore"}
        sources = ["ab", iter("no"), (one for one in "no"), "c"]
        return evolve(sources, letters, upper, collect=counted, **options)

    outcome = in_flow(runner, body)
    assert outcome.collected[0] == ("ab", (2, 0))
    assert outcome.collected[-1] == ("c", (1, 0))
    told = [(one.stage, one.index) for one in outcome.failures]
    assert ("letters", (2,)) in told
    assert ("counted", (2,)) in told


def not_picklable(source: str, results: list[str]) -> Callable[[], None]:
    return (value for value in results).__next__  # type: ignore[return-value]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_value_that_cannot_travel_is_a_failure(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "on_failure": "ignore"}
        return evolve(["ab"], letters, upper, collect=not_picklable, **options)

    outcome = in_flow(runner, body)
    assert outcome.collected == []
    (failure,) = outcome.failures
    assert failure.stage == "not_picklable"
    assert "cannot be pickled" in failure.message


@pytest.mark.parametrize(
    ("collect", "said"),
    [
        (3, "not callable"),
        (len, "cannot be called with a source and the list of its results"),
        ({"upper": joined}, "those that give items are 'letters'"),
        ({"letters": len}, "cannot be called with a source and the list of its results"),
    ],
)
def test_what_cannot_collect_is_refused(collect: Any, said: str, runner: Any) -> None:
    with pytest.raises(InvalidInput, match=said):
        in_flow(runner, lambda: evolve(["ab"], letters, upper, collect=collect))


def test_there_is_nobody_to_collect_for_in_a_loop(runner: Any) -> None:
    with pytest.raises(InvalidInput, match="use evolve"):
        in_flow(runner, lambda: list(evolve_iter(["ab"], letters, upper, collect=joined)))
    with pytest.raises(InvalidInput, match="use evolve"):
        in_flow(runner, lambda: list(evolve_iter(["ab"], letters, upper, reduce=max)))


# -- reduce ----------------------------------------------------------------------------------------


def paired(one: str, other: str) -> str:
    """Shows in which shape values were combined."""
    return f"({one}{other})"


@task
def paired_task(one: str, other: str) -> str:
    return paired(one, other)


@task(retries=1)
def paired_with_retries(one: str, other: str) -> str:
    return paired(one, other)


MANY = ["abcdefghij", "x", "", "broken", "klmno", "p", "qrs", "axb", "tuvw" * 40]


def reduced_in(runner: Any, strategy: str, reduce: Any, **options: Any) -> Outcome:
    def body() -> Outcome:
        return evolve(
            MANY, letters, upper, reduce=reduce, strategy=strategy, on_failure="ignore", **options
        )

    return in_flow(runner, body)


SHAPES: dict[str, str] = {}


@pytest.mark.parametrize("batch", [1, "auto"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_results_are_combined_in_one_shape(strategy: str, batch: Any, runner: Any) -> None:
    outcome = reduced_in(runner, strategy, paired, batch=batch)
    assert outcome.results == []
    letters_in_order = outcome.reduced.replace("(", "").replace(")", "")
    assert letters_in_order == "ABCDEFGHIJKLMNOPQRSAB" + "TUVW" * 40
    # Not associative, it tells in which pairs; they are the same whatever came first.
    assert SHAPES.setdefault("shape", outcome.reduced) == outcome.reduced
    assert outcome.reduced.startswith("((((((AB)(CD))((EF)(GH)))(IJ))")
    assert outcome.counts.done == 181
    assert len(outcome.failures) == 3
    assert [source for source, _ in outcome.by_source] == MANY


@pytest.mark.parametrize(
    ("strategy", "reduce"), [("nested", paired_task), ("as_completed", paired_with_retries)]
)
def test_a_task_combines_as_a_function_does(strategy: str, reduce: Any, runner: Any) -> None:
    shape = reduced_in(runner, "sequential", paired).reduced
    assert reduced_in(runner, strategy, reduce, record="batches").reduced == shape


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_combined_over_stages_and_what_was_found(strategy: str, runner: Any) -> None:
    def words(source: str) -> list[str]:
        return source.split()

    def body() -> Outcome:
        sources = ["ab cd", "", "e fgh"]
        return evolve(sources, words, letters, twice, reduce=paired, strategy=strategy)

    assert in_flow(runner, body).reduced == "((((aA)(bB))((cC)(dD)))((eE)(((fF)(gG))(hH))))"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_combined_with_a_journal_and_collected(strategy: str, runner: Any, tmp_path: Path) -> None:
    options: Any = {"journal": str(tmp_path), "collect": joined}
    first = reduced_in(runner, strategy, paired, **options)
    second = reduced_in(runner, strategy, paired, **options)
    assert second.counts.resumed == first.counts.done
    assert first.reduced is not None, (first.failures[-1], first.stopped, first.reason)
    assert second.reduced is not None, (second.failures[-1], second.stopped, second.reason)
    assert first.reduced == second.reduced == reduced_in(runner, "sequential", paired).reduced
    assert first.collected == second.collected
    assert ("x", "x: ") in first.collected
    assert first.results == second.results == []


def alone(letter: str) -> list[str]:
    return [letter.upper()]


def extended(one: list[str], other: list[str]) -> list[str]:
    """Change the first and give it, as whoever merges often does."""
    one += other
    return one


def how_many(source: str, results: list[list[str]]) -> list[int]:
    return [len(result) for result in results]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_combines_may_change_its_first_argument(
    strategy: str, runner: Any, tmp_path: Path
) -> None:
    options: Any = {"strategy": strategy, "journal": str(tmp_path), "collect": how_many}

    def body() -> Outcome:
        return evolve(["abc", "de", "f"], letters, alone, reduce=extended, **options)

    # Lists this short are worked on where they are found.
    first, second = in_flow(runner, body), in_flow(runner, body)
    assert first.reduced == list("ABCDEF")
    assert second.counts.resumed == 6
    assert second.reduced == first.reduced
    assert first.collected == [("abc", [1, 1, 1]), ("de", [1, 1]), ("f", [1])]
    assert second.collected == first.collected


def breaks(one: str, other: str) -> str:
    if "S" in other:
        raise ArithmeticError("no S")
    return one + other


@pytest.mark.parametrize(
    ("strategy", "batch"),
    [("sequential", 1), ("as_completed", "auto"), ("async", 1), ("nested", "auto")],
)
def test_what_cannot_be_combined_fails_the_run(strategy: str, batch: Any, runner: Any) -> None:
    def body() -> Outcome:
        return evolve(["abc", "qrs"], letters, upper, reduce=breaks, strategy=strategy, batch=batch)

    with pytest.raises(EvolveFailed, match="no S") as raised:
        in_flow(runner, body)
    outcome = raised.value.outcome
    assert outcome.reduced is None
    assert [(one.stage, one.error_type) for one in outcome.failures] == [
        ("breaks", "ArithmeticError")
    ]
    (group,) = outcome.report["failure_groups"]
    assert (group["stage"], group["error_type"], group["count"]) == ("breaks", "ArithmeticError", 1)
    assert outcome.counts.done == 6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_comes_to_nothing(strategy: str, runner: Any) -> None:
    def body() -> list[Any]:
        one = evolve([], letters, upper, reduce=paired, strategy=strategy)
        other = evolve(["", ""], letters, upper, reduce=paired, strategy=strategy)
        third = evolve(["", "a"], letters, upper, reduce=paired, strategy=strategy)
        return [one.reduced, other.reduced, third.reduced]

    assert in_flow(runner, body) == [None, None, "A"]


@pytest.mark.parametrize(("reduce", "said"), [(3, "not callable"), (ord, "with two values")])
def test_what_cannot_combine_is_refused(reduce: Any, said: str, runner: Any) -> None:
    with pytest.raises(InvalidInput, match=said):
        in_flow(runner, lambda: evolve(["ab"], letters, upper, reduce=reduce))


@pytest.mark.parametrize("strategy", ["as_completed"])
def test_a_million_numbers_are_combined_where_they_are(strategy: str, process_workers: str) -> None:
    sizes = [600_000, 5, 395_000, *[3] * 1_665]
    process = psutil.Process()

    def body() -> Outcome:
        return evolve(sizes, range, abs, reduce=operator.add, strategy=strategy)

    before = process.memory_info().rss
    outcome = in_flow(EvolveTaskRunner(address=process_workers), body)
    assert outcome.counts.done == 1_000_000
    assert outcome.reduced == sum(map(sum, map(range, sizes)))
    assert process.memory_info().rss - before < 150e6
