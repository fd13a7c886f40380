"""Records as bytes: framed and digested, so that nothing torn or altered is ever taken for one.

A record is a prefix (magic with version, length of the header, length of the payload), the
header as JSON, the SHA-256 of both, and the payload. The header holds the payload's SHA-256: one
can read an index of all records without their payloads, and still trust none that was altered.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, BinaryIO, ClassVar, Final, TypeVar

MAGIC: Final = b"EVJ\x01"
_PREFIX: Final = struct.Struct(">4sIQ")
_DIGEST: Final = 32
_HEADER_LIMIT: Final = 1 << 20  # bytes: no header is near it, so a larger length is damage
_PAYLOAD_LIMIT: Final = 1 << 48


@dataclass(frozen=True, slots=True)
class Listed:
    """A source was expanded and gave `size` items.

    Args:
        source: token of the source.
        occurrence: 0 for the first among equal sources, and so on.
        label: its name for people; untrusted text.
        fingerprint: token of what makes the source count as changed.
        parse: token of the code that expanded it.
        size: number of items (N >= 0).
        items: token of the items.
        sequence: orders the records of a journal.
    """

    kind: ClassVar[str] = "listed"
    source: str
    occurrence: int
    label: str
    fingerprint: str
    parse: str
    size: int
    items: str
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """Results of consecutive items of a source, all of which succeeded.

    Args:
        source: token of the source.
        occurrence: 0 for the first among equal sources, and so on.
        fingerprint: token of what makes the source count as changed.
        process: token of the code that worked on the items.
        items: token of all items of the source.
        start: position of the first item.
        stop: position after the last one.
        serializer: how the payload was written, as Prefect describes it in JSON.
        payload: the serialized list of stop - start values.
        sequence: orders the records of a journal.
    """

    kind: ClassVar[str] = "done"
    source: str
    occurrence: int
    fingerprint: str
    process: str
    items: str
    start: int
    stop: int
    serializer: str
    payload: bytes = b""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Gone:
    """A source vanished, and that was reported; each run that misses it may note that.

    Args:
        source: token of the source.
        occurrence: 0 for the first among equal sources, and so on.
        sequence: orders the records of a journal.
    """

    kind: ClassVar[str] = "gone"
    source: str
    occurrence: int
    sequence: int = 0


Record = Listed | Done | Gone
_KINDS: Final[dict[str, type[Record]]] = {kind.kind: kind for kind in (Listed, Done, Gone)}
_FIELDS: Final = {
    kind: {field.name: field.type for field in fields(record) if field.name != "payload"}
    for kind, record in _KINDS.items()
}
_TYPES: Final[dict[Any, type]] = {"str": str, "int": int}
_R = TypeVar("_R", Listed, Done, Gone)


@dataclass(frozen=True, slots=True)
class Found:
    """A record's place among bytes, without its payload.

    Args:
        record: what its header says; the payload of a `Done` is empty here.
        offset: first byte.
        length: bytes of all of it.
    """

    record: Record
    offset: int
    length: int


def encode(record: Record) -> bytes:
    """Write a record as bytes.

    Args:
        record: what to write.

    Returns:
        Its bytes; records may be joined in any order.

    Example:
        >>> decode(encode(Gone("a", 0)))
        ([Gone(source='a', occurrence=0, sequence=0)], None)
    """
    payload = record.payload if isinstance(record, Done) else b""
    shown: dict[str, Any] = {name: getattr(record, name) for name in _FIELDS[record.kind]}
    shown["kind"] = record.kind
    if isinstance(record, Done):
        shown["digest"] = hashlib.sha256(payload).hexdigest()
    header = json.dumps(shown, separators=(",", ":")).encode()
    head = _PREFIX.pack(MAGIC, len(header), len(payload)) + header
    return head + hashlib.sha256(head).digest() + payload


def decode(blob: bytes) -> tuple[list[Record], str | None]:
    """Read records until the end or the first damage.

    Args:
        blob: any bytes.

    Returns:
        The records before the damage, each one checked, and what is damaged, or `None`.

    Example:
        >>> decode(b"EVJ")
        ([], 'cut off at byte 0 of 3')
    """
    records: list[Record] = []
    stream = io.BytesIO(blob)
    for found in scan(stream, len(blob)):
        if isinstance(found, str):
            return records, found
        record = payload_checked(blob[found.offset : found.offset + found.length])
        if record is None:
            return records, f"payload altered at byte {found.offset} of {len(blob)}"
        records.append(record)
    return records, None


def scan(stream: BinaryIO, size: int) -> Iterator[Found | str]:
    """Read the headers of records and pass over their payloads.

    Args:
        stream: what to read, from its first byte; it can seek.
        size: bytes in it.

    Yields:
        The records by place; at damage what it is, and nothing after that.
    """
    offset = 0
    while offset < size:
        head = stream.read(_PREFIX.size)
        if len(head) < _PREFIX.size:
            yield f"cut off at byte {offset} of {size}"
            return
        magic, header_length, payload_length = _PREFIX.unpack(head)
        if magic != MAGIC or header_length > _HEADER_LIMIT or payload_length > _PAYLOAD_LIMIT:
            yield f"no record of this version at byte {offset} of {size}"
            return
        length = _PREFIX.size + header_length + _DIGEST + payload_length
        if offset + length > size:
            yield f"cut off in the record at byte {offset} of {size}"
            return
        header = stream.read(header_length)
        digest = stream.read(_DIGEST)
        if hashlib.sha256(head + header).digest() != digest:
            yield f"header altered at byte {offset} of {size}"
            return
        record = _from_header(header)
        if record is None:
            yield f"unknown record at byte {offset} of {size}"
            return
        yield Found(record, offset, length)
        if payload_length:
            stream.seek(payload_length, io.SEEK_CUR)
        offset += length


def payload_checked(blob: bytes) -> Record | None:
    """Read the one record that these bytes are, payload included.

    Args:
        blob: the bytes of one record.

    Returns:
        The record, or `None` if a single bit of it is not as it was written.

    Example:
        >>> payload_checked(encode(Gone("a", 0))[:-1]) is None
        True
    """
    found = next(scan(io.BytesIO(blob), len(blob)), "empty")
    if isinstance(found, str) or found.length != len(blob):
        return None
    header_length = _PREFIX.unpack(blob[: _PREFIX.size])[1]
    header = blob[_PREFIX.size : _PREFIX.size + header_length]
    payload = blob[_PREFIX.size + header_length + _DIGEST :]
    if not isinstance(found.record, Done):
        return None if payload else found.record
    if json.loads(header)["digest"] != hashlib.sha256(payload).hexdigest():
        return None
    shown = {name: getattr(found.record, name) for name in _FIELDS["done"]}
    return Done(**shown, payload=payload)


def _from_header(header: bytes) -> Record | None:
    """The record, if the header says just what one of its kind says."""
    try:
        shown = json.loads(header)
    except (ValueError, RecursionError):
        return None
    if not isinstance(shown, dict):
        return None
    kind = shown.pop("kind", None)
    wanted = _FIELDS.get(kind) if isinstance(kind, str) else None
    if wanted is None or not isinstance(kind, str):
        return None
    if kind == Done.kind and not isinstance(shown.pop("digest", None), str):
        return None
    if shown.keys() != wanted.keys():
        return None
    for name, type_name in wanted.items():
        if type(shown[name]) is not _TYPES[type_name]:
            return None
        if type_name == "int" and shown[name] < 0:
            return None
    if kind == Done.kind and not shown["start"] < shown["stop"]:
        return None
    return _KINDS[kind](**shown)
