"""All strategies give the same results, in the same order, with the same errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prefect import flow
from prefect_dask import DaskTaskRunner

from evolve_tasks import (
    EvolveFailed,
    EvolveTaskRunner,
    Outcome,
    evolve,
)
from tests.conformance.cases import CASES, STOPPING, Case

STRATEGIES = ["sequential", "as_completed", "async", "nested"]
RUNNERS = {"evolve": EvolveTaskRunner, "stock": DaskTaskRunner}

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


def equal(one: Any, other: Any) -> bool:
    """Equal as values: exceptions by type and arguments, arrays by element."""
    if isinstance(one, BaseException):
        return type(one) is type(other) and one.args == other.args
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)


Ended = tuple[Outcome, bool] | BaseException


def run_cases(runner: Any, strategy: str, cases: list[Case]) -> dict[str, Ended]:
    """Run cases one after another in one flow run; note what each gave and whether it raised."""
    ended: dict[str, Ended] = {}

    @flow(name=f"conformance of {strategy}", task_runner=runner)
    def conformance() -> None:
        for case in cases:
            try:
                outcome = evolve(
                    case.sources(), case.parse, case.process, strategy=strategy, **case.options
                )
                ended[case.name] = outcome, False
            except EvolveFailed as failed:
                ended[case.name] = failed.outcome, True
            except Exception as error:
                ended[case.name] = error

    conformance()
    return ended


def check(case: Case, outcome: Outcome, raised: bool) -> None:
    """The whole contract, on one outcome."""
    assert raised == case.raises, str(EvolveFailed(outcome))
    assert len(outcome.results) == len(case.results)
    for got, wanted in zip(outcome.results, case.results, strict=True):
        assert equal(got, wanted), (got, wanted)
    names = list(outcome.counts.by_stage)
    assert [
        (names.index(failure.stage), failure.index, failure.error_type)
        for failure in outcome.failures
    ] == case.failures
    sources = list(case.sources())
    for failure in outcome.failures:
        assert failure.attempts == case.attempts
        assert not failure.crashed
        assert failure.traceback
        assert equal(failure.source, sources[failure.index[0]])
    counts = outcome.counts
    assert counts.sources == len(sources)
    assert counts.sources_failed == sum(stage == 0 for stage, _, _ in case.failures)
    assert counts.discovered == case.discovered
    assert counts.failed == sum(stage == 1 for stage, _, _ in case.failures)
    assert counts.done == len(case.results)
    assert counts.not_run == counts.resumed == 0
    for stage in counts.by_stage.values():
        assert stage.discovered == stage.done + stage.failed + stage.resumed + stage.not_run
    assert len(outcome.by_source) == len(sources)
    assert all(
        equal(got, wanted) for (got, _), wanted in zip(outcome.by_source, sources, strict=True)
    )
    assert sum(len(results) for _, results in outcome.by_source) == len(outcome.results)


@pytest.fixture(scope="session")
def outcome_of(request: pytest.FixtureRequest) -> Callable[[str, str, str, Case], Ended]:
    """Outcome of a case; the cases of one setting run together, on first demand."""
    ended: dict[tuple[str, str, str], dict[str, Ended]] = {}

    def outcome(runner: str, workers: str, strategy: str, case: Case) -> Ended:
        setting = runner, workers, strategy
        if setting not in ended:
            address = request.getfixturevalue(f"{workers}_workers")
            ended[setting] = run_cases(RUNNERS[runner](address=address), strategy, CASES)
        return ended[setting][case.name]

    return outcome


SETTINGS = [
    ("evolve", "thread", "sequential"),
    *((r, w, s) for r in RUNNERS for w in ("thread", "process") for s in STRATEGIES[1:]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
@pytest.mark.timeout(600)  # the first case of a setting waits for all of its cases
def test_same_outcome(
    case: Case,
    setting: tuple[str, str, str],
    outcome_of: Callable[[str, str, str, Case], Ended],
) -> None:
    ended = outcome_of(*setting, case)
    if isinstance(ended, BaseException):
        raise ended
    outcome, raised = ended
    check(case, outcome, raised)
    assert outcome.strategy == setting[-1]


@pytest.mark.parametrize("case", STOPPING, ids=lambda case: case.name)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_spent_budget_stops_the_run(case: Case, strategy: str, thread_workers: str) -> None:
    ended = run_cases(EvolveTaskRunner(address=thread_workers), strategy, [case])[case.name]
    assert not isinstance(ended, BaseException), ended
    outcome, raised = ended
    counts = outcome.counts
    assert raised
    assert outcome.stopped is not None
    assert counts.discovered == counts.done + counts.failed + counts.resumed + counts.not_run
    assert 1 <= counts.failed == len(outcome.failures) < 30
    assert counts.done == 0
    assert "stopped early" in str(EvolveFailed(outcome))


# What batches and records could change: values, order, failures, attempts, equal items.
CORE_CASES = [
    case
    for case in CASES
    if case.name
    in {
        "small",
        "skewed a little",
        "sync and async",
        "equal items",
        "both fail",
        "retries succeed",
        "retries fail",
        "unpicklable results",
        "wrong kinds",
    }
]


@pytest.mark.parametrize("record", ["items", "batches", "sources", "auto"])
@pytest.mark.parametrize("batch", [1, 7, "auto"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.timeout(600)
def test_batches_and_records_change_nothing(
    strategy: str, batch: int | str, record: str, thread_workers: str
) -> None:
    # 544 task runs in a row say nothing that 17 do not; a batch of one is a task run as well.
    singly = record == "items" or (batch == 1 and record != "sources")
    options = {"batch": batch, "record": record, "record_budget": 20}
    cases = [
        replace(case, options={**case.options, **options})
        for case in CORE_CASES
        if not (singly and case.name in ("skewed", "equal items"))
    ]
    ended = run_cases(EvolveTaskRunner(address=thread_workers), strategy, cases)
    for case in cases:
        one = ended[case.name]
        assert not isinstance(one, BaseException), (case.name, one)
        check(case, *one)
