"""Stages: which are taken and what they are called, and what an expanding one may return."""

from __future__ import annotations

import pathlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from prefect import task

from evolve_tasks.errors import InvalidInput
from evolve_tasks.stages import as_items, called, function_name, stages_from


def parse(path: str) -> list[str]:
    return [path]


def process(item: str, loud: bool = False) -> str:
    return item.upper() if loud else item


def pair(first: str, second: str) -> None: ...


def marked(item: str, *, mark: str) -> None: ...


def nothing() -> None: ...


class Model:
    def __call__(self, item: str) -> str:
        return item

    def score(self, item: str) -> int:
        return len(item)


def refusal(*functions: Any) -> str:
    with pytest.raises(InvalidInput) as refused:
        stages_from(functions)
    return str(refused.value)


# -- how many and what ---------------------------------------------------------------------------


def test_no_stage() -> None:
    message = refusal()
    assert "0 stages" in message
    assert "evolve(sources, parse_file, process_item)" in message


def test_one_stage() -> None:
    message = refusal(parse)
    assert "1 stage:" in message
    assert "expands" in message
    assert "processes" in message


def test_any_number_of_stages() -> None:
    stages = stages_from([parse, parse, parse, process])
    assert [stage.name for stage in stages] == ["parse", "parse-2", "parse-3", "process"]
    assert [stage.last for stage in stages] == [False, False, False, True]


@pytest.mark.parametrize("wrong", [3, None, "parse", [parse], {"batch": 10}])
@pytest.mark.parametrize("place", [0, 1])
def test_a_stage_that_is_not_callable(wrong: Any, place: int) -> None:
    functions: list[Any] = [parse, process]
    functions[place] = wrong
    message = refusal(*functions)
    assert f"stage {wrong!r} is not callable" in message
    assert "@task" in message
    assert "keywords" in message, "options given by position end up here"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (pair, "'second'"),
        (marked, "'mark'"),
        (nothing, "too many positional arguments"),
        (task(pair), "'second'"),
        (partial(pair, "a", "b"), "too many positional arguments"),
        (Model.score, "'item'"),
    ],
    ids=["two", "keyword", "none", "task", "bound too often", "unbound method"],
)
def test_a_stage_that_does_not_take_one_item(wrong: Callable[..., Any], why: str) -> None:
    inner = wrong.func if isinstance(wrong, partial) else wrong
    name = getattr(inner, "name", None) or inner.__name__
    for functions in ((wrong, process), (parse, wrong)):
        message = refusal(*functions)
        assert f"stage '{name}' cannot be called with one item" in message
        assert why in message
        assert "functools.partial" in message


@pytest.mark.parametrize(
    "function",
    [
        process,
        task(process),
        partial(pair, "a"),
        partial(marked, mark="x"),
        Model(),
        Model().score,
        lambda item, *more, **options: item,
        len,
        str,
        int,  # has no signature that Python could tell
        print,
    ],
    ids=function_name,
)
def test_what_may_be_a_stage(function: Callable[..., Any]) -> None:
    first, last = stages_from([function, function])
    assert (first.position, first.last) == (0, False)
    assert (last.position, last.last) == (1, True)
    assert first.function is last.function is function


class Parser:
    @task
    def parse(self, path: str) -> list[str]:
        return [path]


def test_a_method_that_is_a_task_is_a_stage() -> None:
    parser = Parser()
    first, last = stages_from([parser.parse, process])
    assert first.name == "parse"
    assert first.task is not None
    assert called(first.function)("x") == ["x"]
    assert called(last.function) is process


def test_a_method_of_two_objects_is_told_apart_by_nobody() -> None:
    message = refusal(Parser().parse, Parser().parse, process)
    assert "'parse'" in message
    assert "functools.partial" in message
    parse_one = Parser().parse
    stages_from([parse_one, parse_one, process])


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (parse, "parse"),
        (task(parse), "parse"),
        (task(parse, name="Read a file"), "Read a file"),
        (Model(), "Model"),
        (Model().score, "score"),
        (len, "len"),
        (lambda path: [path], "<lambda>"),
    ],
)
def test_a_stage_is_called_what_a_person_calls_it(function: Any, name: str) -> None:
    assert stages_from([function, process])[0].name == name


def test_a_bound_function_is_called_as_the_function() -> None:
    # The message on a wrong signature advises functools.partial; "partial" tells nobody which.
    assert stages_from([partial(parse), process])[0].name == "parse"


def test_names_are_unique() -> None:
    assert [stage.name for stage in stages_from([parse, parse])] == ["parse", "parse-2"]


def test_a_stage_knows_its_task() -> None:
    made = task(parse)
    first, last = stages_from([made, process])
    assert first.task is made
    assert last.task is None


# -- what an expanding stage returns -------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (None, ("returned None", "for no items return []")),
        ("abc", ("'abc' of type str", "characters", "return [value]")),
        ("", ("'' of type str", "characters")),
        (np.str_("abc"), ("type str_", "characters")),
        (b"abc", ("b'abc' of type bytes", "return [value]")),
        (bytearray(b"abc"), ("type bytearray", "return [value]")),
        (memoryview(b"abc"), ("type memoryview", "return [value]")),
        (0, ("0 of type int", "return [value]")),
        (True, ("True of type bool", "return [value]")),
        (2.5, ("2.5 of type float", "return [value]")),
        (1j, ("1j of type complex", "return [value]")),
        (np.int64(3), ("type int64", "return [value]")),
        (np.float64(3), ("type float64", "return [value]")),
        (np.bool_(True), ("type bool", "return [value]")),
        (np.array(3), ("type ndarray", "return [value]")),
        ({"a": 1}, ("mapping (dict)", "only the keys", "list(value.items())")),
        (Counter("ab"), ("mapping (Counter)", "list(value.items())")),
        (object(), ("type object", "return [value]")),
        (pathlib.PurePosixPath("/a"), ("type PurePosixPath", "return [value]")),
        (parse, ("type function", "return [value]")),
        (list, ("type type", "return [value]")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_items(value: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(TypeError) as refused:
        as_items("parse_file", value)
    message = str(refused.value)
    for part in ("parse_file returned", "a list, a tuple, a generator", *parts):
        assert part in message


def test_a_large_wrong_value_is_shown_in_short() -> None:
    with pytest.raises(TypeError) as refused:
        as_items("parse_file", "x" * 1_000_000)
    assert len(str(refused.value)) < 500


def letters() -> Iterator[str]:
    yield from "ab"


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ([], []),
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ("a", "b")),
        (range(3), range(3)),
        (letters(), ["a", "b"]),
        (iter("ab"), ["a", "b"]),
        (map(str, [1, 2]), ["1", "2"]),
        ({"a"}, ["a"]),
        (frozenset("a"), ["a"]),
        (deque([1, 2]), [1, 2]),
        (array("i", [1, 2]), [1, 2]),
        (np.array([1, 2]), [1, 2]),
        ({"a": 1}.items(), [("a", 1)]),
        ({"a": 1}.keys(), ["a"]),
        ([None, None], [None, None]),
        (["abc"], ["abc"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_a_list_of_items(value: Iterable[Any], items: Any) -> None:
    taken = as_items("parse_file", value)
    assert taken == items
    assert type(taken) is type(items)
    assert taken[0:1] == items[0:1], "batches are slices"


def test_an_array_of_rows_gives_its_rows() -> None:
    taken = as_items("parse_file", np.arange(6).reshape(3, 2))
    assert [row.tolist() for row in taken] == [[0, 1], [2, 3], [4, 5]]


def test_an_error_while_it_yields_is_the_stages_own() -> None:
    def breaking() -> Iterator[str]:
        yield "a"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        as_items("parse_file", breaking())
