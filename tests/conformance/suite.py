"""What the files of the conformance suite share: running cases, checking the whole contract."""

from __future__ import annotations

from typing import Any

import numpy as np
from prefect import flow

from evolve_tasks import EvolveFailed, Outcome, evolve
from tests.conformance.cases import Case

STRATEGIES = ["sequential", "as_completed", "async", "nested"]


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
