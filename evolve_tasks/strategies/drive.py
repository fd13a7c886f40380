"""The loop that three strategies share: carry out actions, wait for answers, tell the core."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from evolve_tasks.answers import FOLLOWED, PULLED, Answer, Lost, readable
from evolve_tasks.core.actions import (
    Action,
    Expand,
    Extra,
    Follow,
    Forget,
    ItemDone,
    Process,
    Pull,
    Release,
    SourceDone,
)
from evolve_tasks.core.assembly import Portion
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.feeding import Arrival
from evolve_tasks.strategies.together import gone_along
from evolve_tasks.workers.calls import CollectCall, CombineCall, ExpandCall, ProcessCall
from evolve_tasks.workers.streaming import Chunk


class Carrier(Protocol):
    """Carries units to where they run and brings their answers back."""

    def pull(self, most: int) -> None:
        """Begin to take sources; the answer is an `Arrival`."""
        ...

    def expand(self, action: Expand, call: ExpandCall) -> None:
        """Begin an expansion."""
        ...

    def process(self, action: Process, call: ProcessCall) -> None:
        """Begin a batch."""
        ...

    def together(self, actions: Sequence[Expand | Process]) -> None:
        """Begin units that go together; each gets its answer."""
        ...

    def extra(self, action: Extra, call: CollectCall | CombineCall) -> None:
        """Begin what was asked for beside the stages."""
        ...

    def release(self, unit: int) -> None:
        """Forget the lists that a unit gave."""
        ...

    def answers(self) -> Iterable[tuple[int, Answer]]:
        """Wait until a unit has ended, give all that have; none if that takes long."""
        ...

    def close(self) -> None:
        """Let go of what it holds; called once, whatever happened."""
        ...

    def stop(self) -> None:
        """Let nothing begin that has not begun; each unit still gets its answer."""
        ...

    def permit(self, unit: int, offset: int, number: int) -> None:
        """Let what gives on the way go on, up to so many items."""
        ...

    def pause(self, paused: bool) -> None:
        """Begin nothing of what was sent and can still be held back, or go on."""
        ...

    def abandon(self) -> None:
        """The run is over before its time: let what runs end within a bound, drop the rest."""
        ...


def drive(run: EvolvingRun, carrier: Carrier) -> Generator[Portion, None, None]:
    """Run to the end, giving what each unit adds to the outcome as it ends.

    A unit counts as in flight until the caller has taken what it gave: who reads slowly is
    not overrun. Closing the iterator stops the run.

    Args:
        run: the run.
        carrier: how units are carried out.
    """
    todo: deque[Action] = deque(run.core.begin())
    told = closed = over = False
    try:
        while True:
            paused = run.core.paused
            todo.extend(run.steered())
            if run.core.paused != paused:
                carrier.pause(run.core.paused)
            refused = _carry_out(run, carrier, todo)
            if run.core.stopped is not None and not told:
                told = True
                carrier.stop()
            if run.core.closed and not closed:
                closed = True
                # Nobody waits for a source any more; one that still comes is not begun.
                todo.extend(run.tell(PULLED, Arrival([], ended=True)))
            if run.core.finished:
                over = True
                return
            for permit in run.permits():
                carrier.permit(*permit)
            answers = run.complete(
                (unit, readable(answer)) for unit, answer in refused or carrier.answers()
            )
            heard = bool(answers)
            # What was sent on the way comes before the answer, which builds on it.
            for unit, chunk in [one for one in answers if isinstance(one[1], Chunk)]:
                yield from run.portions(unit, chunk)
                todo.extend(run.tell(unit, chunk))
            answers = [one for one in answers if not isinstance(one[1], Chunk)]
            portions = [run.portions(unit, answer) for unit, answer in answers]
            run.keep()
            for (unit, answer), given in zip(answers, portions, strict=True):
                yield from given
                todo.extend(run.tell(unit, answer))
            if run.interrupted:
                return
            if not heard:
                todo.extend(run.core.waited())
    finally:
        if not over:
            run.abandon()
            for permit in run.permits():
                carrier.permit(*permit)
            carrier.abandon()
        carrier.close()


def _carry_out(run: EvolvingRun, carrier: Carrier, todo: deque[Action]) -> list[tuple[int, Answer]]:
    """Carry out all that is to do; give the units that cannot or need not be sent."""
    refused: list[tuple[int, Answer]] = []
    while todo:
        match todo.popleft():
            case Expand() | Process() as first if len(actions := gone_along(todo, first)) > 1:
                carrier.together(actions)
            case Pull(most):
                carrier.pull(most)
            case Expand() as action:
                call = run.sending.expand(action)
                if not isinstance(call, ExpandCall):
                    refused.append((action.unit, call))
                else:
                    carrier.expand(action, call)
            case Process() as action:
                carrier.process(action, run.sending.process(action))
            case Forget(unit, place):
                run.forget(unit, place)
            case Release(unit):
                run.released(unit)
                carrier.release(unit)
            case Extra() as action:
                extra = run.extra_call(action)
                if isinstance(extra, Lost):
                    refused.append((action.unit, extra))
                else:
                    carrier.extra(action, extra)
            case Follow() as action:
                run.follow(action)
                refused.append((action.unit, FOLLOWED))
            case ItemDone() as action:
                todo.extend(run.item_done(action))
            case SourceDone(source):
                todo.extend(run.source_done(source))
    return refused
