"""Short names: one line, bounded, whatever the value is."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve_tasks.naming import LABEL, SHORT, short_repr, source_label


class Unspeakable:
    def __repr__(self) -> str:
        raise ValueError("this value cannot be shown")


class Unfinished:
    def __repr__(self) -> str:
        return None  # type: ignore[return-value]


class LostPath:
    """A path object whose path is gone."""

    def __fspath__(self) -> str:
        raise RuntimeError("no path any more")


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("/data/2024/file.3.txt", "file.3.txt"),
        ("file.txt", "file.txt"),
        ("/data/2024/", "2024"),
        ("/data/2024///", "2024"),
        ("/", "'/'"),
        ("///", "'///'"),
        (pathlib.PurePosixPath("/data/file.txt"), "file.txt"),
        ("s3://bucket/key.parquet", "key.parquet"),
        ("a\nb", "a b"),
        ("a\r\n\tb", "a b"),
        ("a\x00\x1b[31mb", "a [31mb"),
        ("a\u202eb", "a b"),  # turns the writing direction of a whole line round
        ("\udc80name", "name"),  # a file name that is no UTF-8
        (3, "3"),
        (None, "None"),
        ((1, "a"), "(1, 'a')"),
        (b"/data/file", "b'/data/file'"),
    ],
)
def test_a_source_is_called_by_the_last_part_of_its_path_or_by_its_repr(
    source: Any, label: str
) -> None:
    assert source_label(source) == label


@pytest.mark.parametrize(
    "source",
    ["x" * 5_000, "/data/" + "x" * 5_000, ["x" * 5_000], "\n" * 5_000, "é" * 5_000],
    ids=["name", "path", "repr", "newlines", "accents"],
)
def test_a_long_name_is_cut_and_says_so(source: Any) -> None:
    label = source_label(source)
    assert len(label) == LABEL
    assert label.endswith("…")


@pytest.mark.parametrize(
    "source", [Unspeakable(), Unfinished(), LostPath()], ids=lambda source: type(source).__name__
)
def test_a_source_that_cannot_be_shown_has_a_label_all_the_same(source: Any) -> None:
    # The label is made while the source is taken: an error there would end the whole run.
    assert type(source).__name__ in source_label(source)


@pytest.mark.parametrize("source", ["", " ", "\n", "/data/\n"])
def test_a_source_without_a_visible_name_has_a_label_all_the_same(source: str) -> None:
    # Task runs are named after it: an empty name is one that nobody can click.
    assert source_label(source).strip(), "an empty label"


@given(st.text() | st.binary() | st.integers() | st.lists(st.text()) | st.floats())
def test_a_label_is_one_line_of_bounded_length(source: Any) -> None:
    label = source_label(source)
    assert len(label) <= LABEL
    assert label.isprintable()


def test_a_label_of_an_array_is_one_line() -> None:
    assert source_label(np.eye(3)).isprintable()


@given(st.text() | st.binary() | st.integers() | st.lists(st.text()), st.integers(2, 200))
def test_a_short_repr_is_the_repr_or_its_beginning(value: Any, limit: int) -> None:
    text = short_repr(value, limit)
    assert len(text) <= limit
    if len(repr(value)) <= limit:
        assert text == repr(value)
    else:
        assert text[-1] == "…"
        assert repr(value).startswith(text[:-1])


def test_a_short_repr_fits_a_line_of_a_log() -> None:
    assert len(short_repr("x" * 5_000)) == SHORT
    assert "\n" not in short_repr(np.eye(3)), "it is shown within lines and cells of tables"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Unspeakable(), "<Unspeakable whose repr raises ValueError>"),
        (Unfinished(), "<Unfinished whose repr raises TypeError>"),
    ],
)
def test_a_repr_that_raises_is_told(value: Any, text: str) -> None:
    assert short_repr(value) == text
