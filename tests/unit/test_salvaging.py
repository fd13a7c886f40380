"""What can be unpickled comes out as it went in, whatever stands beside it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from distributed.protocol.pickle import dumps
from hypothesis import given
from hypothesis import strategies as st

from evolve_tasks.workers.salvaging import Unreadable, salvaged


class Stray:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


class Blind:
    """Made of anything, whatever it is."""

    def __init__(self, anything: Any) -> None:
        self.anything = anything

    def __reduce__(self) -> tuple[type[str], tuple[Any, str]]:
        return _looks_away, ([self.anything], "seen nothing")  # type: ignore[return-value]


def _looks_away(anything: Any, instead: str) -> str:
    return instead


class Choosy:
    """Takes its state back only where it is even."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choosy) and other.number == self.number

    def __hash__(self) -> int:
        return self.number

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["number"] % 2:
            raise ValueError("odd")
        self.number = state["number"]


@dataclass
class Holds:
    """Holds whatever it is given."""

    value: Any


class Named(tuple[int, int]):
    """Made by `__new__` with a named argument."""

    def __new__(cls, one: int, *, other: int) -> Named:
        if other < 0:
            raise ValueError("below zero")
        return super().__new__(cls, (one, other))

    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, int]]:
        return (self[0],), {"other": -self[1]}


def test_nothing_is_lost_where_nothing_is_wrong() -> None:
    values = [1, "a", [2.5, None], {"b": {3}}, Holds(Choosy(2)), ValueError("x"), len]
    again = salvaged(dumps(values), 1)
    assert again[:5] + again[6:] == values[:5] + values[6:]
    assert repr(again[5]) == repr(values[5])


def test_what_is_wrong_is_told() -> None:
    (one,) = salvaged(dumps([Stray()]), 1)
    assert isinstance(one, Unreadable)
    assert one.error.startswith("ValueError: ")
    assert "no number" in one.error


@pytest.mark.parametrize(
    "around",
    [
        lambda stray: stray,
        lambda stray: [stray],
        lambda stray: (1, stray),
        lambda stray: {"in": stray},
        lambda stray: {stray: "in"},
        lambda stray: {stray},
        lambda stray: frozenset([stray]),
        lambda stray: Holds([Holds(stray)]),
        lambda stray: Blind(stray),
        lambda stray: ValueError("text", stray),
        lambda stray: np.array([stray, 1], dtype=object),
    ],
    ids=[
        "alone",
        "list",
        "tuple",
        "value",
        "key",
        "set",
        "frozen set",
        "object",
        "made of it",
        "exception",
        "array",
    ],
)
def test_wherever_it_is(around: Any) -> None:
    first, wrong, last = salvaged(dumps(["first", around(Stray()), Holds("last")]), 1)
    assert (first, last) == ("first", Holds("last"))
    assert isinstance(wrong, Unreadable)


def test_states_that_are_refused() -> None:
    values = [Choosy(number) for number in range(6)]
    again = salvaged(dumps([*values, values[0], values[1]]), 1)
    assert again[0::2] == [*values[0::2], values[0]]
    assert [type(one) for one in again[1::2]] == [Unreadable] * 4


def test_arguments_that_are_refused() -> None:
    assert [type(one) for one in salvaged(dumps([Named(1, other=0), Named(1, other=2)]), 1)] == [
        Named,
        Unreadable,
    ]


def test_what_is_shared_is_wrong_wherever_it_is() -> None:
    shared, well = [Stray()], [1]
    again = salvaged(dumps([shared, well, {"again": shared}, (well, well)]), 1)
    assert [isinstance(one, Unreadable) for one in again] == [True, False, True, False]
    assert again[3][0] is again[3][1] is again[1]


def test_a_class_that_is_not_installed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = pickle.dumps([1, Holds(1), Holds, [Holds(2)], 2])
    monkeypatch.delattr(f"{__name__}.Holds")
    again = salvaged(payload, 1)
    assert (again[0], again[4]) == (1, 2)
    assert all("Holds" in one.error for one in again[1:4])


def test_lists_of_lists() -> None:
    again = salvaged(dumps([[1, Stray()], [], [Stray()], [2, 3]]), 2)
    assert [[type(one) for one in inner] for inner in again] == [
        [int, Unreadable],
        [],
        [Unreadable],
        [int, int],
    ]


def test_arrays_beside_it() -> None:
    arrays = [np.arange(1_000), Stray(), np.ones((3, 4))]
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(arrays, protocol=5, buffer_callback=buffers.append)
    first, wrong, last = salvaged(payload, 1, buffers)
    assert np.array_equal(first, arrays[0])
    assert np.array_equal(last, arrays[2])
    assert isinstance(wrong, Unreadable)


def test_a_list_that_is_none() -> None:
    with pytest.raises(ValueError, match="no number"):
        salvaged(dumps(Stray()), 1)
    with pytest.raises(Exception, match="no number"):
        salvaged(dumps([[1], Stray()]), 2)
    with pytest.raises(IndexError):
        salvaged(dumps([[1] * 100])[:-20], 1)


scalars = st.integers() | st.text() | st.none() | st.builds(Stray) | st.builds(Choosy, st.just(2))
nested = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.builds(Holds, inner)
    ),
    max_leaves=8,
)


def _is_wrong(value: Any) -> bool:
    try:
        pickle.loads(pickle.dumps(value))
    except ValueError:
        return True
    return False


@given(st.lists(nested, max_size=8), st.booleans())
def test_each_is_what_it_would_be_alone(values: list[Any], many: bool) -> None:
    if many:
        values = [*range(1_500), *values]  # pickled in several pieces
    again = salvaged(dumps(values), 1)
    assert len(again) == len(values)
    for value, one in zip(values, again, strict=True):
        if _is_wrong(value):
            assert isinstance(one, Unreadable)
        else:
            assert one == value
