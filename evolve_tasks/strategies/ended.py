"""What has ended, in the order in which it did, and what was lost since and is made again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from distributed import Future

from evolve_tasks.answers import PULLED, Answer
from evolve_tasks.feeding import Arrival
from evolve_tasks.workers.streaming import Chunk

# How often it is looked whether a result that was lost with its worker has been made again: Dask
# calls back when a future has ended, but at once where its result is lost.
LOST_S = 0.2

# A future's status when there will be no result, and when there is nothing to wait for.
FAILED: Final = ("error", "cancelled")
OVER: Final = ("finished", *FAILED)


class Ended:
    """Futures under way, and those of them that have ended, in the order in which they did."""

    def __init__(self) -> None:
        self._news: SimpleQueue[tuple[int, Future[Any] | Arrival | Chunk | None]] = SimpleQueue()
        self._under_way: dict[int, Future[Any]] = {}
        self._lost: dict[int, Future[Any]] = {}  # of those, what has ended and is to be made again

    def add(self, unit: int, future: Future[Any]) -> None:
        """Watch a future; the set may grow at any time."""
        self._under_way[unit] = future
        future.add_done_callback(lambda ended: self._news.put((unit, ended)))

    def watch(self, unit: int, future: Future[Any]) -> None:
        """Know of a future that somebody else waits for."""
        self._under_way[unit] = future

    def tell(self, arrival: Arrival | None) -> None:
        """Wake who waits, with sources that have come or with nothing."""
        self._news.put((PULLED, arrival))

    def tell_chunk(self, chunk: Chunk) -> None:
        """Wake who waits, with items that have come on the way."""
        self._news.put((chunk.unit, chunk))

    def again(self, unit: int, future: Future[Any]) -> None:
        """What `wait` gave was not there: give it again when it has been made again."""
        self._under_way[unit] = self._lost[unit] = future

    def wait(
        self, timeout_s: float
    ) -> tuple[list[tuple[int, Future[Any]]], list[tuple[int, Answer]]]:
        """Wait for news and give all there are: futures that have ended, and what else came.

        Both are empty when time is over, or when somebody was to be woken.
        """
        futures: list[tuple[int, Future[Any]]] = []
        arrivals: list[tuple[int, Answer]] = []
        over, left, woken = time.monotonic() + timeout_s, timeout_s, False
        while left > 0 and not (futures or arrivals or woken):
            for unit, what in self._news_within(min(left, LOST_S) if self._lost else left):
                if isinstance(what, Arrival | Chunk):
                    arrivals.append((unit, what))
                elif what is None:
                    woken = True
                elif what.status in OVER:
                    futures.append((unit, what))
                else:
                    self._lost[unit] = what
            if self._lost:
                futures += [one for one in self._lost.items() if one[1].status in OVER]
            left = over - time.monotonic()
        for unit, _ in futures:
            self._lost.pop(unit, None)
            self._under_way.pop(unit, None)
        return futures, arrivals

    def _news_within(
        self, timeout_s: float
    ) -> Iterator[tuple[int, Future[Any] | Arrival | Chunk | None]]:
        with suppress(Empty):
            yield self._news.get(timeout=timeout_s)
            while True:
                yield self._news.get_nowait()

    def forget(self, unit: int) -> None:
        """Somebody else has taken it."""
        self._under_way.pop(unit, None)

    def under_way(self) -> list[Future[Any]]:
        """Those that have not been given by `wait`."""
        return list(self._under_way.values())
