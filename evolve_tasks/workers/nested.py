"""`nested` on a worker: parse a source, submit its items from there, wait, bring all back."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from distributed import Client, Future, KilledWorker, get_client

from evolve_tasks.core.actions import Action, Expand, Process, Pull
from evolve_tasks.core.budget import FailureBudget
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.workers import units
from evolve_tasks.workers.calls import (
    BatchResult,
    ExpandCall,
    Expansion,
    ProcessCall,
    SourceResult,
    Span,
)
from evolve_tasks.workers.failing import failure_from
from evolve_tasks.workers.plugin import runtime_of
from evolve_tasks.workers.priorities import PROCESS
from evolve_tasks.workers.seceding import seceded
from evolve_tasks.workers.transport import Packed


@dataclass(frozen=True, slots=True)
class NestedCall:
    """Work on a source, items and all.

    Args:
        expand: the source.
        in_flight: items of this source that may be in flight.
        batch: items in one Dask task.
        allowance: items that may have a task run of their own.
        budget: the failure policy within this source.
    """

    expand: ExpandCall
    in_flight: int
    batch: int
    allowance: int
    budget: FailureBudget


def run_source(run: str, call: NestedCall) -> SourceResult:
    """Run a source as a Dask task that submits Dask tasks."""
    expansion = runtime_of(run).expand(call.expand)
    result = SourceResult(units.measure(expansion))
    if result.measure.size:
        # The worker's own client: shared by all tasks on it, and closed with it.
        children = _Children(get_client(), run, call, expansion)
        with seceded():
            result.batches = children.run()
    return result


class _Children:
    def __init__(self, client: Client, run: str, call: NestedCall, expansion: Expansion) -> None:
        self._client = client
        self._run = run
        self._call = call
        self._expansion = expansion
        self._stage = runtime_of(run).spec.stages[-1]
        # A parent that runs again after its worker died must not meet its old children.
        self._attempt = uuid4().hex[:8]
        self._allowance = call.allowance
        self._ended: SimpleQueue[tuple[Process, Future[Any]]] = SimpleQueue()

    def run(self) -> list[tuple[int, int, BatchResult]]:
        batches: list[tuple[int, int, BatchResult]] = []
        call = self._call
        core = Evolution(
            stages=2,
            in_flight=call.in_flight,
            buffered=len(self._expansion.items) + 1,
            batch=call.batch,
            budget=call.budget,
        )
        todo: deque[Action] = deque(core.begin())
        while True:
            while todo:
                match todo.popleft():
                    case Pull():
                        arrived = core.sources == 0
                        todo += core.source_arrived() if arrived else core.sources_ended()
                    case Expand(unit=unit):
                        todo += core.expanded(unit, len(self._expansion.items))
                    case Process() as action:
                        self._submit(action)
                    case _:
                        pass  # the flow releases this source as a whole
            if core.finished:
                return batches
            action, future = self._ended.get()
            batch = self._take(action, future)
            if batch.not_run:
                core.stop("the run was stopped")
            batches.append((action.start, action.stop, batch))
            todo += core.processed(action.unit, failed=len(batch.failures), not_run=batch.not_run)

    def _submit(self, action: Process) -> None:
        size = action.stop - action.start
        recorded = self._allowance >= size
        self._allowance -= size if recorded else 0
        expand = self._call.expand
        call = ProcessCall(
            stage=self._stage.position,
            parent=expand.index,
            start=action.start,
            stop=action.stop,
            label=expand.label,
            parent_run_id=expand.run_id,
            recorded=recorded,
        )
        items = self._expansion.items[action.start : action.stop]
        future = self._client.submit(
            units.process_items,
            self._run,
            call,
            Packed.of(items),
            key=(f"{self._stage.name}-{self._run}", *expand.index, action.start, self._attempt),
            priority=PROCESS,
            pure=False,
        )
        future.add_done_callback(lambda ended: self._ended.put((action, ended)))

    def _take(self, action: Process, future: Future[Any]) -> BatchResult:
        try:
            result: BatchResult = future.result()
            return result
        except Exception as error:
            return self._lost(action, error)
        finally:
            future.release()

    def _lost(self, action: Process, error: BaseException) -> BatchResult:
        from dataclasses import replace

        crashed = isinstance(error, KilledWorker)
        items: Any = self._expansion.items
        failures = [
            replace(
                failure_from(
                    error,
                    stage=self._stage.name,
                    index=(*self._call.expand.index, position),
                    item=items[position],
                ),
                crashed=crashed,
            )
            for position in range(action.start, action.stop)
        ]
        return BatchResult(Packed.of([]), failures, 0, [], Span())
