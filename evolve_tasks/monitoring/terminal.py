"""Progress in the terminal: two bars where there is one, nothing where there is none."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evolve_tasks.evolving import EvolvingRun

REFRESH_S = 0.1  # ten pictures a second look smooth; drawing must not cost what it shows


@contextmanager
def showing(run: EvolvingRun, wanted: bool) -> Iterator[Callable[[], None]]:
    """Show a run while it is under way.

    Args:
        run: the run to show.
        wanted: whether the options ask for it.

    Yields:
        A function to call after each step; it draws as often as makes sense.
    """
    console = _log_console()
    if not (wanted and console.is_terminal):
        yield lambda: None
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    sources = progress.add_task(run.stages[0].name, total=None, note="")
    items = progress.add_task(run.stages[-1].name, total=None, note="")
    drawn = 0.0

    def show() -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn < REFRESH_S:
            return
        drawn = now
        first, last = run.core.tallies[0], run.core.tallies[-1]
        progress.update(sources, completed=first.done + first.failed, total=first.discovered)
        progress.update(
            items,
            completed=last.done + last.failed + last.resumed,
            total=last.discovered,
            note=f"{last.failed} failed" if last.failed else "",
        )

    with progress:
        yield show


def _log_console() -> Console:
    """The console that Prefect's log goes to: a second one would write across its lines."""
    for name in ("prefect", "prefect.flow_runs", None):
        for sink in logging.getLogger(name).handlers:
            if isinstance(sink, PrefectConsoleHandler):
                return sink.console
    return Console(file=sys.stderr)
