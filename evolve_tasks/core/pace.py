"""A pace that is kept: so much a minute, with a minute's worth to begin with."""

from __future__ import annotations

MINUTE_S = 60.0


class Pace:
    """Lets through so much a minute; what was not used for a minute is lost.

    Args:
        per_minute: how much, N >= 1.
        now: the time, in seconds.

    Example:
        >>> pace = Pace(per_minute=60, now=0.0)
        >>> pace.take(60, now=0.0), pace.take(1, now=0.0), pace.take(1, now=1.0)
        (True, False, True)
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._per_minute = per_minute
        self._left = per_minute
        self._then = now

    def left(self, now: float) -> float:
        """How much may be taken now; below 0 if more was taken than was left."""
        gained = max(0.0, now - self._then) * self._per_minute / MINUTE_S
        self._left = min(self._per_minute, self._left + gained)
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
