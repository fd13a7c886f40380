"""Progress on a real (pseudo) terminal: bars there, and every line of the log whole."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.integration.test_embedded import SCRIPT, environment

__all__ = ["environment"]

pytestmark = pytest.mark.cluster

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
LOG_LINE = re.compile(r"^\d\d:\d\d:\d\d\.\d{3} \| ")


def run_on_terminal(command: list[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    """Run a command with a terminal as its standard streams; give its exit code and screen."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, env=env, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    screen = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side has closed it
            break
        if not read:
            break
        screen += read
    os.close(ours)
    return process.wait(60), ESCAPE.sub("", screen.decode(errors="replace"))


def test_bars_leave_the_log_whole(
    tmp_path: Path, environment: dict[str, str], prefect_api: str
) -> None:
    script = tmp_path / "script.py"
    talking = SCRIPT.replace(
        "return x + 1", 'get_run_logger().info("at %d", x)\n        return x + 1'
    )
    script.write_text(f"from prefect import get_run_logger\n{textwrap.dedent(talking)}")
    env = {**environment, "PREFECT_API_URL": prefect_api, "TERM": "xterm", "COLUMNS": "200"}
    code, screen = run_on_terminal(
        [sys.executable, str(script), "evolve", "as_completed"], env, tmp_path
    )
    assert code == 0, screen
    lines = re.split(r"[\r\n]+", screen)
    assert any("parse_file" in line and "━" in line for line in lines), screen
    # Workers in processes of their own logged them; their lines stand alone, beside no bar.
    told = [line for line in lines if re.search(r"- at \d$", line.rstrip())]
    assert len(told) >= 5, screen
    assert all(LOG_LINE.match(line) and "━" not in line for line in told), told


def test_nothing_is_drawn_where_nobody_wants_it(
    tmp_path: Path, environment: dict[str, str], prefect_api: str
) -> None:
    script = tmp_path / "script.py"
    asked = "strategy=strategy"
    assert asked in SCRIPT
    script.write_text(textwrap.dedent(SCRIPT).replace(asked, f"{asked}, progress=False"))
    env = {**environment, "PREFECT_API_URL": prefect_api, "TERM": "xterm", "COLUMNS": "200"}
    code, screen = run_on_terminal(
        [sys.executable, str(script), "evolve", "sequential"], env, tmp_path
    )
    assert code == 0, screen
    assert "RESULTS [1, 2, 3, 1, 2]" in screen
    assert "━" not in screen


def test_nothing_is_drawn_into_a_pipe(
    tmp_path: Path, environment: dict[str, str], prefect_api: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    ended = subprocess.run(
        [sys.executable, str(script), "evolve", "nested"],
        env={**environment, "PREFECT_API_URL": prefect_api},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert "━" not in ended.stdout + ended.stderr
    assert "RESULTS [1, 2, 3, 1, 2]" in ended.stdout
