"""Docstrings: examples that run, and every public name told in full."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import BaseModel

import evolve_tasks

SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Example):$", re.MULTILINE)


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(evolve_tasks.__path__, "evolve_tasks.")
    return [evolve_tasks, *(importlib.import_module(module.name) for module in found)]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


WITH_EXAMPLES = [module for module in modules() if examples(module)]


@pytest.fixture
def api_out_of_reach() -> Iterator[None]:
    """An address where nothing answers: without one, Prefect would start a server of its own."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


@pytest.mark.usefixtures("api_out_of_reach")
@pytest.mark.parametrize("module", WITH_EXAMPLES, ids=lambda module: module.__name__)
def test_the_examples_give_what_they_say(module: ModuleType) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in examples(module):
        runner.run(test, out=said.append)
    assert not said, "".join(said)


def test_no_example_is_overlooked() -> None:
    # The finder passes over what it takes for imported, as after a decorator without wraps.
    overlooked = [
        f"{module.__name__}: {written} written, {found} found"
        for module in modules()
        if (written := len(re.findall(r"^\s*>>> ", inspect.getsource(module), re.MULTILINE)))
        != (found := sum(len(test.examples) for test in examples(module)))
    ]
    assert overlooked == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module.__name__ for module in modules() if not (module.__doc__ or "").strip()] == []


# -- public names --------------------------------------------------------------------------------

PUBLIC = {name: getattr(evolve_tasks, name) for name in evolve_tasks.__all__}
FUNCTIONS = [name for name, value in PUBLIC.items() if inspect.isfunction(value)]
ERRORS = [
    name
    for name, value in PUBLIC.items()
    if inspect.isclass(value) and issubclass(value, BaseException)
]
CLASSES = [name for name in PUBLIC if name not in FUNCTIONS and name not in ERRORS]


def sections(value: Any) -> dict[str, str]:
    """The docstring by section; what stands before the first is under an empty name."""
    # `__doc__` and not getdoc: that would take the docstring of a base class.
    parts = SECTION.split(inspect.cleandoc(value.__doc__ or ""))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def told(section: str) -> set[str]:
    """The names that a section of arguments tells, several before one colon too."""
    lines = re.findall(r"^ {4}(\w[^:\n]*):", section, re.MULTILINE)
    return {name.strip(" *`") for line in lines for name in line.split(",")}


@pytest.mark.parametrize("name", evolve_tasks.__all__)
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    text = sections(PUBLIC[name])[""]
    first = text.partition("\n")[0]
    assert first, f"{name} has no docstring"
    assert first[-1] in ".:`", f"{name}: the first line is no sentence: {first}"
    generated = f"{name}("  # what dataclass writes where nobody wrote anything
    assert not text.startswith(generated), f"{name} has only a generated docstring"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_told_in_full(name: str) -> None:
    function = PUBLIC[name]
    found = sections(function)
    parameters = set(inspect.signature(function).parameters)
    assert parameters <= told(found.get("Args", "")), f"{name}: Args lacks some of {parameters}"
    gives = "Yields" if "Iterator" in str(function.__annotations__["return"]) else "Returns"
    assert {gives, "Raises", "Example"} <= set(found), f"{name} has only {sorted(found)}"
    assert ">>> " in found["Example"], f"{name}: the example cannot be run"


def _named(value: type[Any]) -> set[str]:
    """Parameters with a name of their own; *args and **kwargs are told by what takes them."""
    parameters = inspect.signature(value).parameters.values()
    return {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_tells_its_fields(name: str) -> None:
    value = PUBLIC[name]
    if issubclass(value, BaseModel):
        fields = set(value.model_fields)
    elif dataclasses.is_dataclass(value):
        fields = {field.name for field in dataclasses.fields(value)}
    else:
        fields = _named(value)
    missing = fields - told(sections(value).get("Args", ""))
    assert not missing, f"{name} does not say what {sorted(missing)} mean"


@pytest.mark.parametrize("name", [*CLASSES, *ERRORS])
def test_a_public_class_has_an_example(name: str) -> None:
    assert ">>> " in sections(PUBLIC[name]).get("Example", ""), f"{name} has no example that runs"


@pytest.mark.parametrize(
    "name",
    [
        f"{name}.{attribute}"
        for name in [*CLASSES, *ERRORS]
        for attribute, value in vars(PUBLIC[name]).items()
        if not attribute.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property))
    ],
)
def test_a_public_method_has_a_docstring(name: str) -> None:
    owner, _, attribute = name.partition(".")
    assert vars(PUBLIC[owner])[attribute].__doc__
