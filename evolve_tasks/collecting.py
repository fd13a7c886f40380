"""What `collect=` is given: what sources and inner items gave, kept until they have ended."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from evolve_tasks.core.actions import Expand, ItemDone
from evolve_tasks.core.assembly import Assembly, Portion
from evolve_tasks.errors import InvalidInput
from evolve_tasks.naming import short_repr
from evolve_tasks.outcome import Failure
from evolve_tasks.resuming import Kept
from evolve_tasks.stages import Stage, called, function_name, owned
from evolve_tasks.workers.calls import Collected, Recorded, SourceCall, collect_run_id
from evolve_tasks.workers.salvaging import Unreadable

Index = tuple[int, ...]  # positions from the source down to what is collected


@dataclass(frozen=True, slots=True)
class Collector:
    """A function that collects what came of the items of one stage.

    Args:
        of: position of that stage.
        stage: the function, as a stage after the last one.
        with_failures: it takes failures, too; and items that could not be expanded.
    """

    of: int
    stage: Stage
    with_failures: bool


@dataclass(slots=True)
class Ended:
    """A source or an inner item that has ended, and waits for being collected."""

    by: Collector
    item: Any
    source: Any
    call: SourceCall
    given: tuple[Any, ...]  # what the function is called with
    run: UUID | None  # the task run that expanded it
    kept: Kept | None = None  # where a journal keeps what comes of it


@dataclass(slots=True)
class _Inner:
    """An inner item that is open."""

    of: int
    call: SourceCall
    item: Any = None
    heard: bool = False  # that it was expanded, and what it is


@dataclass(slots=True)
class Collecting:
    """Gathers what sources and inner items gave, and holds what came of it.

    Args:
        collectors: the functions, by the stage whose items they collect.
        values: of each of these stages what was collected, and what came of it, by index.
    """

    collectors: Mapping[int, Collector]
    values: dict[int, dict[Index, tuple[Any, Any]]] = field(default_factory=dict)
    _open: dict[Index, Assembly] = field(default_factory=dict)
    _runs: dict[Index, UUID] = field(default_factory=dict)  # that expanded what is open
    _inner: dict[tuple[int, int, int], _Inner] = field(default_factory=dict)  # by their place

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The functions, as stages after the last one, in order."""
        return tuple(one.stage for one in self.collectors.values())

    @property
    def inner(self) -> tuple[int, ...]:
        """The inner stages whose items are collected."""
        return tuple(stage for stage in self.collectors if stage > 0)

    def begun(self, action: Expand, calls: Sequence[SourceCall]) -> None:
        """Inner items are about to be expanded."""
        if action.stage not in self.inner or action.parent < 0:
            return
        for position, call in enumerate(calls, action.start):
            self._open.setdefault(call.index, Assembly())
            place = action.parent, action.offset, position
            self._inner.setdefault(place, _Inner(action.stage, call))

    def gather(self, portions: Sequence[Portion]) -> None:
        """Take in what units gave."""
        for portion in portions:
            index = portion.index
            if 0 in self.collectors:
                self._open.setdefault(index[:1], Assembly()).add(portion)
            if not self._inner:
                continue
            for length in range(2, len(index) + 1):
                if (gathered := self._open.get(index[:length])) is not None:
                    gathered.add(portion)

    def expanded(
        self, action: Expand, offset: int, call: SourceCall, item: Any, run: UUID | None
    ) -> None:
        """Note that something was expanded, in a task run or not; it may have given nothing."""
        if not call.inner and 0 in self.collectors:
            self._open.setdefault(call.index, Assembly())
        place = action.parent, action.offset, action.start + offset
        # Nobody's function is called with an item that could not be read.
        if (inner := self._inner.get(place)) is not None and type(item) is not Unreadable:
            inner.item, inner.heard = item, True
        if run is not None and call.index in self._open:
            self._runs[call.index] = run

    def source_ended(self, source: Any, call: SourceCall) -> Ended | None:
        """What is to be collected of a source that has ended."""
        gathered, run = self._open.pop(call.index, None), self._runs.pop(call.index, None)
        by = self.collectors.get(0)
        if gathered is None or by is None:
            return None  # it was not begun
        return self._ended(by, gathered, source, source, call, run)

    def item_ended(self, done: ItemDone, source_of: Callable[[SourceCall], Any]) -> Ended | None:
        """What is to be collected of an inner item that has ended."""
        inner = self._inner.pop((done.parent, done.offset, done.position), None)
        if inner is None:
            return None
        call, gathered = inner.call, self._open.pop(inner.call.index)
        run = self._runs.pop(call.index, None)
        if not inner.heard:
            return None  # its worker died, and took along what it was
        by, source = self.collectors[inner.of], source_of(call)
        return self._ended(by, gathered, inner.item, source, call, run)

    def known(self, ended: Ended, value: Any) -> None:
        """Take what came of it in an earlier run."""
        self.values.setdefault(ended.by.of, {})[ended.call.index] = ended.item, value

    def answered(
        self, ended: Ended, answer: Any, lost: Failure | None
    ) -> tuple[list[Portion], list[Recorded]]:
        """Take what came of it; a failure is part of the outcome, without results."""
        call, failure, recorded = ended.call, lost, []
        if isinstance(answer, Collected):
            failure = answer.failure
            if failure is None:
                self.known(ended, answer.value.value())
            if answer.recorded:
                error = None if failure is None else str(failure)
                run_id = collect_run_id(call)
                recorded = [Recorded(run_id, ended.by.stage.position, call.label, error)]
        if failure is None:
            return [], recorded
        failure = replace(failure, source=ended.source)
        portion = Portion(call.position, ended.source, 0, 0, [], [failure], inner=call.inner)
        return [portion], recorded

    def collected(self, stage: int) -> list[tuple[Any, Any]]:
        """What was collected of one stage, with what came of it, in order."""
        return [pair for _, pair in sorted(self.values.get(stage, {}).items(), key=_index)]

    @staticmethod
    def _ended(
        by: Collector,
        gathered: Assembly,
        item: Any,
        source: Any,
        call: SourceCall,
        run: UUID | None,
    ) -> Ended | None:
        failures = gathered.failures()
        if not by.with_failures and any(one.index == call.index for one in failures):
            return None
        results = gathered.values(call.position)
        given = (item, results, failures) if by.with_failures else (item, results)
        return Ended(by, item, source, call, given, run)


def _index(pair: tuple[Index, tuple[Any, Any]]) -> Index:
    return pair[0]


def collecting_by(given: Any, stages: Sequence[Stage]) -> Collecting | None:
    """Check a `collect=`, and make stages of it.

    Args:
        given: a function, or functions by name of an expanding stage; `None` for nothing.
        stages: the stages of the run.

    Raises:
        InvalidInput: there is no such stage, or a function cannot be called with a source and its
            results.
    """
    if given is None:
        return None
    functions = given if isinstance(given, Mapping) else {stages[0].name: given}
    positions = {stage.name: stage.position for stage in reversed(stages[:-1])}
    for name in functions:
        if name not in positions:
            known = ", ".join(repr(stage.name) for stage in stages[:-1])
            raise InvalidInput(
                f"collect= names the stage {short_repr(name)}, and those that give items are "
                f"{known}: name one of these"
            )
    ordered = sorted(functions, key=positions.__getitem__)
    return Collecting(
        {
            positions[name]: _collector(functions[name], positions[name], position)
            for position, name in enumerate(ordered, len(stages))
        }
    )


def _collector(function: Any, of: int, position: int) -> Collector:
    if not callable(function):
        raise InvalidInput(
            f"collect={short_repr(function)} is not callable: give a Prefect @task or a function "
            "of a source and its results, as in collect=write_summary"
        )
    stage = Stage(function_name(function), position, True, owned(function))
    # A third parameter that has a value of its own is the user's, as in write(source, results, to).
    for arguments in (2, 3):
        try:
            inspect.signature(called(stage.function)).bind(*[None] * arguments)
        except ValueError:  # some builtins do not tell
            return Collector(of, stage, with_failures=False)
        except TypeError:
            continue
        return Collector(of, stage, with_failures=arguments == 3)
    raise InvalidInput(
        f"collect={stage.name} cannot be called with a source and the list of its results: give a "
        "function of these two, or of three: collect(source, results, failures)"
    )
