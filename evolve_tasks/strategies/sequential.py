"""`sequential`: one thing after another, in the flow's own process, without a cluster."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace

from prefect.context import SyncClientContext

from evolve_tasks.core.actions import Expand, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.batching import TARGET_S
from evolve_tasks.evolving import PULLED, Answer, EvolvingRun
from evolve_tasks.feeding import take_one
from evolve_tasks.strategies.drive import drive
from evolve_tasks.workers.bound import SIGNALS
from evolve_tasks.workers.calls import ExpandCall, Expansion, ProcessCall, Recorded, RunSpec
from evolve_tasks.workers.runtime import Runtime
from evolve_tasks.workers.task_runs import OpenRun
from evolve_tasks.workers.units import measure


def run_sequential(run: EvolvingRun, spec: RunSpec) -> Generator[Portion, None, None]:
    """Parse one source, process its items, go on to the next."""
    with ExitStack() as stack:
        template = copy_context()
        # One API client for the run: each costs tens of milliseconds to make.
        template.run(stack.enter_context, SyncClientContext.get_or_create())
        stack.callback(template.run, stack.pop_all().close)
        runtime = Runtime(
            spec, template, lambda: run.core.stopped is not None or run.interrupted, "flow", SIGNALS
        )
        stack.callback(runtime.close)
        yield from drive(run, _InTurn(run, runtime))


class _InTurn:
    """Does what is asked only when it is asked for an answer: one at a time, in order."""

    def __init__(self, run: EvolvingRun, runtime: Runtime) -> None:
        self._run = run
        self._sources = run.sources
        self._runtime = runtime
        self._open: tuple[OpenRun, float] | None = None  # and when it began
        self._stage = 0
        self._due: deque[tuple[int, Callable[[], Answer]]] = deque()
        self._expansions: dict[int, Expansion] = {}

    def pull(self, most: int) -> None:
        # One at a time, whatever was asked for: what has come is worked on before the next.
        self._due.append((PULLED, lambda: take_one(self._sources)))

    def expand(self, action: Expand, call: ExpandCall) -> None:
        def answer() -> Answer:
            expansion = self._runtime.expand(self._recorded(action, call))
            self._expansions[action.unit] = expansion
            return measure(expansion)

        self._due.append((action.unit, answer))

    def _recorded(self, action: Expand, call: ExpandCall) -> ExpandCall:
        """Let sources that are no task runs of their own share one.

        They come one by one, and a task run for each would be more than a server takes: it
        loses events when ten thousand are waiting.
        """
        if call.recording.unit is None or self._run.stages[call.stage].task is None:
            return call
        if self._open is not None and time.monotonic() - self._open[1] >= TARGET_S:
            self._close_run()
        if self._open is not None:
            self._run.ledger.shared()
        else:
            label = f"{call.sources[0].label} …"
            self._open = self._runtime.open_run(call.stage, label), time.monotonic()
            self._stage = call.stage
        run_id = self._open[0].run_id
        self._run.belongs(action.unit, run_id)
        return replace(call, recording=replace(call.recording, unit=None, within=run_id))

    def _close_run(self) -> None:
        if self._open is not None:
            self._open[0].close()
            opened, stage = self._open[0], self._stage
            self._run.recorded.append(Recorded(opened.run_id, stage, opened.label))
            self._open = None

    def process(self, action: Process, call: ProcessCall) -> None:
        def answer() -> Answer:
            items = self._expansions[action.parent].lists[action.offset]
            return self._runtime.process(call, items[call.start : call.stop])

        self._due.append((action.unit, answer))

    def release(self, unit: int) -> None:
        self._expansions.pop(unit, None)

    def answers(self) -> Iterable[tuple[int, Answer]]:
        unit, answer = self._due.popleft()
        return [(unit, answer())]

    def stop(self) -> None:
        """Nothing to tell: the runtime asks the core before each item."""

    def close(self) -> None:
        self._close_run()
        close = getattr(self._sources, "close", None)
        if callable(close):
            close()

    def abandon(self) -> None:
        self._due.clear()
