"""What can be unpickled comes out as it went in, whatever stands beside it."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from distributed.protocol.pickle import dumps
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

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


@dataclass(frozen=True, slots=True)
class Frozen:
    """Has no state that could be asked for while it is being made."""

    value: Any


class Model(BaseModel):
    """The same."""

    value: int


class Locked:
    """Leaves out of its state what cannot travel, and has to have it for that."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Locked) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


class OnceOnly:
    """Can be pickled by who made it, and by nobody who was given it."""

    def __init__(self, *, made_here: bool = True) -> None:
        self.made_here = made_here

    def __reduce__(self) -> Any:
        if not self.made_here:
            raise TypeError("not twice")
        return partial(OnceOnly, made_here=False), ()


def _class_with(stray: Any) -> type:
    class Local:
        held = stray

    return Local


def test_what_stands_beside_it_is_as_it_was() -> None:
    class Local:
        def method(self) -> int:
            return 7

    uuid = UUID(int=3)
    values = [Frozen(1), Model(value=1), uuid, Locked(1), Local(), lambda: 8, Frozen(Frozen(2))]
    values += [Unreadable("elsewhere"), OnceOnly(), Decimal("1.5"), datetime(2026, 1, 1), 2**70]
    again = salvaged(dumps([Stray(), *values, Stray(), *values]), 1)
    assert [type(again[0]), type(again[len(values) + 1])] == [Unreadable] * 2
    assert again[1] is again[len(values) + 2]
    for first in (1, len(values) + 2):
        there = again[first : first + len(values)]
        assert there[:4] == values[:4]
        assert there[4].method() == 7
        assert there[5]() == 8
        assert there[6:8] == values[6:8]
        assert not there[8].made_here
        assert there[9:] == values[9:]


def test_the_class_of_one_that_is_refused_is_known_to_the_others() -> None:
    again = salvaged(dumps([Choosy(1), Choosy(2), Choosy(3), Choosy(4)]), 1)
    assert [type(one) for one in again] == [Unreadable, Choosy, Unreadable, Choosy]


def test_what_is_met_first_in_one_that_is_refused_is_known_to_the_others() -> None:
    class Local:
        value = 5

    shared = [Holds("shared"), {"key": Local()}]
    again = salvaged(dumps([{"a": Stray(), "b": shared}, {"b": shared}, {"a": shared[1]}]), 1)
    assert isinstance(again[0], Unreadable)
    assert again[1]["b"][0] == Holds("shared")
    assert again[2]["a"]["key"].value == 5
    assert again[2]["a"] is again[1]["b"][1]


def test_what_holds_itself() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    wrong: list[Any] = [circle, Stray()]
    wrong.append(wrong)
    again = salvaged(dumps([wrong, circle, 3]), 1)
    assert isinstance(again[0], Unreadable)
    assert again[1][0] == 1
    assert again[1][1] is again[1]
    assert again[2] == 3
    values: list[Any] = [1]
    values.append([values, Stray()])
    assert [type(one) for one in salvaged(dumps(values), 1)] == [int, Unreadable]


def test_tuples() -> None:
    for count in range(6):
        values = (*range(count), Stray(), "a")
        again = salvaged(dumps(values), 1)
        assert [*again[:count], again[-1]] == [*range(count), "a"]
        assert isinstance(again[count], Unreadable)
    assert salvaged(dumps(()), 1) == []
    assert [type(one) for one in salvaged(dumps((Stray(),)), 1)] == [Unreadable]


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
        lambda stray: lambda: stray,
        _class_with,
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
        "function",
        "class",
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
    for values in (Stray(), {1: Stray()}, 7):
        with pytest.raises(ValueError, match="no list"):
            salvaged(dumps(values), 1)
    with pytest.raises(ValueError, match="no list"):
        salvaged(dumps([[1], Stray()]), 2)
    with pytest.raises(ValueError, match="not enough data"):
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
