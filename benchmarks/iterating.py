"""One run of `evolve_iter` in a process of its own, told as JSON: started by `growth`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Self

from prefect import flow

from benchmarks.evolving import runner_on
from benchmarks.resident import growth
from benchmarks.work import WrongResults, parse_task, process_task
from evolve_tasks import evolve_iter

FAN_OUT = 100
WARM = 10  # sources, so that imports and connections are not taken for growth


@dataclass(frozen=True, slots=True)
class Iterated:
    """How it went.

    Args:
        items: how many there were.
        seconds: from the call to the end of the loop, by when the API knows all task runs.
        flow_mb: growth of this process.
        scheduler_mb: growth of the scheduler.
    """

    items: int
    seconds: float
    flow_mb: float
    scheduler_mb: float

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `main` wrote; other lines before it are ignored."""
        return cls(**json.loads(text.strip().splitlines()[-1]))


def main(address: str, scheduler_pid: int, items: int) -> Iterated:
    """Warm up, then iterate over `items` items, 100 in each source."""
    sources = items // FAN_OUT

    def consume(sizes: Iterable[int]) -> int:
        total = 0
        for item in evolve_iter(
            sizes, parse_task, process_task, strategy="as_completed", progress=False
        ):
            total += item.value
        return total

    @flow(name="benchmark-iterate", task_runner=runner_on(address))
    def iterating() -> Iterated:
        consume(repeat(WARM, WARM))
        with growth([os.getpid(), scheduler_pid]) as grown:
            begun = time.perf_counter()
            total = consume(repeat(FAN_OUT, sources))
            seconds = time.perf_counter() - begun
        if total != sources * sum(range(1, FAN_OUT + 1)):
            raise WrongResults(f"evolve_iter gave items whose sum is {total}")
        return Iterated(sources * FAN_OUT, seconds, *grown.mb)

    return iterating()


if __name__ == "__main__":
    print(json.dumps(asdict(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
