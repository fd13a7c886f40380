"""Tokens: the same in every process, another one when value, type, order or code differ."""

from __future__ import annotations

import enum
import functools
import importlib
import itertools
import os
import runpy
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import task
from pydantic import BaseModel

from evolve_tasks.journal import (
    file_fingerprint,
    is_sure,
    items_token,
    source_token,
    stage_token,
)
from evolve_tasks.stages import owned


class Color(enum.Enum):
    RED = 1


class Text(str):
    pass


@dataclass(frozen=True)
class Partition:
    table: str
    keys: frozenset[str] = frozenset()


class Model(BaseModel):
    name: str
    tags: set[str] = set()


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


Row = namedtuple("Row", ["a", "b"])

DIFFERENT: list[Any] = [
    None, True, False, 0, 1, 1.0, -0.0, 0.0, 1j, "", "1", b"1", b"", "a\nb", ..., 10**5_000,
    Text("1"), Text("2"), float("nan"), float("inf"), bytearray(b"1"), [], (), [1], (1,), ["1"],
    [[1]], [[], 1], {}, {1}, frozenset({1}), {"a": 1}, {"a": 2}, {1: "a"}, {"1": "a"}, [("a", 1)],
    Row(1, 2), (1, 2), range(3), [0, 1, 2], PurePosixPath("/a"), "/a", Path("/a/b"),
    date(2024, 1, 1), "2024-01-01", datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC),
    Decimal("1.0"), Decimal("1.00"), Color.RED, Partition("a"), Partition("b"),
    Partition("a", frozenset({"x", "y"})), Model(name="a"), Model(name="b"), Slotted(1),
    Slotted("1"), np.float64(1.0), np.float32(1.0), np.arange(3), np.arange(3.0), np.arange(4),
    np.arange(4).reshape(2, 2), "a" * 10_000, "\ud800", int, str, os.path,
]  # fmt: skip


def test_tokens_tell_values_and_types() -> None:
    tokens = [source_token(value) for value in DIFFERENT]
    assert None not in tokens
    repeated = [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(
            zip(DIFFERENT, tokens, strict=True), 2
        )
        if a == b
    ]
    assert repeated == []


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    plain | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@given(values)
def test_a_value_has_a_token_and_its_list_another(value: Any) -> None:
    assert source_token(value) is not None
    assert source_token([value]) not in (source_token(value), source_token((value,)))
    assert items_token([value]) == items_token((value,)) != items_token([value, value])


def test_order_counts_only_where_it_means_something() -> None:
    assert source_token({"a": 1, "b": 2}) == source_token({"b": 2, "a": 1})
    assert source_token({"x", "y", "z"}) == source_token({"z", "y", "x"})
    assert source_token([1, 2]) != source_token([2, 1])
    assert items_token(["a", "b"]) != items_token(["b", "a"])


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Raising:
    def __getstate__(self) -> Any:
        raise RuntimeError("not now")


@pytest.mark.parametrize(
    "value",
    [object(), threading.Lock(), lambda: 1, cycle(), nested(5_000), Raising(), [1, object()]],
    ids=["object", "lock", "lambda", "cycle", "deep", "raising", "inside"],
)
def test_what_no_other_process_can_tell_has_no_token(value: Any) -> None:
    assert source_token(value) is None
    assert not is_sure(items_token([value]))


def test_items_of_any_kind_have_a_token() -> None:
    for value in DIFFERENT:
        assert is_sure(items_token([value, value]))
    assert items_token([1, True]) != items_token([1, 1])
    assert items_token([]) != items_token([[]])
    assert items_token(range(25_000)) == items_token(list(range(25_000)))
    longer = [*range(25_000)]
    longer[20_001] = 7
    assert items_token(longer) != items_token(range(25_000))
    assert items_token([(1, "a")] * 3) != items_token([[1, "a"]] * 3)


SCRIPT = """
import sys, enum
from dataclasses import dataclass
from datetime import date
from pathlib import Path
import numpy as np
from prefect import task
from evolve_tasks.journal import items_token, source_token, stage_token
{padding}
@dataclass
class Partition:
    table: str
    keys: set

class Plain:
    def __init__(self): self.a = {{"x", "y", "z"}}

class Worker:
    def __init__(self, words): self.words = words
    def __call__(self, x): return x in self.words

def helped(x): return x in {{"a", "b", "c"}}

@task({options})
def stage(x):
    return helped(x) or (lambda y: y in ("q", frozenset({{"r", "s"}})))(x)

values = ["a", 1, None, {{"x", "y", "z"}}, frozenset("abcdef"), Path("/a"), date(2024, 1, 1),
          Partition("t", {{"a", "b", "c"}}), Plain(), {{"k": {{"n", "m"}}}}, np.arange(5)]
print([source_token(value) for value in values])
print(items_token(values), items_token([Partition("t", {{"a"}})]), items_token(["a", ("b", 1)]))
print(stage_token(stage), stage_token(Worker({{"a", "b", "c"}})), stage_token(Worker.__call__))
"""


def test_tokens_of_a_script_are_the_same_in_another_process_and_at_another_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here.py", tmp_path / "there.py"
    here.write_text(SCRIPT.format(padding="", options=""))
    there.write_text(SCRIPT.format(padding="# a comment\n\n\n", options="retries=3"))
    ran = subprocess.run(
        [sys.executable, str(there)],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    runpy.run_path(str(here), run_name="__main__")
    assert capsys.readouterr().out == ran.stdout
    assert "None" not in ran.stdout
    assert "unsure" not in ran.stdout


# -- code ----------------------------------------------------------------------------------------

BASE = """
from functools import cache, partial, wraps
from prefect import task
LIMIT = 5
MEMORY = {}

class Scale:
    factor = 2
    def of(self, x): return x * self.factor

def near(x):
    return x + LIMIT

def scaled(by):
    def wrap(function):
        @wraps(function)
        def call(x): return function(x) * by
        return call
    return wrap

def stage(x, power=1, *, base=0):
    "What it does."
    try:
        return near(x) ** power + base
    except ValueError:
        return Scale().of(x)

@scaled(2)
def decorated(x): return x

@task
def tasked(x): return near(x)

@task
def recursive(x): return recursive.fn(x - 1) if x else even(x)
def even(x): return x == 0 or odd(x - 1)
def odd(x): return x != 0 and even(x - 1)

class Stage:
    def __init__(self): self.bound = 3
    def __call__(self, x): return self.inner(x)
    def inner(self, x): return x + self.bound

short = lambda x: x + 1
cached = cache(near)
bound = partial(stage, power=2)
instance = Stage()
"""
STAGES = ["stage", "decorated", "tasked", "recursive", "short", "cached", "bound", "instance"]


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, str]]:
    """Tokens of the stages of a module with this text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(text: str) -> dict[str, str]:
        (tmp_path / "own_stages.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("own_stages", None)
        module = importlib.import_module("own_stages")
        del sys.modules["own_stages"]
        return {name: stage_token(getattr(module, name)) for name in STAGES}

    return of


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("return near(x) ** power", "return near(x) * power", {"stage", "bound"}),
        ("except ValueError", "except TypeError", {"stage", "bound"}),
        ("power=1", "power=3", {"stage", "bound"}),
        ("base=0", "base=1", {"stage", "bound"}),
        ("power=2", "power=4", {"bound"}),
        ("return x + LIMIT", "return x - LIMIT", {"stage", "bound", "tasked", "cached"}),
        ("LIMIT = 5", "LIMIT = 5.0", {"stage", "bound", "tasked", "cached"}),
        ("factor = 2", "factor = 3", {"stage", "bound"}),
        ("return x * self.factor", "return self.factor - x", {"stage", "bound"}),
        ("@scaled(2)", "@scaled(3)", {"decorated"}),
        ("return function(x) * by", "return function(x) + by", {"decorated"}),
        ("def decorated(x): return x", "def decorated(x): return -x", {"decorated"}),
        ("def odd(x): return x != 0", "def odd(x): return x != 1", {"recursive"}),
        ("self.bound = 3", "self.bound = 4", {"instance"}),
        ("return x + self.bound", "return x - self.bound", {"instance"}),
        ("short = lambda x: x + 1", "short = lambda x: x + 2", {"short"}),
        ("@task\ndef tasked", "@task(version='2')\ndef tasked", {"tasked"}),
        ("@task\ndef tasked", "@task(retries=3, name='other', tags={'a'})\ndef tasked", set()),
        ("MEMORY = {}", "MEMORY = {1: 2}", set()),
        ("\ndef near(x):", "\n\n\n# moved, and told\ndef near(x):  # here", set()),
        ("LIMIT = 5", "LIMIT = 5\nUNUSED = 7\ndef unused(): pass", set()),
        ("return near(x) ** power + base", "return (\n  near(x) ** power + base\n )", set()),
    ],
)  # fmt: skip
def test_a_token_changes_with_the_code_of_its_stage_alone(
    tokens: Callable[[str], dict[str, str]], before: str, after: str, changed: set[str]
) -> None:
    assert BASE.count(before) == 1
    one, other = tokens(BASE), tokens(BASE.replace(before, after))
    assert {name for name in STAGES if one[name] != other[name]} == changed
    assert len(set(one.values())) == len(STAGES)


def test_a_token_is_of_the_code_that_runs_and_not_of_a_file_that_was_edited_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "edited_stages.py"
    path.write_text("def stage(x):\n    return x + 1\n")
    module: ModuleType = importlib.import_module("edited_stages")
    before = stage_token(module.stage)
    path.write_text("def stage(x):\n    return x + 2000\n")
    assert stage_token(module.stage) == before


def test_state_that_nothing_tells_counts_by_its_class() -> None:
    def with_captured(captured: Any) -> Callable[[int], Any]:
        def stage(x: int) -> Any:
            return captured, x

        return stage

    lock = stage_token(with_captured(threading.Lock()))
    assert lock == stage_token(with_captured(threading.Lock()))
    assert lock != stage_token(with_captured(threading.Event()))
    assert stage_token(with_captured(cycle())) == stage_token(with_captured(cycle()))
    assert stage_token(with_captured(np.arange(3))) != stage_token(with_captured(np.arange(4)))
    assert stage_token(with_captured({"a": len})) != stage_token(with_captured({"a": max}))
    assert stage_token(with_captured(nested(5_000)))


def test_every_kind_of_callable_has_a_token() -> None:
    @dataclass
    class Machine:
        state: list[int] = field(default_factory=list)

        def run(self, x: int) -> int:
            return x

        @classmethod
        def made(cls, x: int) -> int:
            return x

        @staticmethod
        def free(x: int) -> int:
            return x

    found = [
        len, "a".join, "b".join, Machine().run, Machine([1]).run, Machine.made, Machine.free,
        Machine, np.sum, np.add, task(Machine.made), functools.partial(max, 1), str,
        functools.reduce,
    ]  # fmt: skip
    assert len({stage_token(value) for value in found}) == len(found)


# -- files ---------------------------------------------------------------------------------------


def test_a_file_is_told_by_path_size_and_change(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    os.utime(path, ns=(5, 5))
    assert file_fingerprint(path) == (str(path), 3, 5)
    os.utime(path, ns=(5, 6))
    assert file_fingerprint(str(path)) == (str(path), 3, 6)


@pytest.mark.parametrize("name", ["missing", "nul\0byte"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name[:3]):
        file_fingerprint(tmp_path / name)


@dataclass
class Reader:
    """Of which a task is a method."""

    columns: int

    @task
    def read(self, path: str) -> list[str]:
        return path.split(",", self.columns)


def test_a_task_that_is_a_method_counts_with_its_object() -> None:
    def token(columns: int) -> str:
        return stage_token(owned(Reader(columns).read))

    assert token(2) == token(2) != token(3)
