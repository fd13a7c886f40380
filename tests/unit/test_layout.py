"""Where things are and what they are called: rules that hold for the source as it is written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import evolve_tasks

PACKAGE = Path(evolve_tasks.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# What the pure core may know: no clock, no thread, no network, no chance.
CORE_MAY_IMPORT = {
    "math",
    "__future__",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "typing",
    "evolve_tasks.core",
    "evolve_tasks.errors",
    "evolve_tasks.options",
    "evolve_tasks.outcome",
}
CORE_MUST_NOT_CALL = {"open", "print", "input", "exec", "eval", "__import__", "globals"}

# They say nothing of what a thing does, or mean something else in Prefect and Dask.
BANNED = {"manager", "handler", "helper", "util", "utils", "data", "job"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported, wherever it stands; a relative one begins with dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def defined(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that the source gives itself: not those of other libraries that it uses."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.alias(asname=str(name)):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name, in the singular."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {part.lower() for part in parts} | {part.lower().removesuffix("s") for part in parts}


def own(module: str) -> bool:
    return module in CORE_MAY_IMPORT or module.startswith("evolve_tasks.core.")


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent.name == "core"], ids=lambda path: path.name
)
def test_the_core_knows_nothing_of_the_outside_world(path: Path) -> None:
    tree = ast.parse(path.read_text())
    foreign = [module for module in imported(tree) if not own(module)]
    assert foreign == [], f"{path.name} imports {foreign}"
    assert CORE_MUST_NOT_CALL.isdisjoint(called(tree))


def test_the_check_of_the_core_sees_what_is_hidden() -> None:
    tree = ast.parse(
        "def later():\n"
        "    import time as t\n"
        "    from dask.distributed import Client\n"
        "    from .. import naming\n"
        "    print(t.time())\n"
    )
    assert [module for module in imported(tree) if not own(module)] == [
        "time",
        "dask.distributed",
        "..",
    ]
    assert set(called(tree)) == {"print"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_say_what_things_are(path: Path) -> None:
    found = [
        f"line {line}: {name}"
        for line, name in defined(ast.parse(path.read_text()))
        if BANNED & words(name)
    ]
    if BANNED & words(path.stem):
        found.append("the module itself")
    assert found == [], f"{path.relative_to(PACKAGE)}: {found}"


def test_the_check_of_names_sees_all_kinds_of_them() -> None:
    source = (
        "class BatchManager:\n"
        "    def run_job(self, *, data=None): self.handlers = [helper for helper in data]\n"
        "import numpy as utils\n"
        "from contextlib import contextmanager\n"
        "metadata = update = PrefectConsoleHandler.data\n"
    )
    names = {name for _, name in defined(ast.parse(source)) if BANNED & words(name)}
    assert names == {"BatchManager", "run_job", "data", "handlers", "helper", "utils"}


def test_the_public_names_are_sorted_and_there() -> None:
    names = evolve_tasks.__all__
    assert list(names) == sorted(set(names))
    assert [name for name in names if not hasattr(evolve_tasks, name)] == []


def test_what_is_imported_for_users_is_public() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    brought = [
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(brought) == list(evolve_tasks.__all__)


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_importing_it_imports_no_server() -> None:
    """That takes seconds, in each process of each flow and of each worker."""
    code = "import sys, evolve_tasks; print('prefect.server.api.server' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
