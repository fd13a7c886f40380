"""Every snippet of the README does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_embedded import environment

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS = BLOCK.findall((ROOT / "README.md").read_text())
PYTHON = [text for language, text in SNIPPETS if language == "python"]
SHELL = [
    line.partition("#")[0].split()
    for language, text in SNIPPETS
    if language in ("bash", "sh")
    for line in text.splitlines()
    if line.strip()
]

pytestmark = pytest.mark.cluster
__all__ = ["environment"]


def test_no_snippet_is_left_out() -> None:
    assert {language for language, _ in SNIPPETS} == {"python", "bash"}
    assert len(PYTHON) >= 4
    assert SHELL == [["make", "run"], ["make", "test"]]


@pytest.mark.parametrize("text", PYTHON, ids=lambda text: re.findall(r"def (\w+)", text)[-1])
def test_python(
    text: str, tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """Run it as a script of its own; what a `print` shows stands in the comment behind it.

    The first one starts a server of its own, as on the machine of a new user; the others share one.
    """
    if text != PYTHON[0]:
        environment["PREFECT_API_URL"] = request.getfixturevalue("prefect_api")
    else:
        environment["PREFECT_HOME"] = str(tmp_path / "new")
    script = tmp_path / "snippet.py"
    script.write_text(text)
    ended = subprocess.run(
        [sys.executable, script.name],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    expected = re.findall(r"print\(.*\)  # (.*)$", text, re.MULTILINE)
    assert expected
    assert ended.stdout.splitlines()[-len(expected) :] == expected


@pytest.mark.parametrize("command", SHELL, ids=" ".join)
def test_commands(command: list[str]) -> None:
    """The commands exist and reach their jobs; `make test` is what runs this test."""
    plan = subprocess.run(
        [*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    job = {"run": "flows.code_audit", "test": "pytest"}[command[1]]
    assert job in plan.stdout
