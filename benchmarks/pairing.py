"""Both sides of a ratio in turns, so that a drift of the machine does not decide it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

from benchmarks.table import Spread


def in_turns(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run each way, then each of them again: A B A B A B.

    Args:
        ways: by name, what gives the seconds that it took.
        repeats: N >= 1 rounds.

    Returns:
        The N seconds of each way.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            gc.collect()  # nobody pays for the garbage of the way before
            seconds[name].append(way())
    return seconds


def over(upper: Sequence[float], lower: Sequence[float]) -> Spread:
    """Ratio of two that ran in turns: each round has its own, so that a drift cancels out."""
    return Spread.of([one / other for one, other in zip(upper, lower, strict=True)])


def rates(count: int, seconds: Sequence[float]) -> list[float]:
    """Items per second of each round."""
    return [count / one for one in seconds]
