"""Log lines of worker processes that share a terminal with the flow's progress bars.

A line that another process writes there would tear the bars. Such a worker sends its lines to
the flow instead, which prints them above the bars.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from distributed import Worker
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console


def console_topic(run: str) -> str:
    """Topic of Dask's events under which a run's log lines travel."""
    return f"evolve-console-{run}"


def log_consoles() -> list[Console]:
    """The consoles that Prefect's log goes to in this process."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    sinks = {sink for logger in loggers for sink in logger.handlers}
    return [sink.console for sink in sinks if isinstance(sink, PrefectConsoleHandler)]


@contextmanager
def forwarded(worker: Worker, run: str, terminal_pid: int | None) -> Iterator[None]:
    """Send log lines to the flow while a run is on this worker.

    Args:
        worker: the worker.
        run: unique name of the run.
        terminal_pid: process that shows progress on its terminal; `None` if there is none.
    """
    # A worker that the flow's process started writes to the flow's terminal; one that lives in
    # that process has the same console, and any other worker writes to a terminal of its own.
    if terminal_pid is None or os.getppid() != terminal_pid:
        yield
        return
    before = [(console, console.file) for console in log_consoles()]
    for console, _ in before:
        console.file = cast(IO[str], _Forward(worker, console_topic(run)))
    try:
        yield
    finally:
        for console, file in before:
            console.file = file


class _Forward(io.TextIOBase):
    def __init__(self, worker: Worker, topic: str) -> None:
        self._worker = worker
        self._topic = topic

    def write(self, text: str) -> int:
        self._worker.log_event(self._topic, text)
        return len(text)
