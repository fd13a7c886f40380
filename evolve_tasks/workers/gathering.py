"""Gather what an expanding stage yields: up to a limit, and what came before an error is kept."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any

from evolve_tasks.workers.streaming import Stream


@dataclass(slots=True)
class Kept:
    """Keeps what is gathered in its block; the last attempt's, if there are several.

    Args:
        items: what was gathered.
        cut: there was more to give than was wanted.

    Example:
        >>> def breaks():
        ...     yield 1
        ...     raise OSError("broken")
        >>> with Kept() as here:
        ...     try:
        ...         gather(breaks(), None)
        ...     except OSError:
        ...         print(here.items)
        [1]
    """

    items: list[Any] = field(default_factory=list)
    cut: bool = False
    _token: Token[Kept | None] | None = None

    # Not a generator: it surrounds every item, and items may take a few microseconds.
    def __enter__(self) -> Kept:
        self._token = _kept.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._token is not None, "it was entered"
        _kept.reset(self._token)


_stream: ContextVar[Stream | None] = ContextVar("evolve_stream", default=None)
_kept: ContextVar[Kept | None] = ContextVar("evolve_kept", default=None)


def was_cut() -> bool:
    """Whether what was gathered last had more to give than was wanted."""
    here = _kept.get()
    return here is not None and here.cut


def gather(source: Iterable[Any], most: int | None) -> list[Any]:
    """Take items until there are no more, or one more than are wanted.

    Args:
        source: N >= 0 items; nobody knows whether it ends.
        most: so many are wanted; `None` for all.

    Returns:
        The items. One too many says that there were more.
    """
    if (stream := _begun()) is not None:
        for number, item in enumerate(source, 1):
            if not stream.took(item) or (most is not None and number > most):
                break
        return stream.finish()
    items = _fresh()
    for item in source:
        items.append(item)
        if most is not None and len(items) > most:
            _note_cut()
            break
    return items


async def gather_async(source: AsyncIterable[Any], most: int | None) -> list[Any]:
    """Do what `gather` does with an async iterable."""
    if (stream := _begun()) is not None:
        number = 0
        async for item in source:
            number += 1
            if not stream.took(item) or (most is not None and number > most):
                break
        return stream.finish()
    items = _fresh()
    async for item in source:
        items.append(item)
        if most is not None and len(items) > most:
            _note_cut()
            break
    return items


@contextmanager
def streamed(stream: Stream | None) -> Iterator[None]:
    """Let what is gathered in the block be sent while it still comes; `None`: it stays here."""
    token = _stream.set(stream)
    try:
        yield
    finally:
        _stream.reset(token)


def _begun() -> Stream | None:
    """The stream of what is about to be gathered, at its beginning; `None` if it has none."""
    stream = _stream.get()
    if stream is None or not stream.fits_here:
        return None
    stream.restart()
    if (here := _kept.get()) is not None:
        here.items = stream.unsent
    return stream


def _fresh() -> list[Any]:
    # A list of its own for each attempt: one whose time was over may still be adding to its own.
    items: list[Any] = []
    if (here := _kept.get()) is not None:
        here.items, here.cut = items, False
    return items


def _note_cut() -> None:
    if (here := _kept.get()) is not None:
        here.cut = True
