"""A real Prefect server for a test: own port, own home, gone at the end."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

START_S = 90.0  # other tests use the CPUs, too
END_S = 15.0
# What would lead a child process to another server, or tell the world that we test.
FOREIGN = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_LOGGING_LEVEL")


def prefect_environment(home: Path, url: str | None = None) -> dict[str, str]:
    """Environment of a process that knows no Prefect but the one in `home`.

    Without the address of a server there is a database for one, which is empty.
    """
    if url is None:
        with_database(home)
    return _environment(home, url)


def with_database(home: Path) -> None:
    """Put an empty database into a home that has none.

    A server that finds none makes one, which takes ten seconds: half of its start.
    """
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "prefect.db").exists():
        shutil.copy(_empty_database(), home / "prefect.db")


@cache
def _empty_database() -> Path:
    home = Path(tempfile.mkdtemp(prefix="evolve-database-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(command, env=_environment(home), capture_output=True, check=True)
    return home / "prefect.db"


def _environment(home: Path, url: str | None = None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment |= {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Twenty seconds are not enough where other tests use the CPUs, too.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    if url is not None:
        environment["PREFECT_API_URL"] = url
    return environment


@contextmanager
def prefect_server(home: Path, port: int | None = None) -> Iterator[str]:
    """Start a server with its database in `home`, and give the URL of its API."""
    server = Server(home, port)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


class Server:
    """A server that can be stopped and started again, with the same address and database."""

    def __init__(
        self,
        home: Path,
        port: int | None = None,
        *,
        ui: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._home = home
        self._settings = settings or {}
        self._port = port or free_port()
        self._ui = ui
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/api"
        self.log = home / "server.log"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._home.mkdir(parents=True, exist_ok=True)
        ui = "--ui" if self._ui else "--no-ui"
        command = ["-m", "prefect", "server", "start", ui, "--port", str(self._port)]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                env={
                    **prefect_environment(self._home),
                    "PREFECT_SERVER_UI_API_URL": self.url,
                    **self._settings,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_until_healthy(self.url, self._process, self.log)
        except BaseException:
            self.stop()
            raise

    def freeze(self) -> None:
        """Let it hang: it takes connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it as an operator would; kill it if that takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)
        self._process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    raise TimeoutError(f"no healthy server at {url} after {START_S} s:\n{log.read_text()}")
