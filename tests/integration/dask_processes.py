"""`dask scheduler` and `dask worker` as an operator starts them: by command line, with a log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
END_S = 30.0


class DaskProcess:
    """One of them, in a folder of its own with its log; killed at the end if it is still there.

    Args:
        folder: where it keeps its files; made if it is not there.
        kind: `"scheduler"` or `"worker"`.
        options: of the command.
        environment: what it has beside the environment of the tests.
        before: what stands before the command, as `ip netns exec NAME`.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        *options: str,
        environment: dict[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{kind}.log"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [*before, sys.executable, "-m", f"distributed.cli.dask_{kind}", *options]
        # Who starts a local cluster in this process may have asked for less in its logs.
        around = {name: text for name, text in os.environ.items() if "DASK_LOGGING" not in name}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--no-dashboard"],
                stdout=log,
                stderr=log,
                env=around | {"PYTHONPATH": path} | (environment or {}),
                cwd=folder,
                start_new_session=True,
            )

    def leave(self) -> None:
        """Ask it to end, as an operator or a job queue does, and wait until it has."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(END_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # It leads a group of its own: a nanny and its worker go together.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(END_S)
