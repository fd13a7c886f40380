"""What was in flight when a worker died, and how the one that kills workers is found.

A worker that dies takes down all that it ran or kept ready. Most of it is innocent, and nobody
knows which is not. Three deaths are enough to know:

1. What was lost once runs again in parts of about the square root of its size, beside everything
   else: an innocent batch costs a few more units, and the guilty part of it is small.
2. What was lost twice runs again item by item, each alone: nothing else of the run is in flight.
3. Who is lost alone is guilty, and is given up.

So a poisonous item takes down `MOST_DEATHS` workers, and no other item is given up for it.

Where it is known what each thread of the dead worker was at, nothing else is suspected: it runs
alone at once, if it is brief, and has to be lost alone twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace
from math import isqrt

# Workers that one item, or one source, may take down before it is given up. With fewer nobody
# could tell it from what ran beside it.
MOST_DEATHS = 3

# What was seen at work when its worker died runs alone at once if it takes no longer than this:
# the others wait for it.
BRIEF_S = 1.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """Consecutive items, or sources, that have to run again.

    Args:
        stage: the stage that works on them; the one after the last for what is no item.
        source: position of the source that items are from; of the first one, for sources.
        parent: the list that items are in; `None` for sources.
        start: position of the first.
        stop: position after the last.
        crashes: workers that died with them.
        seen: they were at work when one of those died, and are brief.
    """

    stage: int
    source: int
    parent: tuple[int, int] | None
    start: int
    stop: int
    crashes: int
    seen: bool = False

    @property
    def size(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @property
    def alone(self) -> bool:
        """Whether they must be the only thing in flight."""
        return self.seen or self.crashes >= MOST_DEATHS - 1


def parts(suspect: Suspect) -> list[Suspect]:
    """Divide what a worker has died with for another time.

    Args:
        suspect: N >= 1 items or sources, with this death counted.

    Returns:
        Parts in order: single ones where they have to be alone, else about the square root of N.

    Example:
        >>> lost = Suspect(stage=1, source=0, parent=(0, 0), start=0, stop=9, crashes=1)
        >>> [(part.start, part.stop) for part in parts(lost)]
        [(0, 3), (3, 6), (6, 9)]
    """
    step = 1 if suspect.alone else max(1, isqrt(suspect.size))
    return [
        _part(suspect, start, min(start + step, suspect.stop))
        for start in range(suspect.start, suspect.stop, step)
    ]


def divided(lost: Suspect, running: Collection[int] | None, item_s: float | None) -> list[Suspect]:
    """Divide what a worker has died with by what is known of it.

    Args:
        lost: N >= 1 items or sources, this death not counted yet.
        running: positions of those that a thread was at; `None` if nobody knows.
        item_s: seconds that one takes, as far as is known.

    Returns:
        What has to run again, in order.

    Example:
        >>> lost = Suspect(stage=1, source=0, parent=(0, 0), start=0, stop=9, crashes=0)
        >>> [(part.start, part.stop, part.crashes) for part in divided(lost, [4], 0.1)]
        [(0, 4, 0), (4, 5, 1), (5, 9, 0)]
    """
    if running is None:
        return parts(replace(lost, crashes=lost.crashes + 1, seen=False))
    brief = item_s is None or item_s <= BRIEF_S
    again: list[Suspect] = []
    at = lost.start
    for position in sorted(set(running)):
        if position > at:
            again.append(_part(lost, at, position))
        one = _part(lost, position, position + 1)
        again.append(replace(one, crashes=lost.crashes + 1, seen=brief))
        at = position + 1
    if at < lost.stop:
        again.append(_part(lost, at, lost.stop))
    return again


def _part(suspect: Suspect, start: int, stop: int) -> Suspect:
    source = suspect.source if suspect.parent is not None else start
    return replace(suspect, source=source, start=start, stop=stop)


def guilty(size: int, crashes: int) -> bool:
    """Whether so many items or sources are given up, `crashes` workers having died with them.

    Example:
        >>> guilty(size=1, crashes=2), guilty(size=1, crashes=3)
        (False, True)
    """
    return size == 1 and crashes >= MOST_DEATHS


class Suspects:
    """Those that wait to run again: items before sources, and those that run alone last."""

    def __init__(self) -> None:
        self.items: deque[Suspect] = deque()
        self.expansions: deque[Suspect] = deque()
        self.single: deque[Suspect] = deque()

    def add(self, suspect: Suspect, last: int) -> None:
        """Put one in its queue; `last` is the stage that processes."""
        if suspect.alone:
            self.single.append(suspect)
        elif suspect.stage >= last:
            self.items.append(suspect)
        else:
            self.expansions.append(suspect)

    def __bool__(self) -> bool:
        return bool(self.items or self.expansions or self.single)

    def any_up_to(self, last: int) -> bool:
        """Whether sources or items wait, and not only what was asked for beside the stages."""
        return any(one.stage <= last for one in (*self.items, *self.expansions, *self.single))

    def expands(self, last: int) -> bool:
        """Whether something waits that may find further items."""
        return bool(self.expansions) or any(one.stage < last for one in self.single)

    def take_expansions(self, last: int) -> list[Suspect]:
        """Give those that may find further items, and keep the others."""
        found = [*self.expansions, *(one for one in self.single if one.stage < last)]
        self.expansions.clear()
        self.single = deque(one for one in self.single if one.stage >= last)
        return found

    def take_all(self) -> list[Suspect]:
        """Give all of them, and keep none."""
        everything = [*self.items, *self.expansions, *self.single]
        for queue in (self.items, self.expansions, self.single):
            queue.clear()
        return everything
