"""A Prefect server and Dask clusters, all of them processes of their own, ended by their ids.

Imports nothing of Prefect, which reads its settings when it is imported: `isolate` has to come
before that.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from distributed import Client

ROOT = Path(__file__).resolve().parent.parent
START_S = 120.0  # the first start in a new home migrates a database
END_S = 15.0
SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A scheduler in a process of its own, and its workers.

    Args:
        address: of the scheduler.
        scheduler_pid: its process.
        threads: worker threads, all of them together.
    """

    address: str
    scheduler_pid: int
    threads: int


def isolate(home: Path) -> None:
    """Forget every Prefect setting of whoever started us, and have a home of our own."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ |= {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Logs go to the API as they always do; a terminal would be measured with its own speed.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """Start a server with its database in `home`; everything in this process then uses it."""
    isolate(home)
    home.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = ["prefect", "server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(port)]
    with process(command, home / "server.log") as server:
        url = f"http://127.0.0.1:{port}/api"
        _wait_until_healthy(url, server, home / "server.log")
        os.environ["PREFECT_API_URL"] = url
        try:
            yield url
        finally:
            del os.environ["PREFECT_API_URL"]


@contextmanager
def dask_cluster(home: Path, *, workers: int, threads: int) -> Iterator[Cluster]:
    """Start a scheduler and so many worker processes, each with so many threads."""
    home.mkdir(parents=True, exist_ok=True)
    contact = home / "scheduler.json"
    known = ["--scheduler-file", str(contact)]
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    scheduler_command = ["dask", "scheduler", *known, *local, "--port", "0"]
    worker_command = ["dask", "worker", *known, *local, "--local-directory", str(home)]
    worker_command += ["--nworkers", str(workers), "--nthreads", str(threads)]
    with (
        process(scheduler_command, home / "scheduler.log") as scheduler,
        process(worker_command, home / "workers.log"),
    ):
        deadline = time.monotonic() + START_S
        while not contact.exists():
            _see_that_it_runs(scheduler, home / "scheduler.log", deadline)
        with Client(scheduler_file=str(contact), set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=START_S)
            address = str(client.scheduler_info()["address"])
        yield Cluster(address, scheduler.pid, workers * threads)


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m ...`; at the end it is ended by its id, with all that it has started."""
    with log.open("wb") as written:
        started = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=written, stderr=subprocess.STDOUT
        )
    try:
        yield started
    finally:
        end(started)


def end(started: subprocess.Popen[Any]) -> None:
    """End a process by its id: first asked, then forced, with all that it has started."""
    try:
        tree = psutil.Process(started.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    started.terminate()
    try:
        started.wait(END_S)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()
    _, left = psutil.wait_procs(tree, timeout=END_S)
    for child in left:
        child.kill()


def settle(client: Client) -> None:
    """Wait until nothing is left on the cluster of what ran before."""
    deadline = time.monotonic() + SETTLE_S
    while client.run_on_scheduler(_tasks):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the cluster still has tasks after {SETTLE_S:.0f} s")
        time.sleep(0.05)


def _tasks(dask_scheduler: object = None) -> int:
    return len(getattr(dask_scheduler, "tasks", ()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _see_that_it_runs(started: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    if started.poll() is not None:
        raise RuntimeError(f"it ended with {started.returncode}:\n{log.read_text()}")
    if time.monotonic() > deadline:
        raise TimeoutError(f"it is not up after {START_S:.0f} s:\n{log.read_text()}")
    time.sleep(0.1)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        _see_that_it_runs(server, log, deadline)
