"""Take sources from whatever gives them, without making anybody wait for the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any

# How long sources are gathered for one unit. A source that is there is not kept waiting longer
# for its fellows than a person notices.
PATIENCE_S = 0.05


@dataclass(frozen=True, slots=True)
class Arrival:
    """Sources that were taken.

    Args:
        sources: N >= 0 sources, in order.
        ended: there are no more.
        error: what the iterable raised; then it has ended, too.
    """

    sources: list[Any]
    ended: bool
    error: BaseException | None = None


def take(sources: Iterator[Any], most: int) -> Arrival:
    """Take up to `most` sources, and not wait long for more once there is one."""
    taken: list[Any] = []
    begun = time.monotonic()
    try:
        for source in islice(sources, most):
            taken.append(source)
            if time.monotonic() - begun > PATIENCE_S:
                return Arrival(taken, ended=False)
    except BaseException as error:
        return Arrival(taken, ended=True, error=error)
    return Arrival(taken, ended=len(taken) < most)


class SourceFeed:
    """Takes sources in a thread of its own: a slow one holds up nothing but itself.

    Args:
        sources: the sources.
        deliver: called in that thread with what was taken.
    """

    def __init__(self, sources: Iterator[Any], deliver: Callable[[Arrival], None]) -> None:
        self._sources = sources
        self._deliver = deliver
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        # A daemon: nobody can end a thread that waits for a source which never comes.
        context = copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="evolve-sources", daemon=True
        )
        self._thread.start()

    def request(self, most: int) -> None:
        """Ask for up to `most` sources."""
        self._wanted.put(most)

    def close(self) -> None:
        """Take no more; a generator is closed as soon as it lets go."""
        self._wanted.put(None)

    def _run(self) -> None:
        while (most := self._wanted.get()) is not None:
            self._deliver(take(self._sources, most))
        close = getattr(self._sources, "close", None)
        if callable(close):
            close()
