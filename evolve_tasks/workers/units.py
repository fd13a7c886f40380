"""The functions that are submitted to Dask: importable wherever the package is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evolve_tasks.errors import ItemsChanged
from evolve_tasks.workers.calls import (
    BatchResult,
    CollectCall,
    Collected,
    CombineCall,
    Combined,
    ExpandCall,
    Expansion,
    Measure,
    Part,
    ProcessCall,
    Slice,
    SourceCall,
    Together,
)
from evolve_tasks.workers.ended import ended_before, kept_before, mark_ended
from evolve_tasks.workers.plugin import runtime_of
from evolve_tasks.workers.transport import Packed, Unpacked

PARSED_AGAIN = (
    "when it was parsed again after a worker had died with them, so that positions mean nothing "
    "any more; let a source give the same items each time"
)


def expand(
    run: str, packed: Packed, items: Packed, found: Expansion | Slice | None = None
) -> Expansion:
    """Run an expanding stage on what comes along, or on a part of what was found; it stays here.

    Args:
        run: the run.
        packed: the `ExpandCall`; what it says of a thousand sources is nothing to a scheduler.
        items: its items, which may be large and are packed only once.
        found: the list that it takes a part of, if it does.
    """
    call: ExpandCall = packed.value()
    return _expand(run, replace(call, items=items), found)


def _expand(run: str, call: ExpandCall, found: Expansion | Slice | None = None) -> Expansion:
    if call.inline and ended_before(run, call):
        call = replace(call, inline=0)
    if call.stream is not None:
        kept = kept_before(run, call.stream.unit)
        if kept is not None:
            call = _alone(call, kept)
    items = call.items.elements()
    if call.part is not None and found is not None:
        items = taken(found, call.part)
    expansion = runtime_of(run, call.crashes).expand(call, items)
    if any(end.ended for end in expansion.measure.ends):
        mark_ended(run, call)
    return expansion


def _alone(call: ExpandCall, offsets: list[int]) -> ExpandCall:
    """The same for some of its items: there is nothing to do for the others."""
    sources = tuple(
        source if offset in offsets else replace(source, known=True)
        for offset, source in enumerate(call.sources)
    )
    return replace(call, sources=sources, stream=None, inline=0)


def expand_together(run: str, packed: Packed, *found: Expansion | Slice) -> Expansion:
    """Run an expanding stage for several units as if they were one.

    Args:
        run: the run.
        packed: their `ExpandCall`s, each with the place of its list among those that were found;
            below 0 where what it expands comes along.
        found: the lists.
    """
    items: list[Any] = []
    sources: list[SourceCall] = []
    calls: Sequence[tuple[ExpandCall, int]] = packed.value()
    for call, place in calls:
        given = call.items.elements()
        if call.part is not None:
            given = taken(found[place], call.part)
        items += given
        sources += call.sources
    first, inline = calls[0][0], min(call.inline for call, _ in calls)
    return _expand(
        run,
        replace(first, sources=tuple(sources), items=Unpacked(items), part=None, inline=inline),
    )


def measure_together(expansion: Expansion, counts: Sequence[int]) -> Together:
    """Tell the flow how many items there are, for each of several units that were as one."""
    return Together(expansion.measure.divided(counts))


def process_together(run: str, packed: Packed, *found: Expansion | Slice) -> Together:
    """Run the last stage on what several units take from what was found, or on what comes along.

    Args:
        run: the run.
        packed: their `ProcessCall`s, each with the place of its list among those that were found;
            below 0 where its items come along.
        found: the lists.
    """
    calls: Sequence[tuple[ProcessCall, int]] = packed.value()
    given = [(call, _items(call, found[place] if place >= 0 else None)) for call, place in calls]
    return Together(runtime_of(run, calls[0][0].crashes).process_together(given))


def collect(run: str, call: CollectCall) -> Collected:
    """Collect what a source gave."""
    return runtime_of(run, call.crashes).collect(call)


def combine(run: str, call: CombineCall) -> Combined:
    """Combine parts that units came to."""
    return runtime_of(run, call.crashes).combine(call)


def measure(expansion: Expansion) -> Measure:
    """Tell the flow how many items there are, not which."""
    return expansion.measure


def cut(expansion: Expansion, part: Part) -> Slice:
    """Cut a part out of a long list where the list is, so that only this much travels.

    Raises:
        ItemsChanged: the list was lost with its worker, and parsing again gave another one.
    """
    items = expansion.items(part.offset)
    if len(items) != part.size:
        raise ItemsChanged(f"{part.label} gave {part.size} items, and {len(items)} {PARSED_AGAIN}")
    if part.given and expansion.measure.ends[part.offset].stands_for() != part.given:
        raise ItemsChanged(f"{part.label} gave other items, or in another order, {PARSED_AGAIN}")
    return Slice(items[part.start : part.stop])


def taken(found: Expansion | Slice, part: Part) -> Any:
    """The items of a part, whether it was cut out already or not."""
    return found.value() if isinstance(found, Slice) else cut(found, part).items


def process(run: str, call: ProcessCall, found: Expansion | Slice | None = None) -> BatchResult:
    """Run the last stage on items that come along, or on a part of what was found."""
    return runtime_of(run, call.crashes).process(call, _items(call, found))


def _items(call: ProcessCall, found: Expansion | Slice | None) -> Any:
    if call.items is not None:
        return call.items.elements()
    assert found is not None, "they come along, or from another task"
    return taken(found, call.part)
