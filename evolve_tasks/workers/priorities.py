"""Dask priorities of the units of a run: what goes first, and whose turn it is among runs."""

from __future__ import annotations

from typing import Final

EXPAND: Final = 0  # sources that the core puts behind all items
PROCESS: Final = 10  # as in the example; so are expansions that take their turn among the items
SOON: Final = 12  # expansions that go before the items that are queued
NESTED: Final = 11  # a source that submits its items itself: a long parse must not be begun last
MEASURE: Final = 100  # takes microseconds, and a whole list waits for it

# Work of a run that a nested source goes before: some windows of a few threads.
OVERTAKEN_S: Final = 30.0

# Work of a run that goes before a source behind all items, though it is submitted later: some
# batches. Behind all items for good a source would starve where another run has items all night,
# and with it a run that has nothing but such sources in its window.
BEHIND_S: Final = 2.0

# The least that a unit counts: its way through Dask.
LEAST_S: Final = 0.001

# What items count of which nobody knows how long they take: a window of them is no large debt, nor
# does it go before all that others have queued.
UNKNOWN_S: Final = 0.1


class VirtualTime:
    """Seconds of work that a scheduler has given to each run that wanted any."""

    def __init__(self) -> None:
        self.now_s = 0.0


class Turns:
    """Whose turn it is: start-time fair queueing of the units of one run among others.

    Each run gets an equal share of what the threads do while it has something to do, however
    much others have queued: a unit is due when its run has had as much work as lies before it.
    Dask goes by the time of submission, and puts what a task submits before all that flows have
    submitted since: a nested run would leave the others nothing. (P. Goyal, H. Vin, H. Cheng:
    "Start-time fair queueing", SIGCOMM 1996.)

    Args:
        time: the virtual time that the runs of a scheduler share.
        importance: that of the run; the units of a run of a higher one go first.

    Example:
        >>> time = VirtualTime()
        >>> early, late = Turns(time), Turns(time)
        >>> [early.submitted(PROCESS, 1.0)[1] for _ in range(3)]
        [0.0, 1.0, 2.0]
        >>> late.submitted(PROCESS, 1.0)[1]
        0.0
    """

    def __init__(self, time: VirtualTime, importance: int = 0) -> None:
        self._time = time
        self._importance = importance
        self._had_s = 0.0
        self._queued_s = 0.0  # that part of it which is still to be done

    def submitted(self, level: int, expected_s: float) -> tuple[int, float]:
        """The first parts of a task's priority at the scheduler; the least goes first.

        Args:
            level: what its client asked for, one of the above.
            expected_s: seconds that it is expected to take; 0 if nobody knows, `took` mends it.
        """
        due_s = max(self._had_s, self._time.now_s)
        first = -(max(level, PROCESS) + self._importance)
        if level == NESTED:  # waits for its items most of the time; they are counted
            return -(PROCESS + self._importance), due_s - OVERTAKEN_S
        if level > SOON:
            return first, due_s
        done_s = self._had_s - self._queued_s
        self._had_s = due_s + max(expected_s, LEAST_S)
        self._queued_s += max(expected_s, LEAST_S)
        if level == SOON:  # before what its own run has queued, and not before the turn of others
            return -(PROCESS + self._importance), max(self._time.now_s, done_s)
        return first, due_s + (BEHIND_S if level < PROCESS else 0.0)

    def took(self, expected_s: float, took_s: float) -> None:
        """Count what a task took in place of what it was expected to take.

        Args:
            expected_s: what `submitted` was told.
            took_s: seconds that it took; what is submitted next is due by them.
        """
        self._had_s += max(took_s, LEAST_S) - max(expected_s, LEAST_S)
        self._queued_s -= max(expected_s, LEAST_S)

    def begun(self, due_s: float) -> None:
        """A task of a turn has begun, or ended: the time is not before it any more.

        Args:
            due_s: its turn, as `submitted` gave it for `PROCESS`.
        """
        self._time.now_s = max(self._time.now_s, due_s)
