"""What the core asks for. All but the last four are answered by one event.

| action | means | answered by exactly one of |
|---|---|---|
| `Pull` | take the next sources | `sources_arrived` |
| `Expand` | run an expanding stage | `expanded`, `expansion_lost`, `crashed`; `gave` before |
| `Process` | run the last stage on consecutive items | `processed`, `crashed` |
| `Extra` | do what was asked for beside the stages | `extra_ended`, `crashed` |
| `Follow` | take apart what was found and held back | `followed` |
| `Forget` | a list of a unit that gives further ones is not needed any more | nothing |
| `Release` | the lists of a unit are not needed any more | nothing |
| `ItemDone` | all that came from an item of an inner stage has ended | nothing |
| `SourceDone` | all that came from a source has ended | nothing |
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Pull(NamedTuple):
    """Take up to `most` sources."""

    most: int


class Expand(NamedTuple):
    """Run stage `stage` on the items `start` to `stop` (exclusive) of a list.

    Where `parent` is -1 these are sources, and positions are those of the sources. A list of at
    most `inline` items is worked on where it was found. Workers have died with it `crashes`
    times. Where `beside` is not -1 it goes together with that unit, and takes no place of its own.
    """

    unit: int
    stage: int
    source: int
    parent: int
    offset: int
    start: int
    stop: int
    inline: int
    crashes: int = 0
    beside: int = -1


class Turn(Enum):
    """When an expansion runs beside the items that were submitted before it."""

    BEHIND = "behind"  # all items
    AMONG = "among"  # them, in the order in which they were submitted
    BEFORE = "before"  # those that are queued


class Process(NamedTuple):
    """Run the last stage on the items `start` to `stop` of list `offset` of unit `parent`.

    Workers have died with them `crashes` times. Where `beside` is not -1 they go together with that
    unit, and take no place of their own.
    """

    unit: int
    stage: int
    source: int
    parent: int
    offset: int
    start: int
    stop: int
    crashes: int = 0
    beside: int = -1


class Extra(NamedTuple):
    """Do piece `number` of what was asked for beside the stages.

    Workers have died with it `crashes` times.
    """

    unit: int
    number: int
    crashes: int = 0


class Follow(NamedTuple):
    """Take apart what list `place` of unit `found_by` stands for: its level begins.

    The lists that come of it are those of unit `unit`.
    """

    unit: int
    found_by: int
    place: int


class Forget(NamedTuple):
    """List `place` of unit `unit`, which is still in flight, has ended: it can be forgotten."""

    unit: int
    place: int


class Release(NamedTuple):
    """All lists that unit `unit` gave have ended: they can be forgotten."""

    unit: int


class ItemDone(NamedTuple):
    """Everything that came from item `position` of list `offset` of unit `parent` has ended."""

    parent: int
    offset: int
    position: int


class SourceDone(NamedTuple):
    """Everything that came from source `source` has ended."""

    source: int


Action = Pull | Expand | Process | Extra | Follow | Forget | Release | ItemDone | SourceDone


class Found(NamedTuple):
    """How the expansion of one item ended, part of the answer to an `Expand`.

    Args:
        size: how many items it gave.
        ended: how many of them, from the first on, were worked on where they were found.
        failed: how many of those failed.
        not_run: how many of those were not begun, because the run had been stopped.
        lost: the expansion itself failed; it may have given items before.
        skipped: the expansion was not begun, because the run had been stopped.
        resumed: how many of those that ended come from a journal, and did not run now.
        left: those that have not ended, as ranges in order, where they are not simply the last.
        orphaned: what is left was lost with the worker that it ran on.
        known: the journal had all of it, and the expansion did not run.
        repeated: how many of those that ended were seen before in this run; nothing is done
            with them, and they do not count as discovered.
        start: position of the first; those before were told of by `gave`.
    """

    size: int = 0
    ended: int = 0
    failed: int = 0
    not_run: int = 0
    lost: bool = False
    skipped: bool = False
    resumed: int = 0
    left: tuple[tuple[int, int], ...] | None = None
    orphaned: bool = False
    known: bool = False
    repeated: int = 0
    start: int = 0

    @property
    def stop(self) -> int:
        """Position after the last."""
        return self.start + self.size

    def ranges(self) -> list[tuple[int, int]]:
        """The items that have not ended."""
        if self.left is not None:
            return list(self.left)
        return [(self.start + self.ended, self.stop)] if self.ended < self.size else []

    def adds_up(self) -> bool:
        """Whether all of it can be true at once."""
        if self.left is None and not any(self[2:]):  # as most have it
            return 0 <= self.ended <= self.size
        ends = [place for one in self.ranges() for place in one]
        return (
            min(self.failed, self.not_run, self.resumed, self.repeated) >= 0
            and self.failed + self.not_run + self.resumed + self.repeated <= self.ended
            and self.ended + sum(stop - start for start, stop in self.ranges()) == self.size
            and [self.start, *ends, self.stop] == sorted([self.start, *ends, self.stop])
            and self.start >= 0
            and not (self.size and self.skipped)
            and not (self.lost and self.known)
        )


HELD = -1


class Further(NamedTuple):
    """Items that the last stage found for itself or an earlier stage, part of any answer.

    Args:
        stage: the stage that is to work on them. `HELD`: it is held back what they are, until
            their level begins.
        found: how many they are, and what of them has ended already; one if it is held back.
        offset: which of the items of an `Expand` they came from.
        levels: how often the last stage has led there, from the items of the unit.
    """

    stage: int
    found: Found
    offset: int = 0
    levels: int = 1
