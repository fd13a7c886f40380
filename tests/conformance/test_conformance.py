"""All strategies give the same results, in the same order, with the same errors."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from prefect_dask import DaskTaskRunner

from evolve_tasks import EvolveFailed, EvolveTaskRunner
from tests.conformance.cases import CASES, STOPPING, Case
from tests.conformance.suite import STRATEGIES, Ended, check, run_cases

RUNNERS = {"evolve": EvolveTaskRunner, "stock": DaskTaskRunner}

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


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
    *(("evolve", "process", strategy) for strategy in STRATEGIES[1:]),
    # What the stock runner does for us it does alike with threads, and in async flows.
    ("stock", "process", "as_completed"),
]
# `make matrix`: threads as well, with which the other files of this suite run everywhere.
if os.environ.get("EVOLVE_MATRIX"):
    SETTINGS += [("evolve", "thread", strategy) for strategy in STRATEGIES[1:]]
    SETTINGS += [("stock", "process", "nested")]


@pytest.mark.every_combination
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
