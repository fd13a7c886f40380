"""Units of short lists that go together: one Dask task, and an answer for each of them.

An item that leads to others mostly leads to a few. A Dask task costs milliseconds, and working on
such a list less than one: so the core lets several go together, and they take one way there and
back. Each is still a unit of its own for the core, the journal and the failures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from evolve_tasks.answers import Answer, Lost
from evolve_tasks.core.actions import Action, Expand, Process
from evolve_tasks.sending import Sending
from evolve_tasks.workers.calls import ExpandCall, ProcessCall, Recording, Together


class Member(NamedTuple):
    """One of the units that go together, and what is sent for it."""

    action: Expand | Process
    call: ExpandCall | ProcessCall


def gone_along(todo: deque[Action], first: Expand | Process) -> list[Expand | Process]:
    """Take those actions that come next and go together with the first; that one with them."""
    together = [first]
    while todo and isinstance(one := todo[0], Expand | Process) and one.beside == first.unit:
        together.append(one)
        todo.popleft()
    return together


def parties(sending: Sending, actions: Sequence[Expand | Process]) -> list[list[Member]]:
    """What to send for units that go together.

    They share the task run of the first, if that is one. Where items are task runs of their own
    those that are not go together without them; and what is expanded is what one run has led to.
    """
    found: list[list[Member]] = []
    for action in actions:
        first = found[-1][0].call.recording if found else None
        call: ExpandCall | ProcessCall
        if isinstance(action, Process):
            call = sending.process(action, first, leads=len(actions) > 1)
        else:
            call = sending.inner(action, first, leads=len(actions) > 1)
        if first is None or not _like(call, first):
            found.append([])
        found[-1].append(Member(action, call))
    return found


def _like(call: ExpandCall | ProcessCall, first: Recording) -> bool:
    """Whether Prefect can see a unit as it does the first one."""
    one = call.recording
    led_by_another = isinstance(call, ExpandCall) and one.upstream != first.upstream
    return one.each == first.each and not (one.each and led_by_another)


def by_itself(sending: Sending, member: Member) -> Member:
    """The same unit, to be sent alone: what it was part of has failed, or has never begun."""
    action, call = member
    if call.recording.each:
        return member
    if isinstance(action, Process):
        return Member(action, sending.process(action))
    return Member(action, sending.inner(action))


def apart(party: Sequence[Member], answer: Answer) -> list[Answer | None]:
    """The answers of those that went together.

    Returns:
        One for each; `None` for one that has to go alone to be answered: nobody knows whose fault
        it is that all of them failed.
    """
    if isinstance(answer, Together):
        return list(answer.answers)
    assert isinstance(answer, Lost), f"units that went together were answered with {answer}"
    return [answer if answer.crashed else None for _ in party]
