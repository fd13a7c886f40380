"""`docs/operations.md` explains every line that the package logs at INFO or above."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import evolve_tasks
from evolve_tasks import EvolveFailed, errors

PACKAGE = Path(evolve_tasks.__file__).parent
TEXT = (PACKAGE.parent / "docs" / "operations.md").read_text()

LOUD = {"info", "warning", "error", "exception", "critical"}
ENOUGH = 40  # characters of a message, by which somebody finds it


def loud_lines() -> Iterator[tuple[str, str]]:
    """Where the package logs something that is shown, and the template of it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=value, attr=attr),
                    args=[ast.Constant(value=str(template)), *_],
                ) if attr in LOUD and "logger" in ast.unparse(value):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", template


def pattern_of(template: str) -> re.Pattern[str]:
    """How the document has a template: `…` or words for each value, and its beginning is enough."""
    parts = re.split(r"%(?:\.\d+)?[a-z]", template)
    kept: list[str] = []
    for part in parts:
        kept.append(part[: max(0, ENOUGH - sum(map(len, kept)))])
    kept[-1] = kept[-1].rpartition(" ")[0] if len(kept[-1]) > 20 else kept[-1]
    while kept and not kept[-1].strip():
        kept.pop()
    return re.compile(".{1,60}?".join(re.escape(part) for part in kept))


LINES = dict(loud_lines())


def test_the_loud_lines_are_found() -> None:
    assert len(LINES) >= 15
    assert any("is not recorded by the Prefect API" in template for template in LINES.values())


@pytest.mark.parametrize("place", LINES)
def test_a_line_is_explained(place: str) -> None:
    pattern = pattern_of(LINES[place])
    row = next((row for row in TEXT.splitlines() if pattern.search(row)), None)
    assert row is not None, f"docs/operations.md does not have {pattern.pattern}"
    assert row.count("|") == 4, f"this should say what it means and what to do: {row}"


ERRORS = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.EvolveError)
]


@pytest.mark.parametrize("name", [*sorted({*ERRORS} - {"EvolveError"}), EvolveFailed.__name__])
def test_an_error_is_explained(name: str) -> None:
    assert f"| `{name}` |" in TEXT


def test_the_check_sees_a_line_that_is_missing() -> None:
    assert not pattern_of("%d wolves howl at %s, and nobody hears them").search(TEXT)
    assert pattern_of("%d wolves howl: %s").search("| WARNING `… wolves howl: …` |")
