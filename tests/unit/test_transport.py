"""Values on their way between processes come out as they went in."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from typing import Any
from uuid import uuid4

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve_tasks.outcome import Failure
from evolve_tasks.workers.calls import (
    Discovery,
    Expansion,
    Measure,
    Parts,
    Slice,
    SourceCall,
    SourceEnd,
    Span,
)
from evolve_tasks.workers.salvaging import Unreadable
from evolve_tasks.workers.transport import (
    NOTHING,
    Packed,
    Resting,
    Unpicklable,
    is_plain,
    require_picklable,
)


def travelled(value: Any) -> Any:
    """The value after the way that Dask takes: the pack itself is pickled too."""
    return pickle.loads(pickle.dumps(Packed.of(value))).value()


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(plain)
def test_plain_values(value: Any) -> None:
    assert travelled(value) == value


def test_none_is_a_value() -> None:
    assert travelled(None) is None
    assert travelled([None, None]) == [None, None]


def test_an_exception_is_a_value() -> None:
    error = travelled(ValueError("not raised", 3))
    assert (type(error), error.args) == (ValueError, ("not raised", 3))


def test_arrays() -> None:
    array = np.arange(100_000, dtype=np.float32).reshape(100, 1_000)
    result = travelled([array, array[::2, ::3]])
    assert result[0].dtype == array.dtype
    assert np.array_equal(result[0], array)
    assert np.array_equal(result[1], array[::2, ::3])


def test_a_big_string() -> None:
    text = "äx" * 1_000_000
    assert travelled(text) == text


def test_lambdas_and_what_they_close_over() -> None:
    factor = 7
    assert travelled(lambda x: x * factor)(6) == 42


def test_classes_that_are_defined_in_a_function() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    assert travelled(Point(3)).x == 3


def test_a_pack_in_a_pack() -> None:
    assert travelled([Packed.of("inside")])[0].value() == "inside"


def test_dask_sees_the_size_of_what_is_inside() -> None:
    # Memory limits of workers count on it.
    assert Packed.of(b"x" * 1_000_000).__sizeof__() >= 1_000_000


def test_the_pack_of_a_list_pickles_as_one_object() -> None:
    # Element by element a list costs a hundredfold: that is what the pack is for.
    packed = Packed.of(list(range(1_000)))
    assert packed.__reduce__() == (Packed, (packed.payload,))


def endless() -> Iterator[int]:
    while True:
        yield 1


@pytest.mark.parametrize(
    ("value", "name"),
    [(threading.Lock(), "lock"), (endless(), "generator"), ([threading.Lock()], "list")],
    ids=["lock", "generator", "inside a list"],
)
def test_what_cannot_travel_is_named(value: Any, name: str) -> None:
    with pytest.raises(Unpicklable) as refused:
        require_picklable("process_item", value)
    message = str(refused.value)
    assert f"process_item returned a value of type {name}" in message
    assert "cannot be pickled" in message
    assert "return plain values" in message
    assert refused.value.__cause__ is not None


@pytest.mark.parametrize(
    "value",
    [None, "a", ValueError("a"), lambda: 1, np.eye(2)],
    ids=["nothing", "text", "error", "function", "array"],
)
def test_what_can_travel_is_let_through(value: Any) -> None:
    require_picklable("process_item", value)  # raises where it does not


def test_a_value_whose_pickling_raises_anything_at_all_is_named() -> None:
    class Reluctant:
        def __reduce__(self) -> tuple[Any, ...]:
            raise ZeroDivisionError("not today")

    with pytest.raises(Unpicklable, match=r"type Reluctant .*ZeroDivisionError: not today"):
        require_picklable("process_item", Reluctant())


class _Broken:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


def _sent(value: Any) -> Any:
    """The value after the way between two workers, where buffers go beside what is pickled."""
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(payload, buffers=[bytes(one) for one in buffers])


def test_a_list_that_cannot_be_made_elsewhere_harms_no_other() -> None:
    found = Expansion(
        [[1, 2], [_Broken(), 7], (), [3]], Measure([], NOTHING, 0.0, 0.0, False, Span())
    )
    for _ in range(2):  # it may go on to a third worker
        found = _sent(found)
        assert found.items(0) == [1, 2]
        (unreadable, left) = found.items(1)
        assert (left, type(unreadable)) == (7, Unreadable)
        assert "no number" in unreadable.error
    assert (found.items(2), found.items(3)) == ((), [3])
    assert _sent(Slice([1, 2])).value() == [1, 2]
    assert [type(one) for one in _sent(Slice([_Broken(), 1])).value()] == [Unreadable, int]
    with pytest.raises(Unpicklable, match="installed on each worker"):
        _sent(Slice(_Broken())).value()  # it was to be a list


def test_arrays_of_a_list_are_not_copied_into_what_is_pickled() -> None:
    arrays = [np.arange(10_000), np.ones(5)]
    resting = Resting.of(arrays)
    assert len(resting.payload) < 1_000 < sum(one.nbytes for one in arrays) < resting.__sizeof__()
    for _ in range(2):
        resting = _sent(resting)
        assert all(map(np.array_equal, resting.value(), arrays))


class Text(str):
    """No plain text: whoever unpickles it needs this class."""

    __slots__ = ()


@given(plain)
def test_what_is_plain_travels_anywhere(value: Any) -> None:
    if is_plain(value):
        assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, True),
        ("\ud800", True),
        ([], True),
        ((1, None, b"", True, 2.0), True),
        ({}, False),
        ([[1]], False),
        ([1, Text("a")], False),
        (Text("a"), False),
        (range(3), False),
        (threading.Lock(), False),
    ],
)
def test_only_exact_kinds_are_plain(value: Any, expected: bool) -> None:
    assert is_plain(value) is expected


def test_modules_that_are_registered_with_cloudpickle_travel_by_value() -> None:
    this = sys.modules[__name__]
    assert Text.__qualname__.encode() in Packed.of(Text).payload
    assert b"No plain text" not in Packed.of(Text).payload
    cloudpickle.register_pickle_by_value(this)
    try:
        assert b"No plain text" in Packed.of(Text).payload
    finally:
        cloudpickle.unregister_pickle_by_value(this)


failure = Failure("parse", "a", (0,), "'a'", "ValueError", "no")


@pytest.mark.parametrize(
    "end",
    [
        SourceEnd(),
        SourceEnd(size=5, ended=5),
        SourceEnd(failure=failure),
        SourceEnd(skipped=True),
        SourceEnd(3, failures=[failure], ended=3, not_run=1, recorded=[0, 2], has_run=True),
        SourceEnd(3, token="t", keys=b"k", given=2),
        SourceEnd(3, discoveries=[Discovery(1, [(0, 2)], NOTHING)]),
        SourceEnd(3, parts=Parts()),
    ],
)
def test_the_end_of_a_source(end: SourceEnd) -> None:
    came = travelled([end])[0]
    for field in fields(SourceEnd):
        if field.name != "discoveries":  # what is packed in them has no equality
            assert getattr(came, field.name) == getattr(end, field.name), field.name
    assert len(came.discoveries) == len(end.discoveries)


@pytest.mark.parametrize(
    "call",
    [
        SourceCall(3, "a.txt", uuid4()),
        SourceCall(3, "a.txt 1", uuid4(), known=True, inner=(1, 2), depth=4),
    ],
)
def test_what_is_to_be_known_of_a_source(call: SourceCall) -> None:
    assert travelled((call,)) == (call,)
