"""How much work goes into one unit: as much as makes its overhead small, and no more.

It must never cost parallelism. A unit costs a few milliseconds on its way through Dask, and
tens where Prefect records it. Half a second of work makes that small, and is short enough to be
waited for at the end of a run.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a unit aims at. joblib's batches aim at 0.2 to 2 s for the same reason.
TARGET_S = 0.5

# Items that take no longer come in large numbers, and what each unit costs adds up where Prefect
# records it: twice as much of them goes into one.
BRIEF_S = 0.01

# Below this a unit is mostly overhead: batches do not shrink further, however little is left.
SMALLEST_S = 0.05

# A list that takes no longer than this is worked on where it was found. Until it is done nobody
# else sees it, so this is what it may cost in parallelism.
INLINE_S = 0.1

# Weight that the past keeps with each new measurement of equal weight: items of one run are
# alike, yet a run over sorted sources drifts.
MEMORY = 64.0


@dataclass(slots=True)
class Durations:
    """Mean duration of the items of a stage, the recent ones first.

    Example:
        >>> durations = Durations()
        >>> durations.mean_s is None
        True
        >>> durations.add(count=10, seconds=2.0)
        >>> durations.mean_s
        0.2
    """

    mean_s: float | None = None  # seconds of an item; `None` before the first was measured
    _seconds: float = 0.0
    _count: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        """Take in what `count` items took together; no time at all is no measurement."""
        if count <= 0 or seconds <= 0:  # as when a worker died with them
            return
        fading = MEMORY / (MEMORY + count) if self._count > MEMORY else 1.0
        self._seconds = self._seconds * fading + seconds
        self._count = self._count * fading + count
        self.mean_s = self._seconds / self._count


def unit_size(mean_s: float | None, left: int | None, threads: int, ceiling: int) -> int:
    """Decide how many items go into the next unit.

    Args:
        mean_s: seconds that an item takes; `None` before any has been measured.
        left: items that are left to be submitted; `None` if nobody knows.
        threads: worker threads that want work.
        ceiling: the most that limits allow.

    Returns:
        1 <= N <= `ceiling` items: `TARGET_S` worth of work (twice as much of brief items), but so
        little that what is left makes two units for each thread; a thread that ends early then
        finds another one.

    Example:
        >>> unit_size(mean_s=0.001, left=10_000, threads=2, ceiling=10_000)
        1000
        >>> unit_size(mean_s=0.001, left=400, threads=2, ceiling=10_000)
        100
        >>> unit_size(mean_s=3.0, left=400, threads=2, ceiling=10_000)
        1
    """
    if mean_s is None or mean_s > TARGET_S / 2:
        return 1
    if mean_s < 1e-7:  # a clock that does not move makes no endless unit
        mean_s = 1e-7
    size = (TARGET_S if mean_s > BRIEF_S else 2 * TARGET_S) / mean_s
    if left is not None:
        fair = -(-left // (2 * max(1, threads)))
        if fair < size:
            size = max(fair, min(size, SMALLEST_S / mean_s))
    return 1 if size < 2 else min(int(size), ceiling)


def inline_items(mean_s: float | None) -> int:
    """Longest list that is worked on where it was found.

    Args:
        mean_s: seconds that an item takes; `None` before any has been measured.

    Returns:
        N >= 0 items; 0 where one item alone takes too long, or nothing is known.

    Example:
        >>> inline_items(0.001), inline_items(1.0), inline_items(None)
        (100, 0, 0)
    """
    return 0 if mean_s is None else int(INLINE_S / max(mean_s, 1e-7))
