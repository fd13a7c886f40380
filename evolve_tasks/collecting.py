"""What `collect=` is given: the results of each source, kept until the source has ended."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evolve_tasks.core.assembly import Assembly, Portion
from evolve_tasks.errors import InvalidInput
from evolve_tasks.naming import short_repr
from evolve_tasks.outcome import Failure
from evolve_tasks.stages import Stage, function_name
from evolve_tasks.workers.calls import Collected, Recorded, SourceCall, collect_run_id


@dataclass(slots=True)
class Ended:
    """A source that has ended, and waits for being collected."""

    source: Any
    call: SourceCall
    given: tuple[Any, ...]  # what the function is called with


@dataclass(slots=True)
class Collecting:
    """Gathers what sources gave, and holds what came of it.

    Args:
        stage: the function, as a stage after the last one.
        with_failures: it takes failures, too; and sources that could not be expanded.
    """

    stage: Stage
    with_failures: bool
    values: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # by position: of what, what
    _open: dict[int, Assembly] = field(default_factory=dict)

    def gather(self, portions: Sequence[Portion]) -> None:
        """Take in what units gave."""
        for portion in portions:
            self._of(portion.position).add(portion)

    def expanded(self, position: int) -> None:
        """A source was expanded; it may have given nothing."""
        self._of(position)

    def ended(self, position: int, source: Any, call: SourceCall) -> Ended | None:
        """What is to be collected of a source that has ended."""
        gathered = self._open.pop(position, None)
        if gathered is None:
            return None  # it was not begun
        failures = gathered.failures()
        if not self.with_failures and any(len(one.index) == 1 for one in failures):
            return None
        results = gathered.values(position)
        given = (source, results, failures) if self.with_failures else (source, results)
        return Ended(source, call, given)

    def answered(
        self, ended: Ended, answer: Any, lost: Failure | None
    ) -> tuple[list[Portion], list[Recorded]]:
        """Take what came of a source; a failure is part of the outcome, without results."""
        position, failure, recorded = ended.call.position, lost, []
        if isinstance(answer, Collected):
            failure = answer.failure
            if failure is None:
                self.values[position] = ended.source, answer.value.value()
            if answer.recorded:
                error = None if failure is None else str(failure)
                run_id = collect_run_id(ended.call)
                recorded = [Recorded(run_id, self.stage.position, ended.call.label, error)]
        if failure is None:
            return [], recorded
        failure = replace(failure, source=ended.source)
        return [Portion(position, ended.source, 0, 0, [], [failure])], recorded

    def collected(self) -> list[tuple[Any, Any]]:
        """Sources and values, in the order of the sources."""
        return [self.values[position] for position in sorted(self.values)]

    def _of(self, position: int) -> Assembly:
        return self._open.setdefault(position, Assembly())


def collecting_by(function: Any, position: int) -> Collecting | None:
    """Check a `collect=`, and make a stage of it.

    Args:
        function: what was given; `None` for nothing.
        position: position of the stage after the last.

    Raises:
        InvalidInput: it cannot be called with a source and its results.
    """
    if function is None:
        return None
    if not callable(function):
        raise InvalidInput(
            f"collect={short_repr(function)} is not callable: give a Prefect @task or a function "
            "of a source and its results, as in collect=write_summary"
        )
    stage = Stage(function_name(function), position, True, function)
    called = function if stage.task is None else stage.task.fn
    for arguments in (3, 2):
        try:
            inspect.signature(called).bind(*[None] * arguments)
        except ValueError:  # some builtins do not tell
            return Collecting(stage, with_failures=False)
        except TypeError:
            continue
        return Collecting(stage, with_failures=arguments == 3)
    raise InvalidInput(
        f"collect={stage.name} cannot be called with a source and the list of its results: give a "
        "function of these two, or of three: collect(source, results, failures)"
    )
