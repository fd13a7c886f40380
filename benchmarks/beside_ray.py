"""Ray's four ways beside evolve, on the same trivial items."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import targets
from benchmarks.cluster import Cluster
from benchmarks.pairing import in_turns, over, rates
from benchmarks.ray_process import Ray, ray_process, ray_version
from benchmarks.sizes import Shape, Sizes
from benchmarks.table import Row, Spread, short
from benchmarks.throughput import FUNCTIONS, TASKS, evolve_seconds

TITLE = f"Ray {ray_version()} beside evolve"
READING = (
    "items a second over those of evolve (`as_completed`) with functions, in turns in the same "
    "run; more is better. Ray has 2 CPUs, evolve 2 worker processes of one thread. Ray records "
    "nothing, and is connected before the clock starts; evolve connects within it"
)
ITEM_BY_ITEM = {
    "wait": "ray.wait loop",
    "nested": "nested tasks",
    "streaming": "streaming generator",
}
CHUNKS = {"chunks": "chunks of 1,000, by hand"}
BASE = "evolve, as_completed, functions"


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure item by item on the shape of the recipes, and chunks on the first of evolve's."""
    with (
        # A short path: Ray makes sockets in it, whose names may have a hundred characters.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as home,
        ray_process(Path(home)) as ray,
    ):
        for way in (*ITEM_BY_ITEM, *CHUNKS):  # the first tasks start worker processes
            ray.seconds(way, Shape(4, 4))
        for stages in (FUNCTIONS, TASKS):
            evolve_seconds(cluster, Shape(2, 2), stages, "as_completed")
        yield from _beside(cluster, sizes, ray, ITEM_BY_ITEM, sizes.recipe)
        yield from _beside(cluster, sizes, ray, CHUNKS, sizes.shapes[0])


def _beside(
    cluster: Cluster, sizes: Sizes, ray: Ray, names: dict[str, str], shape: Shape
) -> Iterator[Row]:
    ways: dict[str, Callable[[], float]] = {
        BASE: partial(evolve_seconds, cluster, shape, FUNCTIONS, "as_completed"),
        "evolve, as_completed, tasks, recorded": partial(
            evolve_seconds, cluster, shape, TASKS, "as_completed"
        ),
    }
    for way, name in names.items():
        ways[f"Ray, {name}"] = partial(ray.seconds, way, shape)
    found = in_turns(ways, sizes.repeats)
    for name, seconds in found.items():
        rate = Spread.of(rates(shape.total, seconds)).median
        stated = name.startswith("Ray") and names is ITEM_BY_ITEM
        target = targets.RAY_ITEMS if stated else None
        ratio = over(found[BASE], seconds)
        yield Row(name, str(shape), ratio, f"{short(rate)} items/s", rate, target)
