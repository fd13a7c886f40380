"""Lists that the flow keeps until all in them has ended: what came to it on the way.

The last stage has found them, or a stage has given them before it had all of its items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from evolve_tasks.core.actions import Found
from evolve_tasks.workers.calls import SourceCall, item_run_id
from evolve_tasks.workers.salvaging import Unreadable
from evolve_tasks.workers.transport import Packed


class Runs(NamedTuple):
    """The task runs of items of one list.

    Args:
        own: positions of those that have one of their own.
        together: the one that the others are part of; `None` if they are not part of any.
    """

    own: Collection[int] = ()
    together: UUID | None = None

    def of(self, call: SourceCall, position: int) -> UUID | None:
        """The task run of an item of the list that `call` gave."""
        return item_run_id(call.run_id, position) if position in self.own else self.together


NO_RUNS = Runs()


class Find(NamedTuple):
    """What items of one list have found for one stage.

    Args:
        offset: which of the items of their unit gave that list.
        call: what gave that list.
        levels: how often the last stage has led there, from the items of the unit.
        stage: the stage that is to work on what was found.
        owners: position of each item that found some, and how many it found; in order.
        items: all of them.
        keys: what stands for each, where they are compared.
        runs: the task runs in which they were found.
    """

    offset: int
    call: SourceCall
    levels: int
    stage: int
    owners: list[tuple[int, int]]
    items: list[Any]
    keys: bytes
    runs: Runs = NO_RUNS


class Share(NamedTuple):
    """What of a list is left to do, before anything of it has begun.

    Args:
        size: items in it.
        repeated: of these, met before in the run.
        left: ranges of those that are neither met nor known from a journal.
    """

    size: int
    repeated: int
    left: tuple[tuple[int, int], ...]

    def of(self, found: Found) -> Found:
        """How the list counts that was found so."""
        ended = self.size - sum(stop - start for start, stop in self.left)
        return found._replace(
            ended=ended, resumed=ended - self.repeated, repeated=self.repeated, left=self.left
        )


@dataclass(slots=True)
class Lead:
    """Items that were found for one stage.

    Args:
        items: N >= 0 items.
        owner: what gave them, if it is the same for all and positions are those below it.
        places: otherwise: what gave the item that found each, its position there, and which of
            its finds this one is.
        first: position of the first.
        run: the task run that gave them, if it is the same for all and there is one.
        runs: otherwise: that of each.
    """

    items: list[Any]
    owner: SourceCall | None
    places: list[tuple[SourceCall, int, int]]
    first: int = 0
    run: UUID | None = None
    runs: list[UUID | None] = field(default_factory=list)

    def above(self, position: int) -> SourceCall:
        """What gave the item that found one of them, or gave that itself."""
        return self.owner if self.owner is not None else self.places[position][0]

    def run_above(self, position: int) -> UUID | None:
        """The task run that gave one of them, if there is one."""
        return self.run if self.owner is not None else self.runs[position]

    def calls(self, start: int, stop: int) -> tuple[SourceCall, ...]:
        """Some of the items, as what is expanded."""
        if self.owner is not None:
            return tuple(map(self.owner.item, range(start, stop)))
        return tuple(
            call.item(position).deeper().item(number)
            for call, position, number in self.places[start:stop]
        )

    def packed(self, start: int, stop: int) -> Packed:
        """Some of the items, ready to be sent; `Unreadable` stands for what cannot be."""
        items = self.items[start - self.first : stop - self.first]
        try:
            return Packed.of(items)
        except Exception:
            return Packed.of([_sendable(item) for item in items])


class Leads:
    """The lists that are open, by the unit whose items found them and their place there."""

    def __init__(self) -> None:
        self._lists: dict[int, dict[int, Lead]] = {}

    def add(self, unit: int, leads: Sequence[Lead], first: int) -> None:
        """Keep what items of a unit have found, from place `first` on."""
        self._lists.setdefault(unit, {}).update(enumerate(leads, first))

    def get(self, unit: int, offset: int) -> Lead | None:
        """A list; `None` where an expansion gave it, which stays on the workers."""
        return self._lists.get(unit, {}).get(offset)

    def forget(self, unit: int, place: int) -> None:
        """Forget one list of a unit that may give others."""
        self._lists.get(unit, {}).pop(place, None)

    def release(self, unit: int) -> None:
        """Forget what a unit has found."""
        self._lists.pop(unit, None)


def between(ranges: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """What lies between ranges, which are in order."""
    at = 0
    for start, stop in [*ranges, (size, size)]:
        if at < start:
            yield at, start
        at = stop


def _sendable(item: Any) -> Any:
    try:
        Packed.of(item)
    except Exception as error:
        return Unreadable(f"{type(error).__name__}: {error}, when the flow sent it on")
    return item
