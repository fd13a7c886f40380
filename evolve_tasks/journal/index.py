"""What a journal knows, in memory: which records hold, and where they are. No values, no files.

Records may come in any order and more than once: what holds follows from their sequence numbers
alone, so a compaction that was cut off anywhere leaves nothing wrong behind.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from evolve_tasks.journal.identity import is_below, root_of
from evolve_tasks.journal.records import Done, Gone, Listed, Record

# Codes (or fan-outs) of a source that are remembered: those who go back to code of before, or
# use one journal for two calls, find their results; an edit a day does not pile up for ever.
VARIANTS: Final = 4


class Place(NamedTuple):
    """Where a record is.

    Args:
        segment: name of the segment.
        offset: first byte in it.
        length: bytes of the record.
    """

    segment: str
    offset: int
    length: int


@dataclass(slots=True)
class Listing:
    """What expanding a source gave.

    Args:
        fingerprint: token of what makes the source count as changed.
        parse: token of the code that expanded it.
        size: number of items.
        items: token of the items.
        sequence: of its record.
        place: of its record.
    """

    fingerprint: str
    parse: str
    size: int
    items: str
    sequence: int
    place: Place


@dataclass(slots=True)
class Piece:
    """Results of consecutive items.

    Args:
        start: position of the first item.
        stop: position after the last one.
        serializer: how the payload was written.
        place: of its record.
    """

    start: int
    stop: int
    serializer: str
    place: Place


@dataclass(slots=True)
class Variant:
    """All results of a source from the same code and the same items.

    Args:
        fingerprint: token of what makes the source count as changed.
        process: token of the code that worked on the items.
        items: token of the items.
        sequence: of its latest record.
        pieces: by start, none inside another.
    """

    fingerprint: str
    process: str
    items: str
    sequence: int
    pieces: list[Piece]

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Positions that have results: disjoint, in order, not touching."""
        joined: list[tuple[int, int]] = []
        for piece in self.pieces:
            if joined and piece.start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], piece.stop))
            else:
                joined.append((piece.start, piece.stop))
        return tuple(joined)


@dataclass(slots=True)
class Entry:
    """What is known of a source.

    Args:
        label: its name for people; untrusted text.
        listings: newest first.
        variants: newest first.
        gone: the record that says that it vanished, with its sequence.
    """

    label: str
    listings: list[Listing]
    variants: list[Variant]
    gone: tuple[int, Place] | None

    @property
    def is_gone(self) -> bool:
        """Whether it vanished and did not come back since."""
        if self.gone is None:
            return False
        newest = max((listing.sequence for listing in self.listings), default=-1)
        return self.gone[0] > newest

    def listing(self, fingerprint: str, parse: str) -> Listing | None:
        """What this code gave from the source as it is."""
        for listing in self.listings:
            if listing.fingerprint == fingerprint and listing.parse == parse:
                return listing
        return None

    def variant(self, fingerprint: str, process: str, items: str) -> Variant | None:
        """Results of this code on these items."""
        for variant in self.variants:
            if (variant.fingerprint, variant.process, variant.items) == (
                fingerprint,
                process,
                items,
            ):
                return variant
        return None

    def places(self) -> Iterator[Place]:
        """Where all that holds is written."""
        yield from (listing.place for listing in self.listings)
        for variant in self.variants:
            yield from (piece.place for piece in variant.pieces)
        if self.gone is not None:
            yield self.gone[1]


Key = tuple[str, int]


class Index:
    """All sources of a journal.

    Example:
        >>> index = Index()
        >>> index.add(Listed("a", 0, "a.txt", "f", "p", 3, "i"), Place("1", 0, 9))
        >>> index.sources["a", 0].listing("f", "p").size
        3
    """

    def __init__(self) -> None:
        self.sources: dict[Key, Entry] = {}

    def add(self, record: Record, place: Place) -> None:
        """Take in what a record says."""
        key = (record.source, record.occurrence)
        entry = self.sources.get(key)
        if entry is None:
            entry = self.sources[key] = Entry("", [], [], None)
        match record:
            case Listed():
                self._add_listing(entry, record, place)
            case Done():
                self._add_done(entry, record, place)
            case Gone():
                if entry.gone is None or record.sequence >= entry.gone[0]:
                    entry.gone = (record.sequence, place)

    def _add_listing(self, entry: Entry, record: Listed, place: Place) -> None:
        newest = entry.listings[0] if entry.listings else None
        old = entry.listing(record.fingerprint, record.parse)
        if old is not None and old.sequence >= record.sequence:
            return
        if newest is not None and newest.fingerprint != record.fingerprint:
            if newest.sequence > record.sequence:
                return  # of the source as it was before
            # The source changed: what was made of it before is of no use any more.
            entry.listings.clear()
            entry.variants = [
                variant for variant in entry.variants if variant.fingerprint == record.fingerprint
            ]
        elif old is not None:
            entry.listings.remove(old)
        if newest is None or record.sequence >= newest.sequence:
            entry.label = record.label
        entry.listings.append(
            Listing(
                sys.intern(record.fingerprint),
                sys.intern(record.parse),
                record.size,
                record.items,
                record.sequence,
                place,
            )
        )
        entry.listings.sort(key=lambda listing: -listing.sequence)
        del entry.listings[VARIANTS:]

    def _add_done(self, entry: Entry, record: Done, place: Place) -> None:
        newest = entry.listings[0] if entry.listings else None
        if (
            newest is not None
            and newest.fingerprint != record.fingerprint
            and newest.sequence > record.sequence
        ):
            return  # of the source as it was before
        piece = Piece(record.start, record.stop, sys.intern(record.serializer), place)
        variant = entry.variant(record.fingerprint, record.process, record.items)
        if variant is None:
            variant = Variant(
                sys.intern(record.fingerprint),
                sys.intern(record.process),
                record.items,
                record.sequence,
                [piece],
            )
            entry.variants.append(variant)
        else:
            variant.sequence = max(variant.sequence, record.sequence)
            _insert(variant.pieces, piece)
        if len(entry.variants) > 1:
            entry.variants.sort(key=lambda variant: -variant.sequence)
            del entry.variants[VARIANTS:]

    def holds(self, record: Record, place: Place) -> bool:
        """Whether the record at this place is still of use."""
        holder = self._holder(record)
        return holder is not None and _place(holder) == place

    def move(self, record: Record, before: Place, after: Place) -> None:
        """Say that a record is at another place now."""
        holder = self._holder(record)
        if holder is None or _place(holder) != before:
            return
        if isinstance(holder, Entry):
            holder.gone = (record.sequence, after)
        else:
            holder.place = after

    def drop(self, record: Record, place: Place) -> None:
        """Forget the record at this place."""
        holder = self._holder(record)
        if holder is None or _place(holder) != place:
            return
        key = (record.source, record.occurrence)
        entry = self.sources[key]
        if isinstance(holder, Listing):
            entry.listings.remove(holder)
        elif isinstance(holder, Piece):
            for variant in entry.variants:
                variant.pieces = [piece for piece in variant.pieces if piece is not holder]
            entry.variants = [variant for variant in entry.variants if variant.pieces]
        else:
            entry.gone = None
        if not entry.listings and not entry.variants and entry.gone is None:
            del self.sources[key]

    def _holder(self, record: Record) -> Listing | Piece | Entry | None:
        """What stands for the record, or for one that says the same; an entry: that it is gone."""
        entry = self.sources.get((record.source, record.occurrence))
        if entry is None:
            return None
        match record:
            case Listed():
                return entry.listing(record.fingerprint, record.parse)
            case Done():
                variant = entry.variant(record.fingerprint, record.process, record.items)
                if variant is None:
                    return None
                at = bisect_left(variant.pieces, record.start, key=_start)
                found = variant.pieces[at] if at < len(variant.pieces) else None
                return found if found is not None and found.start == record.start else None
            case Gone():
                return entry if entry.gone is not None else None

    def forget_gone(self, segments: set[str]) -> None:
        """Forget what vanished sources left in segments that are about to be written anew.

        The record that one is gone stays until a later compaction finds nothing else of it: it
        has to outlive every copy of the others, or one of them would bring the source back.
        """
        roots = {_root(key) for key in self.sources if is_below(key[0])}
        gone = [key for key in self.sources if self._is_gone(key)]
        for key in gone:
            entry = self.sources[key]
            if not entry.listings and not entry.variants:
                if key not in roots:
                    del self.sources[key]
                continue
            entry.listings = [
                listing for listing in entry.listings if listing.place.segment not in segments
            ]
            for variant in entry.variants:
                variant.pieces = [
                    piece for piece in variant.pieces if piece.place.segment not in segments
                ]
            entry.variants = [variant for variant in entry.variants if variant.pieces]

    def _is_gone(self, key: Key) -> bool:
        """Whether a source vanished, or that which it lies below."""
        root = self.sources.get(_root(key))
        return root is not None and root.is_gone

    def live_bytes(self) -> Counter[str]:
        """Bytes that are of use, by segment; what vanished sources left is not."""
        live: Counter[str] = Counter()
        for key, entry in self.sources.items():
            if self._is_gone(key):
                if entry.gone is not None:
                    live[entry.gone[1].segment] += entry.gone[1].length
                continue
            for place in entry.places():
                live[place.segment] += place.length
        return live


def _insert(pieces: list[Piece], piece: Piece) -> None:
    """Keep pieces by start, without one that lies inside another; so their stops grow too."""
    first = bisect_left(pieces, piece.start, key=_start)
    if (
        first < len(pieces)
        and pieces[first].start == piece.start <= piece.stop <= pieces[first].stop
    ):
        return
    if first and piece.stop <= pieces[first - 1].stop:
        return
    after = first
    while after < len(pieces) and pieces[after].stop <= piece.stop:
        after += 1
    pieces[first:after] = [piece]


def _place(holder: Listing | Piece | Entry) -> Place | None:
    if isinstance(holder, Entry):
        return holder.gone[1] if holder.gone is not None else None
    return holder.place


def _root(key: Key) -> Key:
    return root_of(key[0]), key[1]


def _start(piece: Piece) -> int:
    return piece.start
