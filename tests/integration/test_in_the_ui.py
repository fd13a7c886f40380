"""`make ui`: a server, a run, the address of its page, and nothing left after Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.integration.servers import free_port, prefect_environment
from tests.integration.waiting import until

pytestmark = pytest.mark.cluster


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    children = [
        int(child)
        for thread in Path(f"/proc/{pid}/task").glob("*/children")
        for child in thread.read_text().split()
    ]
    return children + [below for child in children for below in descendants(child)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_shows_a_run_and_leaves_nothing(tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.in_the_ui", "--port", str(port)],
        env=prefect_environment(tmp_path / "home") | {"TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        stdout=out.open("w"),
        stderr=subprocess.STDOUT,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    started: list[int] = []
    try:
        until(lambda: "The run is over" in out.read_text() or process.poll(), "it ran", 150)
        assert process.poll() is None, out.read_text()
        page = re.search(r"The run: (http\S+)", out.read_text())
        assert page is not None
        address, _, flow_run_id = page.group(1).rpartition("/runs/flow-run/")
        assert "<html" in httpx.get(address).text
        known = httpx.get(f"{address}/api/flow_runs/{flow_run_id}").json()
        assert known["state"]["type"] == "COMPLETED"
        started = descendants(process.pid)
        assert started
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(map(alive, started)), "all that it started has ended")
    assert not list(tmp_path.glob("evolve-ui-*"))
