"""How much is measured: all of it, a quicker part, or so little that it only shows that it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Shape(NamedTuple):
    """Sources, and items in each of them."""

    sources: int
    items: int

    @property
    def total(self) -> int:
        """Items in all of them."""
        return self.sources * self.items

    @property
    def sizes(self) -> list[int]:
        """The sources of trivial work: each says how many items it has."""
        return [self.items] * self.sources

    def __str__(self) -> str:
        """Sources x items."""
        return f"{self.sources:,} x {self.items:,}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Args:
        repeats: times that both sides of a ratio run, in turns.
        recipe: what plain Dask's recipes work on.
        shapes: what evolve works on.
        stock_items: trivial items for the stock runner, which takes a tenth of a second each.
        runner_items: trivial items for `EvolveTaskRunner`.
        work_s: seconds of work in a cell of the item durations.
        most_items: items in such a cell at the most.
        recorded_durations: whether those cells are measured with tasks, too.
        seeds: works in the skewed section.
        skewed_sources: sources of each of them.
        skewed_beside: whether plain Dask and tasks run the skewed work, too.
        counts: items that go through `evolve_iter`.
        decisions: items in the simulation of the core.
        journaled: what is worked on with a journal and without.
    """

    repeats: int
    recipe: Shape
    shapes: tuple[Shape, ...]
    stock_items: int
    runner_items: int
    work_s: float
    most_items: int
    recorded_durations: bool
    seeds: int
    skewed_sources: int
    skewed_beside: bool
    counts: tuple[int, ...]
    decisions: int
    journaled: Shape


FULL = Sizes(
    repeats=3,
    recipe=Shape(100, 50),
    shapes=(Shape(100, 1_000), Shape(10_000, 5)),
    stock_items=60,
    runner_items=300,
    work_s=15.0,
    most_items=5_000,
    recorded_durations=True,
    seeds=10,
    skewed_sources=24,
    skewed_beside=True,
    counts=(1_000, 10_000, 100_000, 1_000_000),
    decisions=10_000_000,
    journaled=Shape(100, 1_000),
)

QUICK = Sizes(
    repeats=1,
    recipe=Shape(100, 20),
    shapes=(Shape(100, 1_000), Shape(2_000, 5)),
    stock_items=30,
    runner_items=300,
    work_s=6.0,
    most_items=1_000,
    recorded_durations=False,
    seeds=3,
    skewed_sources=24,
    skewed_beside=False,
    counts=(1_000, 10_000, 100_000),
    decisions=1_000_000,
    journaled=Shape(20, 500),
)

SMOKE = Sizes(
    repeats=1,
    recipe=Shape(5, 4),
    shapes=(Shape(5, 20), Shape(20, 2)),
    stock_items=4,
    runner_items=8,
    work_s=0.5,
    most_items=20,
    recorded_durations=True,
    seeds=1,
    skewed_sources=4,
    skewed_beside=True,
    counts=(100, 1_000),
    decisions=20_000,
    journaled=Shape(2, 5),
)
