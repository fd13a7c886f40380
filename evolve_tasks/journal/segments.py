"""The segments of a journal: read into an index, written, joined where they are many."""

from __future__ import annotations

import io
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from prefect.serializers import Serializer

from evolve_tasks.journal.index import Index, Place
from evolve_tasks.journal.records import Done, Record, encode, payload_checked, scan
from evolve_tasks.journal.storage import Files

MANY: Final = 64  # small segments: more are joined
SMALL: Final = 1 << 20  # bytes
JOINED: Final = 16 << 20  # bytes that a joined segment has at most, and that one read may bring
_KEPT: Final = 4  # segments whose bytes are kept after a read: sources come as they were written
SEGMENT: Final = ".seg"
_NAME: Final = re.compile(r"(\d{12})-([0-9a-z]+)\.seg")


class Segments:
    """The segments in a journal's folder, and the index of what they hold.

    Args:
        files: the journal's folder.
        run: part of the names of what this run writes: lower case letters and digits, of no
            other run.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from evolve_tasks.journal.records import Gone
        >>> from evolve_tasks.journal.storage import LocalFiles
        >>> files = LocalFiles(Path(tempfile.mkdtemp()))
        >>> segments = Segments(files, "run1")
        >>> segments.write([Gone("a", 0, segments.next_sequence)])
        >>> files.names()
        {'000000000001-run1.seg': 104}
    """

    def __init__(self, files: Files, run: str) -> None:
        self._files = files
        self._run = run
        self._last = 0
        self._sizes: dict[str, int] = {}
        self._broken: set[str] = set()
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self.index = Index()
        self.damaged: list[str] = []

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(self._sizes.values())

    @property
    def count(self) -> int:
        """Number of segments."""
        return len(self._sizes)

    @property
    def next_sequence(self) -> int:
        """Sequence number for records that are written next."""
        return self._last + 1

    def load(self) -> None:
        """Read the headers of all records; what is damaged is said in `damaged`."""
        self._sizes = {name: size for name, size in self._files.names().items() if _number(name)}
        for name in sorted(self._sizes):
            self._last = max(self._last, _number(name))
            self._load(name)

    def write(self, records: Sequence[Record]) -> None:
        """Write records as one segment; when it returns they are durable and in the index.

        Args:
            records: N >= 1 records, numbered with `next_sequence`.
        """
        blobs = [encode(record) for record in records]
        name = self._write(blobs)
        offset = 0
        for record, blob in zip(records, blobs, strict=True):
            self.index.add(record, Place(name, offset, len(blob)))
            offset += len(blob)

    def read(self, place: Place) -> Record | None:
        """Read a record with its payload, or `None` if it is not as it was written."""
        try:
            return payload_checked(self._bytes(place))
        except FileNotFoundError:
            return None

    def join_small(self) -> None:
        """Join small segments, if they are many: a run of days leaves few of them."""
        small = {name for name, size in self._sizes.items() if size < SMALL}
        if len(small) > MANY:
            self._write_anew(small)

    def compact(self) -> None:
        """Write anew what is mostly of no use any more, what is damaged, and many small ones.

        It may be cut off at any step: a new segment is there before an old one goes, and a
        record that is there twice counts once.
        """
        live = self.index.live_bytes()
        chosen = {name for name, size in self._sizes.items() if live[name] < size / 2}
        small = {name for name, size in self._sizes.items() if size < SMALL}
        # A little waste is left alone until there is enough to be worth a rewrite.
        wasted = sum(self._sizes[name] - live[name] for name in chosen)
        if wasted < SMALL:
            chosen = set()
        if len(small | chosen) > MANY:
            chosen |= small
        chosen |= self._broken
        if chosen:
            self.index.forget_gone(chosen)
            self._write_anew(chosen)

    def mend(self, spoiled: set[str]) -> None:
        """Write segments anew without what was dropped of them, as far as they are there.

        Else the next run reads it first, and takes what came in its place for the same again.
        """
        chosen = (spoiled | self._broken) & self._sizes.keys()
        if chosen:
            self._write_anew(chosen)

    def remove_all(self) -> None:
        """Remove all segments, whatever is in them."""
        for name in self._files.names():
            if name.endswith(SEGMENT):
                self._files.remove(name)
        self._files.sweep(SEGMENT)

    def _write_anew(self, chosen: set[str]) -> None:
        """Copy what holds into new segments, then remove the old ones."""
        blobs: list[bytes] = []
        moves: list[tuple[Record, Place]] = []
        size = 0

        def put() -> None:
            nonlocal size
            if blobs:
                name = self._write(blobs)
                offset = 0
                for (record, before), blob in zip(moves, blobs, strict=True):
                    self.index.move(record, before, Place(name, offset, len(blob)))
                    offset += len(blob)
            blobs.clear()
            moves.clear()
            size = 0

        for name in sorted(chosen):
            for record, place in self._held(name):
                blob = self._bytes(place)
                if payload_checked(blob) is None:
                    self.damaged.append(f"{name}: payload altered at byte {place.offset}")
                    self.index.drop(record, place)
                    continue
                if size + len(blob) > JOINED:
                    put()
                blobs.append(blob)
                moves.append((record, place))
                size += len(blob)
        put()
        for name in sorted(chosen):
            self._files.remove(name)
            del self._sizes[name]
            self._recent.pop(name, None)
        self._broken -= chosen

    def _held(self, name: str) -> Iterable[tuple[Record, Place]]:
        try:
            with self._files.opened(name) as stream:
                for found in scan(stream, self._sizes[name]):
                    if isinstance(found, str):
                        return
                    place = Place(name, found.offset, found.length)
                    if self.index.holds(found.record, place):
                        yield found.record, place
        except FileNotFoundError:
            return  # somebody removed it: there is nothing to copy

    def _write(self, blobs: Sequence[bytes]) -> str:
        self._last += 1
        name = f"{self._last:012d}-{self._run}{SEGMENT}"
        content = b"".join(blobs)
        self._files.write(name, content)
        self._sizes[name] = len(content)
        return name

    def _load(self, name: str) -> None:
        size = self._sizes[name]
        if size <= JOINED:
            # One read: a header after the other would be many of them on a remote storage.
            content = self._files.read(name)
            self._take(name, io.BytesIO(content), len(content))
        else:
            with self._files.opened(name) as stream:
                self._take(name, stream, size)

    def _take(self, name: str, stream: Any, size: int) -> None:
        if not size:
            self._note_damage(name, "empty")
        for found in scan(stream, size):
            if isinstance(found, str):
                self._note_damage(name, found)
                return
            self.index.add(found.record, Place(name, found.offset, found.length))

    def _note_damage(self, name: str, what: str) -> None:
        self.damaged.append(f"{name}: {what}; what stood there is done again")
        self._broken.add(name)

    def _bytes(self, place: Place) -> bytes:
        if self._sizes.get(place.segment, 0) > JOINED:
            return self._files.read_part(place.segment, place.offset, place.length)
        content = self._recent.get(place.segment)
        if content is None:
            content = self._recent[place.segment] = self._files.read(place.segment)
            while len(self._recent) > _KEPT:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(place.segment)
        return content[place.offset : place.offset + place.length]


def _number(name: str) -> int:
    """The number in a segment's name, 0 for other files."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else 0


class Values:
    """Results as bytes and back, by the serializers that Prefect's results have.

    Args:
        serializer: of this run.

    Example:
        >>> from prefect.serializers import JSONSerializer
        >>> values = Values(JSONSerializer())
        >>> values.load(values.spec, values.dump([1, 2]), 2)
        [1, 2]
    """

    def __init__(self, serializer: Serializer[Any]) -> None:
        self._serializer = serializer
        # As any: a compressed one names the one inside it only then.
        self.spec = serializer.model_dump_json(serialize_as_any=True)
        self._known = {self.spec: serializer}

    def dump(self, values: list[Any]) -> bytes:
        """Serialize results; whatever the serializer raises is raised."""
        return self._serializer.dumps(values)

    def load(self, spec: str, payload: bytes, length: int) -> list[Any]:
        """Read results, by the serializer that wrote them.

        Raises:
            Exception: what the serializer raises where it can't read them, such as an
                `ImportError` for a class that has moved.
        """
        if spec not in self._known:
            self._known[spec] = Serializer(**json.loads(spec))
        values = self._known[spec].loads(payload)
        if not isinstance(values, list) or len(values) != length:
            raise ValueError(f"expected a list of {length} results, read {type(values).__name__}")
        return values


def is_results_of(record: Record | None, expected: Done) -> bool:
    """Whether a record that was read is the one that the index means."""
    return isinstance(record, Done) and (
        (record.source, record.occurrence, record.fingerprint, record.process)
        == (expected.source, expected.occurrence, expected.fingerprint, expected.process)
        and (record.items, record.start, record.stop)
        == (expected.items, expected.start, expected.stop)
    )
