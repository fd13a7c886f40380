"""Whether who drives a run is what holds it up: it has no time left, and threads have no work."""

from __future__ import annotations

from dataclasses import dataclass

# How long it is looked at for one judgement; two in a row are no accident.
WINDOW_S = 2.0
IN_A_ROW = 2

# From this share of the time on whoever is busy cannot keep up.
BUSY_SHARE = 0.8


@dataclass(slots=True)
class Bottleneck:
    """Time that was worked, and time that was waited.

    Args:
        window_s: how long is looked at for one judgement.

    Example:
        >>> bottleneck = Bottleneck()
        >>> [bottleneck.spent(busy_s=1.9, waited_s=0.1) for _ in range(3)]
        [None, 0.95, None]
    """

    window_s: float = WINDOW_S
    _busy_s: float = 0.0
    _all_s: float = 0.0
    _in_a_row: int = 0

    def spent(self, *, busy_s: float, waited_s: float, starving: bool = True) -> float | None:
        """Add time; say which share was worked when that is too much.

        Args:
            busy_s: seconds that were worked.
            waited_s: seconds in which nobody had anything to say.
            starving: fewer units are in flight than threads could work on.

        Returns:
            The share, once it has been too large for `IN_A_ROW` windows; else `None`.
        """
        self._busy_s += busy_s
        self._all_s += busy_s + waited_s
        if self._all_s < self.window_s:
            return None
        share = self._busy_s / self._all_s
        self._busy_s = self._all_s = 0.0
        self._in_a_row = self._in_a_row + 1 if share >= BUSY_SHARE and starving else 0
        if self._in_a_row < IN_A_ROW:
            return None
        self._in_a_row = 0
        return share
