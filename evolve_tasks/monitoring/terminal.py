"""Progress in the terminal: two bars where there is one, nothing where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from rich.theme import Theme

from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.workers.console import console_topic, log_consoles

REFRESH_S = 0.1  # ten pictures a second look smooth; drawing must not cost what it shows


def terminal() -> Console | None:
    """The terminal that Prefect's log goes to; `None` if it goes to a file or a pipe.

    It has to be that console: a second one would write across the lines of the log.
    """
    consoles = log_consoles() or [Console(file=sys.stderr)]
    return next((console for console in consoles if console.is_terminal), None)


@contextmanager
def showing(
    run: EvolvingRun, console: Console | None, client: Client | None
) -> Iterator[Callable[[], None]]:
    """Show a run while it is under way.

    Args:
        run: the run to show.
        console: where to; `None` shows nothing.
        client: brings the log lines of workers that share the terminal.

    Yields:
        A function to call after each step; it draws as often as makes sense.
    """
    if console is None:
        yield lambda: None
        return
    # Prefect's console knows the styles of its log only.
    with console.use_theme(Theme()):
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
            if now - drawn >= REFRESH_S:
                drawn = now
                draw()

        def draw() -> None:
            first, last = run.core.tallies[0], run.core.tallies[-1]
            progress.update(sources, completed=first.done + first.failed, total=first.discovered)
            progress.update(
                items,
                completed=last.done + last.failed + last.resumed,
                total=last.discovered,
                note=f"{last.failed} failed" if last.failed else "",
            )

        with progress, _lines_of_workers(run.run, console, client):
            yield show
            draw()


@contextmanager
def _lines_of_workers(run: str, console: Console, client: Client | None) -> Iterator[None]:
    if client is None:
        yield
        return

    def show(event: tuple[Any, Any]) -> None:
        _, text = event
        if isinstance(text, str) and text.strip():
            console.print(Text(text.rstrip("\n")), soft_wrap=True)

    client.subscribe_topic(console_topic(run), show)
    try:
        yield
    finally:
        if client.status == "running":
            client.unsubscribe_topic(console_topic(run))
