"""Dask priorities of the units of a run: what goes first, and whose turn it is."""

from __future__ import annotations

from typing import Final

EXPAND: Final = 0  # sources that the core puts behind all items
PROCESS: Final = 10  # as in the example; so are expansions that take their turn among the items
NESTED: Final = 11  # a source that submits its items itself: a long parse must not be begun last
MEASURE: Final = 100  # takes microseconds, and a whole list waits for it

# How many later submissions go before a source that waits behind all items, and how many earlier
# ones a nested source goes before: a few windows of a few threads. Behind all items for good it
# would starve where another run has items all night.
OVERTAKEN: Final = 64


def in_turn(level: int, turn: int, importance: int) -> tuple[int, int]:
    """The first parts of a task's priority at the scheduler; the least goes first.

    First come, first served, also between runs. Dask does so by submissions a tenth of a second
    apart, but puts what a task submits before all that flows have submitted since: a nested run
    would leave the others nothing.

    Args:
        level: what its client asked for, one of the above.
        turn: counts the submissions at the scheduler.
        importance: that of the run; the units of a run of a higher one go first.

    Example:
        >>> in_turn(PROCESS, 5, 0) < in_turn(EXPAND, 5, 0) < in_turn(PROCESS, 70, 0)
        True
        >>> in_turn(EXPAND, 9, 1) < in_turn(PROCESS, 5, 0)
        True
    """
    if level < PROCESS:
        return -(PROCESS + importance), turn + OVERTAKEN
    if level == NESTED:
        return -(PROCESS + importance), turn - OVERTAKEN
    return -(level + importance), turn
