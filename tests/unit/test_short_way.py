"""Where only batches can begin the core looks at nothing else, and decides the same."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from evolve_tasks.core.actions import Action, Expand, Extra, Found, Process, Pull
from evolve_tasks.core.budget import Bounded
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.window import Window

THREADS = 20
SOURCES = 120
LONGEST = 80  # items that a source gives


class _Noting(Evolution):
    """Counts how often the short way was enough."""

    taken = 0

    def _only_batches(self, actions: list[Action], above: float) -> bool:
        begun = len(actions)
        enough = super()._only_batches(actions, above)
        self.taken += enough and len(actions) > begun
        return enough


class _LongWay(Evolution):
    """Looks at everything each time."""

    def _only_batches(self, actions: list[Action], above: float) -> bool:
        return False


class _Both:
    """Two cores that are told the same, and have to answer the same."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        settings: dict[str, Any] = {
            "stages": 2,
            "window": self.window(),
            "buffered": 300,
            "batch": self.random.choice([None, None, 3]),
            "budget": Bounded(60, None),
            "sources_known": SOURCES,
        }
        self.cores = _Noting(**settings), _LongWay(**settings)
        self.in_flight: list[Expand | Process | Extra] = []
        self.extras = 0

    def window(self) -> Window:
        """Of about so many threads."""
        threads = self.random.randint(THREADS // 2, THREADS)
        return Window(units=4 * threads, threads=threads)

    def tell(self, event: str, *arguments: Any, **more: Any) -> None:
        """Tell both of an event, and take what they answer."""
        short, long = (getattr(core, event)(*arguments, **more) for core in self.cores)
        # As text: tuples of different kinds may be equal.
        assert repr(short) == repr(long)
        for action in short:
            if isinstance(action, Pull):
                left = SOURCES - self.cores[0].sources
                self.tell("sources_arrived", min(action.most, left))
            elif isinstance(action, Expand | Process | Extra):
                self.in_flight.append(action)

    def meanwhile(self) -> None:
        """Something that is not the end of a unit."""
        match self.random.randrange(4):
            case 0:
                self.tell("pause")
            case 1:
                self.tell("resume")
            case 2:
                self.tell("resize", self.window())
            case _:
                self.tell("add_extra", self.extras)
                self.extras += 1

    def end_one(self) -> None:
        """A unit ends, in one way or another."""
        action = self.in_flight.pop(self.random.randrange(len(self.in_flight)))
        if self.random.random() < 0.003:
            self.tell("crashed", action.unit)
            return
        match action:
            case Extra():
                self.tell("extra_ended", action.unit)
            case Expand():
                found = [
                    Found(self.random.randrange(LONGEST)) for _ in range(action.start, action.stop)
                ]
                self.tell("expanded", action.unit, found, seconds=self.random.random())
            case Process():
                size = action.stop - action.start
                seconds = size * self.random.uniform(0.3, 1.2)
                failed = int(self.random.random() < 0.01)
                self.tell("processed", action.unit, failed=failed, seconds=seconds)

    def run(self) -> int:
        """Run to the end; how often the short way was enough."""
        self.tell("begin")
        while not self.cores[0].finished:
            if self.random.random() < 0.01 or not self.in_flight:
                self.meanwhile()
            else:
                self.end_one()
        assert self.cores[1].finished
        assert self.cores[0].progress == self.cores[1].progress
        return self.cores[0].taken


def test_it_decides_as_the_long_way_does() -> None:
    taken = [_Both(seed).run() for seed in range(25)]
    assert sum(taken) > 8_000, taken


@pytest.mark.parametrize("why", ["stopped", "paused"])
def test_nothing_begins_by_it(why: str) -> None:
    both = _Both(1)
    both.tell("begin")
    while both.cores[0].taken < 50:
        both.end_one()
    if why == "stopped":
        both.tell("stop", "enough")
    else:
        both.tell("pause")
    left = len(both.in_flight)
    for number in range(left):
        both.end_one()
        assert len(both.in_flight) == left - number - 1
