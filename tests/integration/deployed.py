"""What `deployments/README.md` says, typed: its commands, with the addresses of a test."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.integration.servers import Server, free_port, prefect_environment

PROJECT = Path(__file__).parents[2]
LIMIT_S = 180
END_S = 20.0

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = [
    re.sub(r"\s+# goes on: .*$", "", line)
    for block in BLOCK.findall((PROJECT / "deployments" / "README.md").read_text())
    for line in block.splitlines()
]

# A test does not wait half a minute for each step of Prefect's.
QUICK = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_PREFETCH_SECONDS": "1",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    # As the README has it for a server that people rely on.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
}


class Desk:
    """A place with a Prefect server where commands are typed.

    Args:
        home: an empty folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._dask_port = str(free_port())
        self.server = Server(home / "server", settings=QUICK)
        self.scheduler = f"tcp://127.0.0.1:{self._dask_port}"
        self.typed: set[str] = set()

    def run(self, command: str, **words: str) -> str:
        """Type a command of the README and wait until it has ended well.

        Args:
            command: the line as it stands there.
            words: what to type in place of words in it.

        Returns:
            What it printed.
        """
        ended = subprocess.run(
            **self._call(command, words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}"
        return ended.stdout

    @contextmanager
    def running(self, command: str) -> Iterator[Path]:
        """Type a command that goes on; end it, and all that it started, at the end.

        Args:
            command: the line as it stands in the README.

        Yields:
            The file that it prints to.
        """
        printed = self._home / f"{len(self.typed)}.log"
        with printed.open("wb") as out:
            process = subprocess.Popen(
                **self._call(command, {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield printed
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _call(self, command: str, words: dict[str, str]) -> dict[str, object]:
        assert command in README, f"deployments/README.md does not have: {command}"
        self.typed.add(command)
        environment = prefect_environment(self._home / "home", self.server.url) | QUICK
        environment["PYTHONPATH"] = str(PROJECT)
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        if command.startswith("prefect config "):
            del environment["PREFECT_API_URL"]
        here = command.replace("http://127.0.0.1:4200/api", self.server.url)
        typed = shlex.split(here.replace("8786", self._dask_port))
        while "=" in typed[0]:
            name, _, value = typed.pop(0).partition("=")
            environment[name] = value
        arguments = [words.get(word, word) for word in typed]
        return {"args": arguments, "env": environment, "cwd": PROJECT}
