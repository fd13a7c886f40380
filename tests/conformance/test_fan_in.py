"""What `collect=` makes of each source: the same with every strategy, as soon as it can be."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

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


@pytest.mark.parametrize("batch", [1, "auto"])
@pytest.mark.parametrize("collect", [joined, joined_task])
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
    [(3, "not callable"), (len, "cannot be called with a source and the list of its results")],
)
def test_what_cannot_collect_is_refused(collect: Any, said: str, runner: Any) -> None:
    with pytest.raises(InvalidInput, match=said):
        in_flow(runner, lambda: evolve(["ab"], letters, upper, collect=collect))


def test_there_is_nobody_to_collect_for_in_a_loop(runner: Any) -> None:
    with pytest.raises(InvalidInput, match="use evolve"):
        in_flow(runner, lambda: list(evolve_iter(["ab"], letters, upper, collect=joined)))
