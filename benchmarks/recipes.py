"""Plain Dask: the three ways of its example "Handle evolving workflows", in our own words.

Equal items are worked on each (`pure=False`), which also spares Dask the hashing of arguments.
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Client, Future, as_completed, get_client, rejoin, secede

FIRST = 1  # above the priority of sources: what was found is worked on before more is read

Recipe = Callable[[Client, Sequence[Any], Callable[[Any], Any], Callable[[Any], Any]], list[Any]]


def by_completion(
    client: Client,
    sources: Sequence[Any],
    parse: Callable[[Any], Any],
    process: Callable[[Any], Any],
) -> list[Any]:
    """Lists stay on the workers; as their lengths come back, items are submitted one by one."""
    lists = client.map(parse, sources, pure=False)
    lengths = client.map(len, lists, pure=False)
    list_of = dict(zip(lengths, lists, strict=True))
    found: dict[Any, list[Any]] = {}
    for length in as_completed(lengths, loop=client.loop):
        items = list_of[length]
        found[items] = _submit_items(client, items, length.result(), process)
    gathered: list[Any] = client.gather([item for items in lists for item in found[items]])
    return gathered


def by_coroutines(
    client: Client,
    sources: Sequence[Any],
    parse: Callable[[Any], Any],
    process: Callable[[Any], Any],
) -> list[Any]:
    """One coroutine for each source, in the event loop of the client."""

    async def one(source: Any) -> list[Any]:
        items = client.submit(parse, source, pure=False)
        length = await client.submit(len, items, pure=False)
        return _submit_items(client, items, length, process)

    async def everything() -> list[Any]:
        found = await asyncio.gather(*map(one, sources))
        gathered: list[Any] = await client.gather([item for items in found for item in items])
        return gathered

    results: list[Any] = client.sync(everything)
    return results


def by_tasks(
    client: Client,
    sources: Sequence[Any],
    parse: Callable[[Any], Any],
    process: Callable[[Any], Any],
) -> list[Any]:
    """Tasks from tasks: each source submits its items from the worker and waits for them."""
    wholes = client.map(_whole, sources, parse=parse, process=process, pure=False)
    return [result for results in client.gather(wholes) for result in results]


def seconds_to_first(
    client: Client,
    sources: Sequence[Any],
    parse: Callable[[Any], Any],
    process: Callable[[Any], Any],
) -> float:
    """How long `by_completion` takes until the first item of all has been processed."""
    begun = time.perf_counter()
    lists = client.map(parse, sources, pure=False)
    lengths = client.map(len, lists, pure=False)
    list_of = dict(zip(lengths, lists, strict=True))
    ended = as_completed(lengths, loop=client.loop)
    for future in ended:
        if future not in list_of:
            future.result()
            return time.perf_counter() - begun
        ended.update(_submit_items(client, list_of[future], future.result(), process))
    raise ValueError("there was no item")


def _submit_items(
    client: Client, items: Future[Any], length: int, process: Callable[[Any], Any]
) -> list[Any]:
    submitted = []
    for position in range(length):
        item = client.submit(operator.getitem, items, position, priority=FIRST, pure=False)
        submitted.append(client.submit(process, item, priority=FIRST, pure=False))
    return submitted


def _whole(source: Any, parse: Callable[[Any], Any], process: Callable[[Any], Any]) -> list[Any]:
    client = get_client()
    items = client.map(process, parse(source), priority=FIRST, pure=False)
    secede()  # who waits in a thread of the pool may wait for ever
    results: list[Any] = client.gather(items)
    rejoin()
    return results


RECIPES: dict[str, Recipe] = {
    "as_completed": by_completion,
    "async/await": by_coroutines,
    "tasks from tasks": by_tasks,
}
