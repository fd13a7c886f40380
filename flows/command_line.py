"""What the flows have in common: their local clusters and their command lines."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, TypeAlias, cast

import dask
from prefect.futures import PrefectFuture
from prefect.logging.configuration import setup_logging
from prefect.task_runners import TaskRunner
from rich.console import Console

from evolve_tasks import EvolveTaskRunner

LocalRunner: TypeAlias = TaskRunner[PrefectFuture[Any]]

WIDTH = 140  # columns of a table in a file or pipe, where there is no terminal to ask

# Their flows show what failed in a table; a log line and a traceback for each file as well
# would bury it. Warnings and errors of everything else are shown.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "CRITICAL",
}


def local_cluster(workers: int, *, threads: int, processes: bool) -> LocalRunner:
    """Make a runner that starts a Dask cluster on this machine when it is first needed.

    Args:
        workers: N >= 1 workers.
        threads: N >= 1 threads of each.
        processes: whether they are processes; else they are threads of this one.
    """
    runner = EvolveTaskRunner(
        cluster_kwargs={
            "n_workers": workers,
            "threads_per_worker": threads,
            "processes": processes,
            "dashboard_address": None,  # its port may be taken, and nobody looks at it
        }
    )
    # `@flow` asks for a runner of any future, which no runner of one kind of future is.
    return cast(LocalRunner, runner)


def existing_cluster() -> LocalRunner | None:
    """Make a runner for the Dask cluster that Dask's own setting names, if it names one.

    The setting is `DASK_SCHEDULER_ADDRESS` in the environment, or `scheduler-address` in
    Dask's configuration.

    Returns:
        The runner; `None` where nothing is set, and a cluster has to be started.
    """
    address = dask.config.get("scheduler-address", None)
    return cast(LocalRunner, EvolveTaskRunner(address=address)) if address else None


def refuse_empty_address() -> None:
    """Refuse a setting that is there and names no cluster; called in the flow.

    A flow file that cannot be imported ends its process, and nobody is told why.

    Raises:
        ValueError: it was deployed without the address.
    """
    if dask.config.get("scheduler-address", None) == "":
        raise ValueError(
            "DASK_SCHEDULER_ADDRESS is empty: set it to the address of the Dask scheduler, as "
            "tcp://127.0.0.1:8786, and deploy again; or leave it out, to have a cluster started"
        )


def limit_console_logs() -> None:
    """Let Prefect and Dask log warnings only; what the user has set stays."""
    for name, level in _QUIET.items():
        # In the environment, because worker processes read it from there.
        os.environ.setdefault(name, level)
    setup_logging(incremental=True)


def console() -> Console:
    """Where results go: standard output, as wide as the terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def positive(text: str) -> int:
    """Read a number from 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def shown(text: str) -> str:
    """Make a text that can be printed and sent: file names may have bytes of any kind."""
    return text.encode(errors="backslashreplace").decode()
