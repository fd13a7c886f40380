"""Gather what an expanding stage yields: up to a limit, and what came before an error is kept."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_gathered: ContextVar[list[Any] | None] = ContextVar("evolve_gathered", default=None)


@contextmanager
def kept() -> Iterator[list[Any]]:
    """Keep what is gathered in the block; the last attempt's, if there are several.

    Example:
        >>> def breaks():
        ...     yield 1
        ...     raise OSError("broken")
        >>> with kept() as items:
        ...     try:
        ...         gather(breaks(), None)
        ...     except OSError:
        ...         print(items)
        [1]
    """
    items: list[Any] = []
    token = _gathered.set(items)
    try:
        yield items
    finally:
        _gathered.reset(token)


def gather(source: Iterable[Any], most: int | None) -> list[Any]:
    """Take items until there are no more, or one more than are wanted.

    Args:
        source: N >= 0 items; nobody knows whether it ends.
        most: so many are wanted; `None` for all.

    Returns:
        The items. One too many says that there were more.
    """
    items = _fresh()
    for item in source:
        items.append(item)
        if most is not None and len(items) > most:
            break
    return items


async def gather_async(source: AsyncIterable[Any], most: int | None) -> list[Any]:
    """Do what `gather` does with an async iterable."""
    items = _fresh()
    async for item in source:
        items.append(item)
        if most is not None and len(items) > most:
            break
    return items


def _fresh() -> list[Any]:
    items = _gathered.get()
    if items is None:
        return []
    items.clear()
    return items
