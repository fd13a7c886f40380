"""Resident memory of processes while something runs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped]

EVERY_S = 0.1
MB = 1e6


@dataclass(slots=True)
class Growth:
    """By how much processes grew, in MB, in the order in which they were named."""

    mb: list[float] = field(default_factory=list)


@contextmanager
def growth(pids: Sequence[int]) -> Iterator[Growth]:
    """Look at processes while the block runs; afterwards the growth says by how much they grew."""
    processes = [psutil.Process(pid) for pid in pids]
    gc.collect()
    before = [process.memory_info().rss for process in processes]
    largest = list(before)
    over = threading.Event()

    def look() -> None:
        for place, process in enumerate(processes):
            largest[place] = max(largest[place], process.memory_info().rss)

    def watch() -> None:
        while not over.wait(EVERY_S):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    grown = Growth()
    try:
        yield grown
    finally:
        over.set()
        watcher.join()
        look()
        grown.mb = [(high - low) / MB for high, low in zip(largest, before, strict=True)]
