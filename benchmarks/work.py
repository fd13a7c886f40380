"""What the benchmarks work on: trivial items, and items that sleep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from prefect import task

from benchmarks.sizes import Shape


class WrongResults(Exception):
    """What was measured gave wrong results, so its speed means nothing."""


class Timed(NamedTuple):
    """A source that sleeps, and how long each of its items does."""

    parse_s: float
    items_s: tuple[float, ...]


def parse(size: int) -> list[int]:
    """As many items as the source says."""
    return list(range(size))


def process(x: int) -> int:
    """The least that an item can cost."""
    return x + 1


def read(source: Timed) -> list[tuple[int, float]]:
    """Sleep as a parse, and give the items with their positions."""
    _sleep(source.parse_s)
    return list(enumerate(source.items_s))


def wait(item: tuple[int, float]) -> int:
    """Sleep as an item, and give its position."""
    position, seconds = item
    _sleep(seconds)
    return position


def _sleep(seconds: float) -> None:
    if seconds:  # no time at all is not even a system call
        time.sleep(seconds)


parse_task, process_task = task(parse), task(process)
read_task, wait_task = task(read), task(wait)


def trivial_results(shape: Shape) -> list[int]:
    """What `process` makes of all items of a shape."""
    return [x + 1 for _ in range(shape.sources) for x in range(shape.items)]


def timed_results(sources: Sequence[Timed]) -> list[int]:
    """What `wait` makes of all items."""
    return [position for source in sources for position in range(len(source.items_s))]


def check(results: Sequence[int], expected: Sequence[int], what: str) -> None:
    """See that results are right and in order.

    Raises:
        WrongResults: they are not.
    """
    if list(results) != list(expected):
        raise WrongResults(
            f"{what} gave {len(results)} results, expected were {len(expected)}, in order: "
            "their speed means nothing"
        )
