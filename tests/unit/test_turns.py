"""Whose turn it is at the scheduler: what is to come soon, and what others have waited for."""

from __future__ import annotations

import asyncio

import pytest
from distributed import Scheduler
from distributed.protocol.pickle import dumps, loads

from evolve_tasks.workers.priorities import EXPAND, PROCESS, SOON, Turns, VirtualTime
from evolve_tasks.workers.watch import RunWatch


def test_what_comes_soon_goes_before_what_its_run_has_queued() -> None:
    turns = Turns(VirtualTime())
    queued = [turns.submitted(PROCESS, 1.0) for _ in range(3)]
    turns.begun(queued[0][1])
    assert queued[0] <= turns.submitted(SOON, 0.1) < queued[1]


def test_what_comes_soon_does_not_go_before_the_turn_of_others() -> None:
    time = VirtualTime()
    ours, theirs = Turns(time), Turns(time)
    waiting = [theirs.submitted(PROCESS, 1.0) for _ in range(3)]
    theirs.begun(waiting[1][1])
    assert waiting[0] < ours.submitted(SOON, 0.1)


def test_what_comes_soon_is_part_of_the_share_of_its_run() -> None:
    turns = Turns(VirtualTime())
    turns.submitted(SOON, 0.5)
    assert turns.submitted(PROCESS, 1.0) == (-PROCESS, 0.5)


def test_a_run_has_had_what_its_tasks_took() -> None:
    """Nobody knows how long the first ones take: what they were expected to take is no debt."""
    turns = Turns(VirtualTime())
    for _ in range(10):
        turns.submitted(EXPAND, 0.5)
    for _ in range(10):
        turns.took(0.5, 0.01)
    assert turns.submitted(PROCESS, 1.0)[1] == pytest.approx(0.1)
    turns.took(1.0, 4.0)
    assert turns.submitted(PROCESS, 1.0)[1] == pytest.approx(4.1)


def test_what_comes_soon_goes_by_what_its_run_has_had() -> None:
    """However many of them there are: a run whose sources all fail leaves nothing behind."""
    time = VirtualTime()
    ours, theirs = Turns(time), Turns(time)
    for _ in range(10):
        ours.submitted(SOON, 0.1)
        ours.took(0.1, 0.4)
    assert theirs.submitted(PROCESS, 1.0) < ours.submitted(SOON, 0.1)


def test_runs_share_the_time_of_their_scheduler() -> None:
    """A watch travels to the scheduler; the time is there."""
    watches = [loads(dumps(RunWatch(f"abcdefabcde{run}", "client", []))) for run in range(2)]

    async def start_all() -> None:
        scheduler = Scheduler(dashboard=False)  # not started: it listens nowhere
        for watch in watches:
            await watch.start(scheduler)

    asyncio.run(start_all())
    first, second = (watch._turns for watch in watches)
    first.begun(first.submitted(PROCESS, 1.0)[1] + 7.0)
    assert second.submitted(PROCESS, 1.0)[1] >= 7.0
