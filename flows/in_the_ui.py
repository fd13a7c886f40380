"""Look at an evolving run in the Prefect UI: a server, the example, the address of its page.

    python -m flows.in_the_ui          # or: make ui

Ctrl-C ends everything that it started and removes what the server wrote.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from uuid import UUID

import httpx

USUAL_PORT = 4200
START_S = 120.0  # the first start makes a database
END_S = 10.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a server, run the example against it, and wait for Ctrl-C.

    Args:
        arguments: of the command line; `None`: those of this process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, help=f"of the server; {USUAL_PORT} if it is free")
    parser.add_argument("--strategy", default="as_completed", help="of the example, or all")
    given = parser.parse_args(arguments)
    port = _free_port() if given.port is None else _own_port(given.port)
    with TemporaryDirectory(prefix="evolve-ui-") as home, _terminable():
        environment = {
            # A server that is configured here is somebody's own, and so is its database.
            **{name: text for name, text in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": home,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
            # Task runs are seen soon after they ended.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        }
        serve = ["prefect", "server", "start", "--port", str(port)]
        example = ["flows.evolving_files", "--strategy", given.strategy]
        try:
            with _running(serve, environment, quiet=True) as server:
                _wait_for(server, port)
                with _running(example, environment) as flow:
                    print(f"The run: {_page(flow, port)}", flush=True)
                    flow.wait()
                    print("The run is over, and its page is still there. Ctrl-C ends the server.")
                    server.wait()
        except KeyboardInterrupt:
            print("Ended.")


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end this as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _running(
    module: Sequence[str], environment: dict[str, str], *, quiet: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module as a process, in a group of its own; end the group with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        env=environment,
        stdout=subprocess.DEVNULL if quiet else None,
        start_new_session=True,  # Ctrl-C is for us, who end things in order
    )
    try:
        yield process
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, how)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                continue
            break


def _free_port() -> int:
    try:
        return _own_port(USUAL_PORT)
    except SystemExit:
        return _own_port(0)


def _own_port(port: int) -> int:
    """The port if nobody has it; for 0 one that nobody has."""
    with socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            here.bind(("127.0.0.1", port))
        except OSError as error:
            raise SystemExit(f"port {port} cannot be used ({error}); give another --port") from None
        return int(here.getsockname()[1])


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        if server.poll() is not None:
            break
        try:
            if httpx.get(f"http://127.0.0.1:{port}/api/health").status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass  # it is still starting
        time.sleep(0.2)
    raise SystemExit(f"the Prefect server does not answer on port {port}; try --port")


def _page(flow: subprocess.Popen[bytes], port: int) -> str:
    """The address of the page of the first flow run; asked for until there is one."""
    question = {"sort": "START_TIME_ASC", "limit": 1}
    while flow.poll() is None:
        try:
            found = httpx.post(f"http://127.0.0.1:{port}/api/flow_runs/filter", json=question)
        except httpx.HTTPError:
            found = None  # it is busy; it is asked again
        if found is not None and found.is_success and found.json():
            return f"http://127.0.0.1:{port}/runs/flow-run/{UUID(found.json()[0]['id'])}"
        time.sleep(0.2)
    raise SystemExit(f"the flow ended with {flow.returncode} before the server knew of it")


if __name__ == "__main__":
    main()
