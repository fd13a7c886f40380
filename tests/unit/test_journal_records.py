"""Records as bytes: whatever happens to them, nothing wrong is ever read."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve_tasks.journal.records import MAGIC, Done, Gone, Listed, Record, decode, encode

texts = st.text(st.characters(exclude_categories=[]), max_size=20)  # lone surrogates too
numbers = st.integers(0, 2**63)
spans = st.tuples(numbers, st.integers(1, 1_000)).map(lambda span: (span[0], sum(span)))

records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Listed, texts, numbers, texts, texts, texts, numbers, texts, numbers),
    st.builds(Gone, texts, numbers, numbers),
    st.builds(
        lambda span, *rest: Done(*rest[:5], *span, *rest[5:]),
        spans,
        texts,
        numbers,
        texts,
        texts,
        texts,
        texts,
        st.binary(max_size=60),
        numbers,
    ),
)
several = st.lists(records, min_size=1, max_size=4)


def joined(written: list[Record]) -> bytes:
    return b"".join(map(encode, written))


@given(several)
def test_what_was_written_is_read(written: list[Record]) -> None:
    assert decode(joined(written)) == (written, None)


@given(several, st.sets(st.floats(0, 1, exclude_max=True), min_size=1))
def test_a_cut_anywhere_is_noticed(written: list[Record], cuts: set[float]) -> None:
    blob = joined(written)
    borders = {len(joined(written[:n])): n for n in range(len(written) + 1)}
    for at in {int(cut * len(blob)) for cut in cuts} | (borders.keys() - {len(blob)}):
        read, damaged = decode(blob[:at])
        assert read == written[: max(n for border, n in borders.items() if border <= at)]
        assert (damaged is None) == (at in borders)


@given(several, st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_an_altered_bit_anywhere_is_noticed(written: list[Record], at: float, bit: int) -> None:
    blob = bytearray(joined(written))
    position = int(at * len(blob))
    blob[position] ^= 1 << bit
    read, damaged = decode(bytes(blob))
    assert damaged is not None
    assert read == written[: len(read)]
    assert len(joined(written[: len(read)])) <= position


def test_every_bit_of_a_record_counts() -> None:
    first = Gone("a", 0)
    blob = encode(first) + encode(Done("a", 0, "f", "p", "i", 0, 2, "{}", b"the payload"))
    for position in range(len(encode(first)), len(blob)):
        for bit in range(8):
            altered = bytearray(blob)
            altered[position] ^= 1 << bit
            read, damaged = decode(bytes(altered))
            assert read == [first]
            assert damaged is not None


@given(several, st.data())
def test_bytes_that_are_missing_or_too_many_inside_are_noticed(
    written: list[Record], drawn: st.DataObject
) -> None:
    blob = joined(written)
    at = drawn.draw(st.integers(0, len(blob) - 1))
    more = drawn.draw(st.one_of(st.just(b""), st.binary(min_size=1, max_size=5)))
    altered = blob[:at] + more + blob[at + (0 if more else 1) :]
    read, damaged = decode(altered)
    if len(read) > len(written) or read != written[: len(read)]:
        raise AssertionError(f"read what was never written: {read}")
    assert damaged is not None or altered == joined(read)


@given(st.binary(max_size=300))
def test_garbage_gives_nothing(garbage: bytes) -> None:
    for blob in (garbage, MAGIC + garbage):
        read, damaged = decode(blob)
        assert read == []
        assert (damaged is None) == (blob == b"")


def sealed(header: bytes, payload: bytes = b"") -> bytes:
    """A frame whose digests are right, around whatever header."""
    head = struct.pack(">4sIQ", MAGIC, len(header), len(payload)) + header
    return head + hashlib.sha256(head).digest() + payload


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind":"other"}',
        b'{"kind":["gone"]}',
        b'{"kind":"gone"}',
        b'{"kind":"gone","source":"a","occurrence":0,"sequence":0,"more":1}',
        b'{"kind":"gone","source":1,"occurrence":0,"sequence":0}',
        b'{"kind":"gone","source":"a","occurrence":-1,"sequence":0}',
        b'{"kind":"gone","source":"a","occurrence":true,"sequence":0}',
        b'{"kind":"gone","source":"a","occurrence":' + b"9" * 5_000 + b',"sequence":0}',
    ],
)
def test_a_header_of_another_writer_is_refused(header: bytes) -> None:
    read, damaged = decode(sealed(header))
    assert read == []
    assert damaged is not None


def test_results_of_no_items_are_refused() -> None:
    blob = encode(Done("a", 0, "f", "p", "i", 3, 3, "{}", b"payload"))
    assert decode(blob)[0] == []
