"""What expansions are expected to give, and to leave waiting."""

from __future__ import annotations

from dataclasses import dataclass

from evolve_tasks.core.batching import MEMORY

# Before the first expansion has ended nobody knows a fan-out. 100 lets a hundred parses begin
# at once under the default bound of 10,000, and one at a time where the bound is below 200.
UNKNOWN_FAN_OUT = 100


@dataclass(slots=True)
class FanOuts:
    """What expansions gave so far.

    Example:
        >>> fan_outs = FanOuts()
        >>> fan_outs.expected == UNKNOWN_FAN_OUT
        True
        >>> fan_outs.add(3)
        >>> fan_outs.add(4)
        >>> fan_outs.expected
        4
    """

    known: int = 0
    total: int = 0
    _left_by: float = 0.0
    _left: float = 0.0

    def add(self, size: int) -> None:
        """Take in what an expansion gave."""
        self.known += 1
        self.total += size

    def add_left(self, items: int) -> None:
        """Take in what was left waiting of a list that was to be worked on where it was found."""
        fading = MEMORY / (MEMORY + 1) if self._left_by > MEMORY else 1.0
        self._left_by = self._left_by * fading + 1
        self._left = self._left * fading + items

    @property
    def expected(self) -> int:
        """Items that an expansion is expected to give, N >= 1."""
        if not self.known:
            return UNKNOWN_FAN_OUT
        return max(1, -(-self.total // self.known))

    @property
    def expected_left(self) -> int:
        """Items that it leaves waiting if it works on them itself, N >= 0; before any did, all."""
        return int(-(-self._left // self._left_by)) if self._left_by else self.expected
