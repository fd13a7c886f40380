"""Take sources from whatever gives them, without making anybody wait for the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
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
        awaited: one more is being awaited, and will come without being asked for again.
    """

    sources: list[Any]
    ended: bool
    error: BaseException | None = None
    awaited: bool = False


def take_one(sources: Iterator[Any], signals: tuple[type[BaseException], ...] = ()) -> Arrival:
    """Take the next source, however long it takes; signals of the process are let through."""
    try:
        return Arrival([next(sources)], ended=False)
    except StopIteration:
        return Arrival([], ended=True)
    except signals:
        raise
    except BaseException as error:
        return Arrival([], ended=True, error=error)


class SourceFeed:
    """Takes sources in a thread of its own: a slow one holds up nothing but itself.

    Args:
        sources: the sources.
        deliver: called with what was taken, in that thread or in a timer's.
    """

    def __init__(self, sources: Iterator[Any], deliver: Callable[[Arrival], None]) -> None:
        self._sources = sources
        self._deliver = deliver
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._taken: list[Any] = []
        self._overdue = False
        self._lock = threading.Lock()
        # A daemon: nobody can end a thread that waits for a source which never comes.
        context = copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="evolve-sources", daemon=True
        )
        self._thread.start()

    def request(self, most: int) -> None:
        """Ask for up to `most` sources; one that is awaited already is not asked for."""
        self._wanted.put(most)

    def close(self) -> None:
        """Take no more; a generator is closed as soon as it lets go."""
        self._wanted.put(None)

    def _run(self) -> None:
        while (most := self._wanted.get()) is not None:
            self._gather(most)
        close = getattr(self._sources, "close", None)
        if callable(close):
            close()

    def _gather(self, most: int) -> None:
        # Those that have come are handed over when the next one keeps them waiting.
        self._overdue = False
        patience = threading.Timer(PATIENCE_S, self._hand_over)
        patience.daemon = True
        if most > 1:
            patience.start()
        for left in reversed(range(most)):
            one = take_one(self._sources)
            with self._lock:
                self._taken += one.sources
                if one.ended or self._overdue or not left:
                    patience.cancel()
                    taken, self._taken = self._taken, []
                    self._deliver(Arrival(taken, one.ended, one.error))
                    return

    def _hand_over(self) -> None:
        with self._lock:
            self._overdue = True
            if self._taken:
                taken, self._taken = self._taken, []
                self._deliver(Arrival(taken, ended=False, awaited=True))
