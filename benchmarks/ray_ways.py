"""Ray's ways of evolving work; runs alone, in an environment that has nothing but Ray.

Reads lines of JSON as `{"way": "nested", "sources": 100, "items": 50}`, runs each of them, and
answers with a line `{"seconds": 1.2}`, or `{"error": "..."}`. An empty input ends it. So whoever
asks can let other work run in turns with it, and Ray starts once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray  # type: ignore[import-not-found]

CPUS = 2
CHUNK = 1_000


def parse(size: int) -> list[int]:
    """As many items as the source says."""
    return list(range(size))


def parse_lazily(size: int) -> Iterator[int]:
    """The same, one at a time."""
    for x in range(size):  # noqa: UP028  (Ray sends into generators, which a range does not take)
        yield x


def process(x: int) -> int:
    """The least that an item can cost."""
    return x + 1


def process_many(items: list[int]) -> list[int]:
    """A chunk of items in one task."""
    return [process(x) for x in items]


def whole(size: int) -> list[int]:
    """A source that submits its items itself."""
    results: list[int] = ray.get([process_remote.remote(x) for x in parse(size)])
    return results


# Not as decorators, which would leave nothing of the types.
parse_remote, process_remote, process_many_remote, whole_remote = map(
    ray.remote, (parse, process, process_many, whole)
)
parse_lazily_remote = ray.remote(num_returns="streaming")(parse_lazily)


def by_wait(sizes: list[int]) -> list[int]:
    """What `ray.wait` says has ended decides what is submitted next."""
    lists = [parse_remote.remote(size) for size in sizes]
    found: dict[Any, list[Any]] = {}
    pending = list(lists)
    while pending:
        ended, pending = ray.wait(pending, num_returns=1)
        for items in ended:
            found[items] = [process_remote.remote(x) for x in ray.get(items)]
    results: list[int] = ray.get([item for items in lists for item in found[items]])
    return results


def by_nesting(sizes: list[int]) -> list[int]:
    """Tasks from tasks."""
    return [
        x for results in ray.get([whole_remote.remote(size) for size in sizes]) for x in results
    ]


def by_streaming(sizes: list[int]) -> list[int]:
    """Generators whose items are submitted while they still yield."""
    streams = [parse_lazily_remote.remote(size) for size in sizes]
    results: list[int] = ray.get([process_remote.remote(x) for stream in streams for x in stream])
    return results


def by_chunks(sizes: list[int]) -> list[int]:
    """Chunks of a size that somebody has chosen by hand."""
    lists = [parse_remote.remote(size) for size in sizes]
    found: dict[Any, list[Any]] = {}
    pending = list(lists)
    while pending:
        ended, pending = ray.wait(pending, num_returns=1)
        for place in ended:
            items = ray.get(place)
            found[place] = [
                process_many_remote.remote(items[start : start + CHUNK])
                for start in range(0, len(items), CHUNK)
            ]
    chunks = ray.get([chunk for place in lists for chunk in found[place]])
    return [x for chunk in chunks for x in chunk]


WAYS: dict[str, Callable[[list[int]], list[int]]] = {
    "wait": by_wait,
    "nested": by_nesting,
    "streaming": by_streaming,
    "chunks": by_chunks,
}


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Run what was asked for, and see that the results are right."""
    sizes = [int(question["items"])] * int(question["sources"])
    begun = time.perf_counter()
    results = WAYS[question["way"]](sizes)
    seconds = time.perf_counter() - begun
    if results != [x + 1 for size in sizes for x in range(size)]:
        return {"error": f"{question['way']} gave {len(results)} results that are not right"}
    return {"seconds": seconds}


def main() -> None:
    """Answer until there are no more questions."""
    # Ray and its workers write to standard output as well; the answers get one of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ray.init(
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=os.environ["RAY_HOME"],
    )
    try:
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
