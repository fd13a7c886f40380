"""Sources that come asynchronously, as from a queue or a watch in an async flow."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

_OVER = object()


class FromLoop:
    """Gives in other threads what an async iterable gives in an event loop.

    Args:
        sources: the iterable.
        loop: the loop in which it lives.
    """

    def __init__(self, sources: AsyncIterable[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._sources: AsyncIterator[Any] = aiter(sources)
        self._loop = loop
        self._step: concurrent.futures.Future[Any] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            if self._closed:
                raise StopIteration
            step = asyncio.run_coroutine_threadsafe(self._following(), self._loop)
            self._step = step
        try:
            found = step.result()
        except concurrent.futures.CancelledError:  # nobody wants more
            raise StopIteration from None
        if found is _OVER:
            raise StopIteration
        return found

    async def _following(self) -> Any:
        return await anext(self._sources, _OVER)

    def leave(self) -> None:
        """Give no more, also to who waits for the next one; called in any thread."""
        with self._lock:
            self._closed = True
            step = self._step
        if step is not None:
            step.cancel()

    async def aclose(self) -> None:
        """Leave, and let the iterable clear up."""
        self.leave()
        await asyncio.sleep(0)  # what is cancelled ends in this loop
        closing = getattr(self._sources, "aclose", None)
        if closing is not None:
            with suppress(RuntimeError):  # it is still being cancelled
                await closing()


@asynccontextmanager
async def drawn(
    sources: Iterable[Any] | AsyncIterable[Any],
) -> AsyncGenerator[Iterable[Any], None]:
    """Let other threads take sources that are given asynchronously; others stay as they are.

    Args:
        sources: N >= 0 sources.

    Yields:
        The sources, to be taken in threads other than the one of the running loop.
    """
    if not isinstance(sources, AsyncIterable) or isinstance(sources, Iterable):
        yield sources  # it is refused later if it is neither
        return
    from_loop = FromLoop(sources, asyncio.get_running_loop())
    try:
        yield from_loop
    finally:
        await from_loop.aclose()
