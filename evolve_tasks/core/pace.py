"""A pace that is kept: never more than so much in any minute."""

from __future__ import annotations

MINUTE_S = 60.0

# What was not used gathers up to half of a minute's worth, and as much comes in a minute: a full
# store and all that comes are together what a minute may see.
STORED = 0.5


class Pace:
    """Lets through so much in any minute, half of it at once.

    Args:
        per_minute: how much.
        now: the time, in seconds.

    Example:
        >>> pace = Pace(per_minute=120, now=0.0)
        >>> pace.take(60, now=0.0), pace.take(1, now=0.0), pace.take(1, now=1.0)
        (True, False, True)
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self._most = per_minute * STORED
        self._left = self._most
        self._then = now

    def left(self, now: float) -> float:
        """How much may be taken now; below 0 if more was taken than was left."""
        gained = max(0.0, now - self._then) * (self.per_minute - self._most) / MINUTE_S
        self._left = min(self._most, self._left + gained)
        self._then = max(self._then, now)
        return self._left

    def take(self, count: float, now: float) -> bool:
        """Take so much if it is left."""
        if self.left(now) < count:
            return False
        self._left -= count
        return True

    def spend(self, count: float) -> None:
        """Take so much, whether it is left or not; below 0 gives it back."""
        self._left -= count
