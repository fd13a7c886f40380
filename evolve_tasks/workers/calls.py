"""What travels to and from the workers: calls there, expansions and batch results back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

from dask.sizeof import sizeof

from evolve_tasks.outcome import Failure
from evolve_tasks.stages import Stage
from evolve_tasks.workers.transport import Packed


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What each worker has to know of a run; it travels once to each.

    Args:
        run: unique name of the run.
        stages: the stages.
        context: Prefect's run context as `serialize_context()` gives it.
        failures_recorded: an item that fails gets a task run even where items have none.
        terminal_pid: process that shows progress on its terminal, if one does.
    """

    run: str
    stages: tuple[Stage, ...]
    context: dict[str, Any]
    failures_recorded: bool
    terminal_pid: int | None = None


@dataclass(frozen=True, slots=True)
class ExpandCall:
    """Run an expanding stage on one source.

    Args:
        stage: position of the stage.
        index: positions from the source down.
        label: short name of the source.
        run_id: id of the task run that records it, and name space of its items' ids.
        item: the source.
    """

    stage: int
    index: tuple[int, ...]
    label: str
    run_id: UUID
    item: Packed


@dataclass(frozen=True, slots=True)
class ProcessCall:
    """Run the last stage on consecutive items.

    Args:
        stage: position of the stage.
        parent: positions of the list that the items are from.
        start: position of the first item in that list.
        stop: position after the last one.
        label: short name of the source.
        parent_run_id: id of the task run that gave the items.
        recorded: each item is a Prefect task run.
    """

    stage: int
    parent: tuple[int, ...]
    start: int
    stop: int
    label: str
    parent_run_id: UUID
    recorded: bool


def item_run_id(parent_run_id: UUID, position: int) -> UUID:
    """Id of an item's task run: the same when the item is run again after a worker died."""
    return uuid5(parent_run_id, str(position))


@dataclass(slots=True)
class Span:
    """When and where a unit ran, in seconds since the epoch."""

    started: float = 0.0
    ended: float = 0.0
    worker: str = ""
    thread: int = 0


@dataclass(slots=True)
class Expansion:
    """What an expanding stage gave. It stays on the worker; the flow sees `Measure` only."""

    items: Any = ()
    failure: Failure | None = None
    not_run: bool = False
    recorded: bool = False
    span: Span = field(default_factory=Span)

    def __sizeof__(self) -> int:
        """What Dask's memory accounting should see."""
        return int(sizeof(self.items))


@dataclass(frozen=True, slots=True)
class Measure:
    """What the flow learns of an expansion: how many items, or why there are none."""

    size: int
    failure: Failure | None
    not_run: bool
    recorded: bool
    span: Span


@dataclass(slots=True)
class BatchResult:
    """How a batch ended.

    Args:
        values: results of the items that succeeded, in order, packed.
        failures: those that failed, in order.
        not_run: items at its end that were not begun, because the run had been stopped.
        recorded: positions of the items that have a task run.
        span: when and where it ran.
    """

    values: Packed
    failures: list[Failure]
    not_run: int
    recorded: list[int]
    span: Span


@dataclass(slots=True)
class SourceResult:
    """How a source ended that was worked on in one piece (`nested`)."""

    measure: Measure
    batches: list[tuple[int, int, BatchResult]] = field(default_factory=list)
