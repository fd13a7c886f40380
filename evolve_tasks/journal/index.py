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

# So many runs, one after the other, have to miss a source before what is known of it may be
# forgotten: a mount that is empty once, or one run on a part of the sources, costs nothing.
ABSENCES: Final = 2


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
class Absence:
    """A run missed a source.

    Args:
        sequence: of its record.
        place: of its record.
    """

    sequence: int
    place: Place


@dataclass(slots=True)
class Entry:
    """What is known of a source.

    Args:
        label: its name for people; untrusted text.
        listings: newest first.
        variants: newest first.
        gone: the last runs that missed it, newest first.
    """

    label: str
    listings: list[Listing]
    variants: list[Variant]
    gone: tuple[Absence, ...]

    @property
    def is_gone(self) -> bool:
        """Whether it vanished and did not come back since."""
        return self._missed() > 0

    @property
    def is_given_up(self) -> bool:
        """Whether it has been gone for so long that nothing of it need be kept."""
        return self._missed() >= ABSENCES

    def _missed(self) -> int:
        """How many runs have missed it since it was last there."""
        if not self.gone:
            return 0
        newest = max((listing.sequence for listing in self.listings), default=-1)
        return sum(absence.sequence > newest for absence in self.gone)

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
        yield from self.gone_places()

    def gone_places(self) -> Iterator[Place]:
        """Where it is written that it vanished."""
        return (absence.place for absence in self.gone)


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
            entry = self.sources[key] = Entry("", [], [], ())
        match record:
            case Listed():
                self._add_listing(entry, record, place)
            case Done():
                self._add_done(entry, record, place)
            case Gone():
                self._add_gone(entry, record, place)

    def _add_gone(self, entry: Entry, record: Gone, place: Place) -> None:
        # A record that is there twice is one run's.
        if all(absence.sequence != record.sequence for absence in entry.gone):
            gone = [*entry.gone, Absence(record.sequence, place)]
            gone.sort(key=lambda absence: -absence.sequence)
            entry.gone = tuple(gone[:ABSENCES])

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
        return holder is not None and holder.place == place

    def move(self, record: Record, before: Place, after: Place) -> None:
        """Say that a record is at another place now."""
        holder = self._holder(record)
        if holder is not None and holder.place == before:
            holder.place = after

    def drop(self, record: Record, place: Place) -> None:
        """Forget the record at this place."""
        holder = self._holder(record)
        if holder is None or holder.place != place:
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
            entry.gone = tuple(absence for absence in entry.gone if absence is not holder)
        if not entry.listings and not entry.variants and not entry.gone:
            del self.sources[key]

    def _holder(self, record: Record) -> Listing | Piece | Absence | None:
        """What stands for the record, or for one that says the same."""
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
                same = (absence for absence in entry.gone if absence.sequence == record.sequence)
                return next(same, None)

    def forget_gone(self, segments: set[str]) -> None:
        """Forget what sources that are given up left in segments that are written anew next.

        The records that one is gone stay until a later compaction finds nothing else of it: they
        have to outlive every copy of the others, or one of them would bring the source back.
        """
        roots = {_root(key) for key in self.sources if is_below(key[0])}
        given_up = {key for key in self.sources if self._is_given_up(key)}
        for key, entry in list(self.sources.items()):
            if not entry.listings and not entry.variants:
                if key not in roots:  # nothing is left but that it is gone
                    del self.sources[key]
                continue
            if key not in given_up:
                continue
            entry.listings = [
                listing for listing in entry.listings if listing.place.segment not in segments
            ]
            for variant in entry.variants:
                variant.pieces = [
                    piece for piece in variant.pieces if piece.place.segment not in segments
                ]
            entry.variants = [variant for variant in entry.variants if variant.pieces]
            if not entry.listings and not entry.variants and key not in roots:
                entry.gone = entry.gone[:1]  # it outlives what a compaction that is cut off leaves

    def _is_given_up(self, key: Key) -> bool:
        """Whether a source has been gone for long, or that which it lies below."""
        root = self.sources.get(_root(key))
        return root is not None and root.is_given_up

    def live_bytes(self) -> Counter[str]:
        """Bytes that are of use, by segment; what sources left that are given up is not."""
        live: Counter[str] = Counter()
        for key, entry in self.sources.items():
            given_up = self._is_given_up(key)
            for place in entry.gone_places() if given_up else entry.places():
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


def _root(key: Key) -> Key:
    return root_of(key[0]), key[1]


def _start(piece: Piece) -> int:
    return piece.start
