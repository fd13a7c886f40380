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
    "items a second over those of evolve (`as_completed`) with recorded tasks, in turns in the "
    "same run; more is better. Ray has 2 CPUs, evolve 2 worker processes of one thread. Ray "
    "records nothing, and is connected before the clock starts; evolve connects within it. Chunks "
    "by hand are what evolve makes by itself: a thousand items in one task, of which Ray knows "
    "nothing. What is between the two is what evolve does for each item beside calling the "
    "function: its own result, failure and position, in the order of the sources, and Prefect's "
    "record"
)
ITEM_BY_ITEM = {
    "wait": "ray.wait loop",
    "nested": "nested tasks",
    "streaming": "streaming generator",
}
CHUNKS = {"chunks": "chunks of 1,000, by hand"}
BASE = "evolve, as_completed, tasks, recorded"


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure evolve on its shapes, and Ray item by item on that of the recipes."""
    with (
        # A short path: Ray makes sockets in it, whose names may have a hundred characters.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as home,
        ray_process(Path(home)) as ray,
    ):
        for way in (*ITEM_BY_ITEM, *CHUNKS):  # the first tasks start worker processes
            ray.seconds(way, Shape(4, 4))
        for stages in (FUNCTIONS, TASKS):
            evolve_seconds(cluster, Shape(2, 2), stages, "as_completed")
        for shape in sizes.shapes:
            yield from _beside(cluster, sizes, ray, ITEM_BY_ITEM, shape, sizes.recipe)
        yield from _beside(cluster, sizes, ray, CHUNKS, sizes.shapes[0], sizes.shapes[0])


def _beside(
    cluster: Cluster, sizes: Sizes, ray: Ray, names: dict[str, str], shape: Shape, rays: Shape
) -> Iterator[Row]:
    """Rates of evolve on one shape, and of Ray on its own, in turns."""
    functions = "evolve, as_completed, functions"
    ways: dict[str, Callable[[], float]] = {
        BASE: partial(evolve_seconds, cluster, shape, TASKS, "as_completed"),
        functions: partial(evolve_seconds, cluster, shape, FUNCTIONS, "as_completed"),
    }
    shapes = {BASE: shape, functions: shape}
    for way, name in names.items():
        ways[f"Ray, {name}"] = partial(ray.seconds, way, rays)
        shapes[f"Ray, {name}"] = rays
    found = {
        name: [seconds / shapes[name].total for seconds in times]
        for name, times in in_turns(ways, sizes.repeats).items()
    }
    for name, each_s in found.items():
        rate = Spread.of(rates(1, each_s)).median
        stated = name.startswith("Ray") and names is ITEM_BY_ITEM
        target = targets.RAY_ITEMS if stated else None
        ratio = over(found[BASE], each_s)
        yield Row(name, str(shapes[name]), ratio, f"{short(rate)} items/s", rate, target)
