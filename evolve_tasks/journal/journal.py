"""The journal of a run: what earlier runs finished, and what this one does."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

from prefect.results import ResultStore

from evolve_tasks.errors import InvalidInput, JournalLost
from evolve_tasks.journal.identity import is_below, is_sure
from evolve_tasks.journal.index import Entry, Piece, Place, Variant
from evolve_tasks.journal.lock import Clock, JournalLock, Process
from evolve_tasks.journal.records import Done, Gone, Listed, Record
from evolve_tasks.journal.segments import SEGMENT, Segments, Values, is_results_of
from evolve_tasks.journal.storage import Files, folder_name, journals_root
from evolve_tasks.naming import one_line, short_repr

FORMAT: Final = 1
ABOUT: Final = "journal.json"
_LABEL: Final = 200  # characters
# In place of the code that expands a source, where only its lists further down are known.
_GIVEN: Final = "given"


@dataclass(frozen=True, slots=True)
class Known:
    """What a journal knows of a source, for the code and the fingerprint that were asked for.

    Args:
        source: token of the source.
        occurrence: 0 for the first among equal sources, and so on.
        fingerprint: token of what makes the source count as changed.
        process: token of the code that works on the items.
        items_token: token of the items that the results belong to.
        size: number of items; `None` if it is not known.
        listed: the size and the items are what this parse code gives from this source.
        ranges: positions `(start, stop)` that have results: disjoint, in order.
        differs: expanding the source gave other items than the same code gave before.
    """

    source: str
    occurrence: int
    fingerprint: str
    process: str
    items_token: str
    size: int | None
    listed: bool
    ranges: tuple[tuple[int, int], ...]
    differs: bool = False

    @property
    def complete(self) -> bool:
        """Whether every item has a result, so that the source need not be expanded."""
        if not self.listed or self.size is None:
            return False
        return self.size == 0 or self.ranges == ((0, self.size),)

    @property
    def done(self) -> int:
        """Number of items that have a result."""
        return sum(stop - start for start, stop in self.ranges)


class Journal:
    """A journal that this run alone may write, open between `with` and its end.

    One thread uses it. What is noted is durable when `flush` has returned, so a run flushes
    before it reports anything as done.

    Args:
        name: the journal's name.
        files: its folder.
        serializer: how results are written.
        lock: the right to write it.

    Example:
        >>> import tempfile
        >>> from prefect.filesystems import LocalFileSystem
        >>> store = ResultStore(result_storage=LocalFileSystem(basepath=tempfile.mkdtemp()))
        >>> with Journal.open("ingest", store, holder="first run") as journal:
        ...     journal.note_listed("source", 0, "a.txt", "fp", "parse", 3, "items")
        ...     journal.note_done("source", 0, "fp", "process", "items", 0, [10, 20])
        ...     journal.flush()
        >>> with Journal.open("ingest", store, holder="second run") as journal:
        ...     known = journal.known("source", 0, "fp", "parse", "process")
        ...     known.size, known.complete, list(journal.values(known))
        (3, False, [(0, 2, [10, 20])])
    """

    def __init__(self, name: str, files: Files, serializer: Any, lock: JournalLock) -> None:
        self.name = name
        self._files = files
        self._lock = lock
        self._values = Values(serializer)
        self._segments = Segments(files, uuid.uuid4().hex[:12])
        self._about: dict[str, Any] = {}
        self._seen: set[tuple[str, int]] = set()
        self._missed: set[tuple[str, int]] = set()  # by this run, and noted
        self._records: list[Record] = []
        # Results by what they belong to; those of neighbours become one record at the flush.
        self._results: dict[tuple[str, int, str, str, str], list[tuple[int, list[Any]]]] = {}
        self._exit = ExitStack()
        self._unsaved: list[str] = []
        # What could not be read, and the record itself if it is as it was written.
        self._spoiled: list[tuple[Done, Place, Done | None]] = []

    @classmethod
    def open(
        cls,
        name: str,
        store: ResultStore,
        *,
        holder: str,
        process: Process | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """Prepare a journal; `with` takes it, reads what is known and compacts it.

        Args:
            name: any text but an empty one.
            store: Prefect's result store; its storage holds the journal, its serializer writes
                the results. One must trust whoever can write there, as with Prefect's results.
            holder: who asks, for people: the name of the flow run.
            process: the process that asks; this one.
            clock: time.

        Returns:
            The journal, not yet taken.

        Raises:
            InvalidInput: the name is empty, or the storage can't hold a journal.
            JournalBusy: on `with`: another run holds it.
        """
        files = journals_root(store).folder(folder_name(name))
        lock = JournalLock(files, name, holder, process=process, clock=clock)
        journal = cls(name, files, store.serializer, lock)
        journal._about = {
            "format": FORMAT,
            "name": name,
            "last_holder": holder,
            "last_run_s": (clock or Clock()).wall_s(),
        }
        return journal

    def __enter__(self) -> Self:
        """Take the journal and read what is known."""
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            self._check_about()
            self._files.sweep(SEGMENT)
            self._segments.load()
            self._segments.compact()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what was noted, also where the run fails, and let the next run have it."""
        with self._exit:
            if not isinstance(error, JournalLost):
                self.flush()
                self._mend()

    @property
    def damaged(self) -> list[str]:
        """What could not be read and is done again, for the log."""
        return self._segments.damaged

    @property
    def unsaved(self) -> list[str]:
        """Results that the serializer refused, which a later run works on again, for the log."""
        return self._unsaved

    def known(
        self,
        source: str | None,
        occurrence: int,
        fingerprint: str | None,
        parse: str,
        process: str,
        *,
        items_token: str | None = None,
    ) -> Known | None:
        """Say what is known of a source; it counts as seen by this run, whatever is known.

        Ask before the source is expanded. If it had to be expanded, ask again with the token of
        what it gave: results hold for these items, whatever code gave them.

        Args:
            source: token of the source; `None` if it can't be recognised.
            occurrence: 0 for the first among equal sources, and so on.
            fingerprint: token of what makes the source count as changed; `None` if nobody knows.
            parse: token of the code that expands it.
            process: token of the code that works on its items.
            items_token: token of the items, where the source has just been expanded.

        Returns:
            What is known; `None` if nothing. The values themselves are read and checked only by
            `values`, so a source is finished only if that gives all of it.
        """
        if source is None:
            return None
        key = (source, occurrence)
        first = key not in self._seen
        self._seen.add(key)
        entry = self._segments.index.sources.get(key)
        if entry is None:
            return None
        if entry.is_gone and first:
            self._bring_back(key, entry)
        if fingerprint is None:
            return None
        listing = entry.listing(fingerprint, parse)
        items = items_token
        if items is None:
            if listing is None:
                return None
            items = listing.items
        same = listing is not None and listing.items == items
        variant = entry.variant(fingerprint, process, items)
        differs = listing is not None and not same and is_sure(items) and is_sure(listing.items)
        if not same and variant is None and not differs:
            return None
        size = listing.size if listing is not None and same else None
        ranges = variant.ranges() if variant is not None else ()
        if size is not None:
            ranges = tuple((start, min(stop, size)) for start, stop in ranges if start < size)
        return Known(source, occurrence, fingerprint, process, items, size, same, ranges, differs)

    def has(self, source: str, occurrence: int) -> bool:
        """Whether any results are kept of a source, for whatever code and fingerprint."""
        entry = self._segments.index.sources.get((source, occurrence))
        return entry is not None and bool(entry.variants)

    def values(self, known: Known) -> Iterator[tuple[int, int, list[Any]]]:
        """Read the results of a source, each checked by length and digest before it is read.

        Args:
            known: what `known` gave.

        Yields:
            `(start, stop, values)` of consecutive items, in order and without overlap. What
            can't be read is left out and said in `damaged`: only what is yielded is finished.
        """
        variant = self._variant(known)
        at = 0
        for piece in list(variant.pieces) if variant is not None else ():
            stop = piece.stop if known.size is None else min(piece.stop, known.size)
            if stop <= at:
                continue
            values = self._read(known, piece)
            if values is None:
                continue
            start = max(piece.start, at)
            yield start, stop, values[start - piece.start : stop - piece.start]
            at = stop

    def note_given(self, source: str, occurrence: int, label: str, fingerprint: str) -> None:
        """Note a source of which nothing is known but what lies below it, so that it is missed.

        Args:
            source: token of the source.
            occurrence: 0 for the first among equal sources, and so on.
            label: its name for people.
            fingerprint: token of what makes the source count as changed.
        """
        entry = self._segments.index.sources.get((source, occurrence))
        if entry is None or not entry.listings:
            self.note_listed(source, occurrence, label, fingerprint, _GIVEN, 0, "")

    def note_listed(
        self,
        source: str,
        occurrence: int,
        label: str,
        fingerprint: str,
        parse: str,
        size: int,
        items_token: str,
    ) -> None:
        """Note that a source was expanded.

        Args:
            source: token of the source.
            occurrence: 0 for the first among equal sources, and so on.
            label: its name for people.
            fingerprint: token of what makes the source count as changed.
            parse: token of the code that expanded it.
            size: number of items (N >= 0).
            items_token: token of the items.
        """
        self._seen.add((source, occurrence))
        self._records.append(
            Listed(source, occurrence, label[:_LABEL], fingerprint, parse, size, items_token)
        )

    def note_done(
        self,
        source: str,
        occurrence: int,
        fingerprint: str,
        process: str,
        items_token: str,
        start: int,
        values: Sequence[Any],
    ) -> None:
        """Note results of consecutive items, all of which succeeded.

        Args:
            source: token of the source.
            occurrence: 0 for the first among equal sources, and so on.
            fingerprint: token of what makes the source count as changed.
            process: token of the code that worked on them.
            items_token: token of all items of the source.
            start: position of the first one.
            values: M >= 0 results.
        """
        if values:
            key = (source, occurrence, fingerprint, process, items_token)
            self._results.setdefault(key, []).append((start, list(values)))

    def flush(self) -> None:
        """Write all that was noted; when it returns it is durable.

        Raises:
            JournalLost: another run has taken the journal over; stop this one.
            OSError: the storage refuses; what was noted is kept for the next flush.
        """
        if not self._records and not self._results:
            return
        self._lock.require_held()
        sequence = self._segments.next_sequence
        records: list[Record] = [replace(record, sequence=sequence) for record in self._records]
        unsaved: list[str] = []
        for key, portions in self._results.items():
            for start, values in _joined(portions):
                records += self._done(key, start, values, sequence, unsaved)
        if records:
            self._segments.write(records)
        self._records.clear()
        self._results.clear()
        self._unsaved += unsaved
        self._segments.join_small()

    def vanished(self) -> list[str]:
        """Say which sources of earlier runs this one did not see; each is said once.

        What lies below a source vanishes with it, and of equal ones none is missed while there
        is one. Ask when the last source has been taken, and flush when it was reported: what is
        not flushed is said again by the next run. Those that the run before has missed, too, are
        noted without a word: only then may a later run forget them.

        Returns:
            Their labels, sorted; untrusted text, as the sources' names were.
        """
        there = {source for source, _ in self._seen}
        labels: dict[str, str] = {}
        for key, entry in self._segments.index.sources.items():
            source, occurrence = key
            if source in there or is_below(source) or key in self._missed:
                continue
            if entry.is_gone:
                # Of some nothing is left but that they are gone.
                if entry.is_given_up or not (entry.listings or entry.variants):
                    continue
            elif entry.listings:
                labels.setdefault(source, entry.label)
            else:
                continue  # damage took its listing, and there is no name to say
            self._missed.add(key)
            self._records.append(Gone(source, occurrence))
        return sorted(labels.values())

    def _bring_back(self, key: tuple[str, int], entry: Entry) -> None:
        """A source that had vanished is there again: written down, so that it can vanish again."""
        newest = entry.listings[0] if entry.listings else None
        if newest is not None:
            self._records.append(
                Listed(
                    *key,
                    entry.label,
                    newest.fingerprint,
                    newest.parse,
                    newest.size,
                    newest.items,
                )
            )

    def _variant(self, known: Known) -> Variant | None:
        entry = self._segments.index.sources.get((known.source, known.occurrence))
        if entry is None:
            return None
        return entry.variant(known.fingerprint, known.process, known.items_token)

    def _read(self, known: Known, piece: Piece) -> list[Any] | None:
        expected = Done(
            known.source,
            known.occurrence,
            known.fingerprint,
            known.process,
            known.items_token,
            piece.start,
            piece.stop,
            piece.serializer,
        )
        record = self._segments.read(piece.place)
        problem, whole = "altered", None
        if isinstance(record, Done) and is_results_of(record, expected):
            whole = replace(record, payload=b"")
            try:
                return self._values.load(
                    record.serializer, record.payload, piece.stop - piece.start
                )
            except Exception as error:
                problem = f"{type(error).__name__}: {one_line(str(error), 200)}"
        self.damaged.append(
            f"{piece.place.segment}: results {piece.start} to {piece.stop} at byte "
            f"{piece.place.offset} can't be read ({problem}); they are done again"
        )
        self._segments.index.drop(expected, piece.place)
        self._spoiled.append((expected, piece.place, whole))
        return None

    def _mend(self) -> None:
        """Remove results that could not be read and were done again."""
        index = self._segments.index
        segments: set[str] = set()
        kept: list[tuple[Done, Place]] = []
        for expected, place, whole in self._spoiled:
            entry = index.sources.get((expected.source, expected.occurrence))
            variant = entry and entry.variant(
                expected.fingerprint, expected.process, expected.items
            )
            ranges = variant.ranges() if variant else ()
            if any(start < expected.stop and expected.start < stop for start, stop in ranges):
                segments.add(place.segment)
            elif whole is not None:
                kept.append((whole, place))  # a process with all its modules may read it yet
        if not segments:
            return
        for whole, place in kept:
            if place.segment in segments:
                index.add(whole, place)
        # All that was noted is written; where this fails a later run does it.
        with suppress(OSError, JournalLost):
            self._lock.require_held()
            self._segments.mend(segments)

    def _done(
        self,
        key: tuple[str, int, str, str, str],
        start: int,
        values: list[Any],
        sequence: int,
        unsaved: list[str],
    ) -> list[Done]:
        """Records of consecutive results: one, or where one is refused all the others."""
        try:
            payload = self._values.dump(values)
        except Exception as error:
            if len(values) == 1:
                unsaved.append(
                    f"result {start} ({short_repr(values[0])}) can't be serialized: "
                    f"{type(error).__name__}: {one_line(str(error), 200)}"
                )
                return []
            middle = len(values) // 2
            left = self._done(key, start, values[:middle], sequence, unsaved)
            return left + self._done(key, start + middle, values[middle:], sequence, unsaved)
        stop = start + len(values)
        return [Done(*key, start, stop, self._values.spec, payload, sequence)]

    def _check_about(self) -> None:
        """Refuse a journal of another name or a later format; write whose it is and who runs."""
        try:
            before = json.loads(self._files.read(ABOUT))
        except FileNotFoundError:
            before = {}
        except (ValueError, RecursionError):
            self.damaged.append(f"{ABOUT}: unreadable; it is written anew")
            before = {}
        if isinstance(before, dict):
            if before.get("name", self.name) != self.name:
                raise InvalidInput(
                    f"the folder of journal {short_repr(self.name)} belongs to journal "
                    f"{short_repr(before['name'])}: give it another name"
                )
            if before.get("format", FORMAT) != FORMAT:
                raise InvalidInput(
                    f"journal {short_repr(self.name)} was written in format "
                    f"{short_repr(before['format'])}, this version reads {FORMAT}: use a later "
                    "version of evolve-tasks, another name, or forget the journal"
                )
        self._files.write(ABOUT, json.dumps(self._about).encode())


def _joined(portions: list[tuple[int, list[Any]]]) -> Iterator[tuple[int, list[Any]]]:
    """Portions by start, those of neighbours as one."""
    current: tuple[int, list[Any]] | None = None
    for start, values in sorted(portions, key=lambda portion: portion[0]):
        if current is not None and start == current[0] + len(current[1]):
            current[1].extend(values)
            continue
        if current is not None:
            yield current
        current = (start, list(values))
    if current is not None:
        yield current
