"""The books of a run: lists that are open, and what became of the items of each stage."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

ListId = tuple[int, int]  # the unit that gave it, and its place among that unit's lists


@dataclass(slots=True)
class OpenList:
    """The items that one expansion gave."""

    stage: int  # the stage that works on them
    source: int
    parent: ListId | None
    size: int
    todo: deque[tuple[int, int]]  # ranges of items that were not submitted
    open: int  # items that have not ended, with all that came from them
    crashes: int = 0  # a worker died where these items may have been at work already
    depth: int = 0  # how often the last stage has led here
    place: int = 0  # position of the item that gave it, in the parent

    @property
    def waiting(self) -> int:
        """Items that were not submitted."""
        return sum(stop - start for start, stop in self.todo)

    def take(self, most: int) -> tuple[int, int]:
        """Submit the next consecutive items, up to `most` of them."""
        start, end = self.todo.popleft()
        stop = min(end, start + most)
        if stop < end:
            self.todo.appendleft((stop, end))
        return start, stop


@dataclass(slots=True)
class StageTally:
    """What became of the items of one stage, while it runs."""

    discovered: int = 0
    done: int = 0
    failed: int = 0
    resumed: int = 0
    not_run: int = 0

    @property
    def ended(self) -> int:
        """How many of them have ended, in whatever way."""
        return self.done + self.failed + self.resumed + self.not_run
