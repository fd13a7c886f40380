"""`nested` on a worker: parse a source, submit its items from there, wait, bring all back."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from uuid import UUID, uuid4

from distributed import Client, Future, KilledWorker, get_client, get_worker

from evolve_tasks.core.actions import Action, Found, Process
from evolve_tasks.core.budget import FailureBudget
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.pace import Pace
from evolve_tasks.core.window import Window
from evolve_tasks.errors import ClusterUnfit
from evolve_tasks.workers import units
from evolve_tasks.workers.calls import (
    BatchResult,
    ExpandCall,
    Expansion,
    NestedBatch,
    NestedResult,
    Orphans,
    Part,
    ProcessCall,
    Recording,
    Span,
)
from evolve_tasks.workers.dask_span import in_one_span
from evolve_tasks.workers.failing import failure_from
from evolve_tasks.workers.glimpses import Glimpse, Glimpses
from evolve_tasks.workers.plugin import pause_name, runtime_of, stop_name
from evolve_tasks.workers.priorities import PROCESS
from evolve_tasks.workers.seceding import seceded
from evolve_tasks.workers.transport import NOTHING, Packed

# How often a paused source looks whether it may go on.
PAUSED_S = 0.5

# How long nothing may end while work is held back until it is known how long it takes.
PROBING_S = 1.0


@dataclass(frozen=True, slots=True)
class NestedCall:
    """Work on sources, items and all.

    Args:
        expand: the sources.
        window: how much of their items may be in flight.
        batch: items in one Dask task; `None` where durations decide.
        allowance: items that may have a task run of their own.
        batches: batches beyond it that may be task runs as a whole, in a minute.
        budget: the failure policy within these sources.
        item_s: seconds that an item takes, as far as the flow knows.
    """

    expand: ExpandCall
    window: Window
    batch: int | None
    allowance: int
    batches: float
    budget: FailureBudget
    item_s: float | None


def run_sources(run: str, packed: Packed, items: Packed) -> NestedResult:
    """Run sources as a Dask task that submits Dask tasks.

    Args:
        run: the run.
        packed: the `NestedCall`.
        items: the sources.
    """
    call: NestedCall = packed.value()
    expansion = runtime_of(run).expand(call.expand, items.elements())
    result = NestedResult(expansion.measure)
    if any(end.size > end.ended for end in expansion.measure.ends):
        # The worker's own client: shared by all tasks on it, and closed with it.
        children = _Children(get_client(), run, call, expansion)
        with seceded():
            result.batches = children.run()
        result.orphans = children.orphans
        result.unseen = children.unseen
    return result


class _Children:
    def __init__(self, client: Client, run: str, call: NestedCall, expansion: Expansion) -> None:
        self._client = client
        self._run = run
        self._call = call
        self._expansion = expansion
        spec = runtime_of(run).spec
        self._stage = spec.stages[-1]
        self._gave_runs = spec.stages[call.expand.stage].task is not None
        self._resources = spec.resources.get(self._stage.name)
        # A parent that runs again after its worker died must not meet its old children.
        self._attempt = uuid4().hex[:8]
        self._allowance = call.allowance
        self._pace = Pace(call.batches, time.monotonic())
        self.unseen = 0
        self.orphans: list[Orphans] = []
        self._plugins = get_worker().plugins
        # What has ended: the batch, its task run, and the future of its result.
        self._ended: SimpleQueue[tuple[Process, UUID | None, Future[Any]]] = SimpleQueue()

    def run(self) -> list[NestedBatch]:
        batches: list[NestedBatch] = []
        call = self._call
        core = Evolution(
            stages=2,
            window=call.window,
            buffered=1,  # nothing is expanded here
            batch=call.batch,
            budget=call.budget,
            item_s=call.item_s,
        )
        ends = self._expansion.measure.ends
        if sum(end.size - end.ended for end in ends) > self._allowance:
            self._allowance = 0  # single runs are slow: no use in beginning what does not fit
        todo: deque[Action] = deque(core.adopt([Found(end.size, end.ended) for end in ends]))
        glimpses, [tally] = Glimpses(get_worker()), core.tallies[1:]
        position = call.expand.sources[0].position
        while True:
            self._wait_in_a_pause()
            while todo:
                if isinstance(action := todo.popleft(), Process):
                    self._submit(action)
            if core.finished:
                return batches
            glimpse = Glimpse(self._run, position, tally.discovered, tally.done, tally.failed)
            due_s = glimpses.show(glimpse)
            try:
                action, run_id, future = self._ended.get(
                    timeout=PROBING_S if core.probing else due_s
                )
            except Empty:
                todo += core.waited() if core.probing else ()
                continue
            batch = self._take(action, future)
            if batch is None:
                # Who is guilty is found by the run, which sees all that is in flight.
                size = action.stop - action.start
                todo += core.processed(action.unit, not_run=size)
                continue
            if batch.not_run:
                core.stop("the run was stopped")
            batches.append(NestedBatch(action.offset, action.start, action.stop, run_id, batch))
            todo += core.processed(
                action.unit,
                failed=len(batch.failures),
                not_run=batch.not_run,
                seconds=batch.worked_s,
            )

    def _wait_in_a_pause(self) -> None:
        """Submit nothing while the run is paused, unless it is stopped meanwhile."""
        plugins, stop = self._plugins, stop_name(self._run)
        while pause_name(self._run) in plugins and stop not in plugins:
            time.sleep(PAUSED_S)

    def _submit(self, action: Process) -> None:
        size = action.stop - action.start
        expand, is_task = self._call.expand, self._stage.task is not None
        each = is_task and self._allowance >= size
        self._allowance -= size if each else 0
        seen = not each and self._pace.take(1 if is_task else 0, time.monotonic())
        self.unseen += is_task and not (each or seen)
        if seen and is_task and size == 1:
            each, seen = True, False  # or it had two task runs if it failed
        source = expand.sources[action.offset]
        call = ProcessCall(
            stage=self._stage.position,
            source=source,
            part=Part(
                source.label,
                action.offset,
                action.start,
                action.stop,
                len(self._expansion.lists[action.offset]),
            ),
            recording=Recording(
                each=each,
                unit=uuid4() if seen else None,
                upstream=(expand.recording.unit or source.run_id) if self._gave_runs else None,
            ),
            items=Packed.of(self._expansion.lists[action.offset][action.start : action.stop]),
        )
        with in_one_span():
            future = self._client.submit(
                units.process,
                self._run,
                call,
                key=(
                    f"{self._stage.name}-{self._run}",
                    source.position,
                    action.start,
                    self._attempt,
                ),
                priority=PROCESS,
                resources=self._resources,
                pure=False,
            )
        run_id = call.recording.unit
        future.add_done_callback(lambda ended: self._ended.put((action, run_id, ended)))

    def _take(self, action: Process, future: Future[Any]) -> BatchResult | None:
        """The result of a batch; `None` if its worker died with it."""
        try:
            result: BatchResult = future.result()
            return result
        except KilledWorker:
            items = self._expansion.lists[action.offset][action.start : action.stop]
            self.orphans.append(Orphans(action.offset, action.start, action.stop, Packed.of(items)))
            return None
        except ClusterUnfit:
            raise  # it would be the same for all that come to that worker
        except Exception as error:
            return self._lost(action, error)
        finally:
            future.release()

    def _lost(self, action: Process, error: BaseException) -> BatchResult:
        position = self._call.expand.sources[action.offset].position
        items: Any = self._expansion.lists[action.offset]
        failures = [
            failure_from(error, stage=self._stage.name, index=(position, item), item=items[item])
            for item in range(action.start, action.stop)
        ]
        return BatchResult(NOTHING, failures, 0, [], False, 0.0, Span())
