"""`sequential`: one thing after another, in the flow's own process, without a cluster."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from prefect.context import SyncClientContext

from evolve_tasks.answers import PULLED, Answer, Lost
from evolve_tasks.core.actions import Expand, Extra, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.batching import TARGET_S
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.feeding import take_one
from evolve_tasks.strategies.drive import drive
from evolve_tasks.workers.bound import SIGNALS
from evolve_tasks.workers.calls import (
    CollectCall,
    CombineCall,
    ExpandCall,
    Expansion,
    Part,
    ProcessCall,
    Recorded,
    RunSpec,
)
from evolve_tasks.workers.runtime import Runtime
from evolve_tasks.workers.task_runs import task_runs_are_of
from evolve_tasks.workers.unit_runs import OpenRun
from evolve_tasks.workers.units import measure

# How long a paused run sleeps if nobody wakes it.
PAUSED_S = 5.0


def run_sequential(run: EvolvingRun, spec: RunSpec) -> Generator[Portion, None, None]:
    """Parse one source, process its items, go on to the next."""
    with ExitStack() as stack:
        template = copy_context()
        # One API client for the run: each costs tens of milliseconds to make.
        template.run(stack.enter_context, SyncClientContext.get_or_create())
        stack.callback(template.run, stack.pop_all().close)
        template.run(task_runs_are_of, spec.run)
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
        self._open: dict[int, tuple[OpenRun, float]] = {}  # and when it began, by stage
        self._due: deque[tuple[int, Callable[[], Answer]]] = deque()
        self._expansions: dict[int, Expansion] = {}
        self._woken = threading.Event()
        run.wake = self._woken.set

    def pull(self, most: int) -> None:
        # One at a time, whatever was asked for: what has come is worked on before the next.
        self._due.append((PULLED, lambda: take_one(self._sources, SIGNALS)))

    def expand(self, action: Expand, call: ExpandCall) -> None:
        def answer() -> Answer:
            given = call.items.value() if call.part is None else self._part(action, call.part)
            expansion = self._runtime.expand(self._recorded(action, call), given)
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
        stage = call.stage
        if stage in self._open and time.monotonic() - self._open[stage][1] >= TARGET_S:
            self._close_run(stage)
        if stage in self._open:
            self._run.ledger.shared()
        else:
            label = f"{call.sources[0].label} …"
            self._open[stage] = self._runtime.open_run(stage, label), time.monotonic()
        run_id = self._open[stage][0].run_id
        self._run.belongs(action.unit, run_id)
        return replace(call, recording=replace(call.recording, unit=None, within=run_id))

    def _close_run(self, stage: int) -> None:
        opened, _ = self._open.pop(stage)
        opened.close()
        self._run.recorded.append(Recorded(opened.run_id, stage, opened.label))

    def process(self, action: Process, call: ProcessCall) -> None:
        def answer() -> Answer:
            given = None if call.items is None else call.items.value()
            return self._runtime.process(
                call, self._part(action, call.part) if given is None else given
            )

        self._due.append((action.unit, answer))

    def together(self, actions: Sequence[Expand | Process]) -> None:
        # They have no way to go: each is answered by itself.
        for action in actions:
            if isinstance(action, Process):
                self.process(action, self._run.sending.process(action))
            else:
                self.expand(action, self._run.sending.inner(action))

    def extra(self, action: Extra, call: CollectCall | CombineCall) -> None:
        self._due.append((action.unit, lambda: self._runtime.extra(call)))

    def _part(self, action: Expand | Process, part: Part) -> Sequence[Any]:
        items: Sequence[Any] = self._expansions[action.parent].lists[part.offset]
        return items[part.start : part.stop]

    def release(self, unit: int) -> None:
        self._expansions.pop(unit, None)

    def answers(self) -> Iterable[tuple[int, Answer]]:
        if not self._due:  # as in a pause
            self._woken.wait(PAUSED_S)
            self._woken.clear()
            return []
        # A source may be long in coming; what else there is to do does not wait for it.
        first = next((one for one in self._due if one[0] != PULLED), self._due[0])
        self._due.remove(first)
        unit, answer = first
        try:
            return [(unit, answer())]
        except SIGNALS:
            raise
        except Exception as error:
            if unit == PULLED:
                raise
            return [(unit, Lost(error))]  # what came of it cannot be handed over

    def stop(self) -> None:
        """Nothing to tell: the runtime asks the core before each item."""

    def permit(self, unit: int, offset: int, number: int) -> None:
        """Nobody gives on the way: one thing comes after another."""

    def pause(self, paused: bool) -> None:
        """Nothing to tell: what is due has begun, as far as anybody can see."""

    def close(self) -> None:
        for stage in list(self._open):
            self._close_run(stage)
        close = getattr(self._sources, "close", None)
        if callable(close):
            close()

    def abandon(self) -> None:
        self._due.clear()
