"""Trivial items: what a way costs when the work itself costs nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from distributed import Client

from benchmarks import targets
from benchmarks.cluster import Cluster, settle
from benchmarks.evolving import STRATEGIES, Strategy, empty_flow, evolved
from benchmarks.pairing import in_turns, over, rates
from benchmarks.recipes import RECIPES, Recipe
from benchmarks.sizes import Shape, Sizes
from benchmarks.table import Row, Spread, short
from benchmarks.work import check, parse, parse_task, process, process_task, trivial_results

TITLE = "Trivial items beside plain Dask"
READING = (
    "items a second over those of Dask's `as_completed` recipe, which runs in turns with each of "
    "the others; more is better. Clocks run around `evolve`, which returns when the API knows all "
    "task runs. The flow run around it, and what evolve takes for no work at all, have rows of "
    "their own. Plain Dask records nothing"
)
BASE = "as_completed"
FUNCTIONS, TASKS = (parse, process), (parse_task, process_task)


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure the recipes, then evolve in each strategy on each shape."""
    with Client(cluster.address, set_as_default=False) as client:
        for recipe in RECIPES.values():  # the first tasks of a cluster pay for imports
            recipe_seconds(client, recipe, Shape(2, 2))
        for strategy in STRATEGIES:
            evolve_seconds(cluster, Shape(2, 2), TASKS, strategy)
        yield from _nothing(cluster, sizes)
        yield from _recipes(client, sizes)
        for shape in sizes.shapes:
            for strategy in STRATEGIES:
                yield _evolve(client, cluster, sizes, shape, strategy, recorded=True)
            yield _evolve(client, cluster, sizes, shape, "as_completed", recorded=False)


def recipe_seconds(client: Client, recipe: Recipe, shape: Shape) -> float:
    """Seconds that a recipe takes; its results are checked."""
    begun = time.perf_counter()
    results = recipe(client, shape.sizes, parse, process)
    seconds = time.perf_counter() - begun
    check(results, trivial_results(shape), recipe.__name__)
    del results
    settle(client)
    return seconds


def evolve_seconds(
    cluster: Cluster, shape: Shape, stages: Sequence[Any], strategy: Strategy
) -> float:
    """Seconds that evolve takes; its results are checked."""
    seconds, results = evolved(cluster.address, shape.sizes, stages, strategy)
    check(results, trivial_results(shape), f"evolve, {strategy}")
    return seconds


def _nothing(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """What is paid once, however much work there is."""
    ways = {
        "a flow run in which nothing is done": partial(empty_flow, cluster.address),
        "evolve in it, functions": partial(
            evolve_seconds, cluster, Shape(0, 0), FUNCTIONS, "as_completed"
        ),
    }
    for name, seconds in in_turns(ways, sizes.repeats).items():
        work = "" if name.startswith("a flow") else "no sources"
        yield Row(name, work, figure=f"{short(Spread.of(seconds).median)} s")


def _recipes(client: Client, sizes: Sizes) -> Iterator[Row]:
    ways = {
        name: partial(recipe_seconds, client, recipe, sizes.recipe)
        for name, recipe in RECIPES.items()
    }
    found = in_turns(ways, sizes.repeats)
    for name, seconds in found.items():
        rate = Spread.of(rates(sizes.recipe.total, seconds))
        yield Row(
            f"plain Dask, {name}",
            str(sizes.recipe),
            over(found[BASE], seconds),
            f"{short(rate.median)} items/s",
            rate.median,
        )


def _evolve(
    client: Client,
    cluster: Cluster,
    sizes: Sizes,
    shape: Shape,
    strategy: Strategy,
    *,
    recorded: bool,
) -> Row:
    stages = TASKS if recorded else FUNCTIONS
    found = in_turns(
        {
            "base": partial(recipe_seconds, client, RECIPES[BASE], sizes.recipe),
            "evolve": partial(evolve_seconds, cluster, shape, stages, strategy),
        },
        sizes.repeats,
    )
    base, ours = rates(sizes.recipe.total, found["base"]), rates(shape.total, found["evolve"])
    rate = Spread.of(ours)
    return Row(
        f"evolve, {strategy}, {'tasks, recorded' if recorded else 'functions'}",
        str(shape),
        over(ours, base),
        f"{short(rate.median)} items/s",
        rate.median,
        targets.MANY_ITEMS if shape.items > shape.sources else targets.FEW_ITEMS,
    )
