"""A flow as people run it at night, for tests that kill things: it notes all that it does on disk.

    python -m tests.integration.night FOLDER SCHEDULER OPTIONS

FOLDER gets a file for each execution of an item, a line in `reported` for each item that is given
to the flow, and `results.json` at the end. With the option `links` items find each other, over
loops, and are not listed by their source.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from prefect import flow

from evolve_tasks import EvolveTaskRunner, More, evolve_iter

SOURCES = 12
ITEMS = 25

Item = tuple[str, int, int]


def parse(source: tuple[str, int]) -> list[Item]:
    """Give the items of a source."""
    folder, number = source
    return [(folder, number, position) for position in range(ITEMS)]


def work(item: Item) -> int:
    """Note that it runs, and where; take some time."""
    folder, source, position = item
    name = f"{source}.{position}.{time.time_ns()}.{os.getpid()}.{os.urandom(3).hex()}"
    Path(folder, "executions", name).touch()
    time.sleep(0.02)
    return result_of(source, position)


def parse_first(source: tuple[str, int]) -> list[Item]:
    """Give the first item of a source, from which all others are found."""
    return parse(source)[:1]


def work_on_links(item: Item) -> More:
    """Work on an item, and find others: a tree, and further links across and back."""
    folder, source, position = item
    below = [2 * position + 1, 2 * position + 2, 7 * position % ITEMS, position // 2]
    found = [(folder, source, other) for other in below if other < ITEMS]
    return More(work(item), found, stage=1)


def result_of(source: int, position: int) -> int:
    """What comes out of an item."""
    return source * 1_000 + position


@flow
def night(folder: str, options: dict[str, Any]) -> None:
    """Work on everything, and write down what comes."""
    results: dict[str, int] = {}
    sources = [(folder, number) for number in range(SOURCES)]
    stages: tuple[Any, Any] = (parse, work)
    if options.pop("links", False):
        stages = parse_first, work_on_links
        options["unique"] = True
    with Path(folder, "reported").open("a", buffering=1) as reported:
        for item in evolve_iter(sources, *stages, journal=folder, options=options):
            if not item.ok:
                raise RuntimeError(f"{item.index} failed: {item.failure}")
            name = ".".join(map(str, divmod(item.value, 1_000)))
            assert name not in results, f"{name} was given twice"
            results[name] = item.value
            reported.write(f"{name} {time.time_ns()}\n")
    Path(folder, "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    _, where, scheduler, given = sys.argv
    runner = EvolveTaskRunner(address=scheduler)
    night.with_options(task_runner=runner)(where, json.loads(given))
