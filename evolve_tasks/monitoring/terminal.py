"""Progress in the terminal: two bars, and the lines of workers above them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from rich.theme import Theme

from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.workers.console import console_topic, log_consoles


def terminal() -> Console | None:
    """The terminal that Prefect's log goes to; `None` if it goes to a file or a pipe.

    It has to be that console: a second one would write across the lines of the log.
    """
    consoles = log_consoles() or [Console(file=sys.stderr)]
    return next((console for console in consoles if console.is_terminal), None)


class _Bars(Progress):
    """Looks at the run whenever it is drawn."""

    def __init__(self, run: EvolvingRun, console: Console) -> None:
        self._run = run
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._sources = self.add_task(run.stages[0].name, total=None, note="")
        self._items = self.add_task(run.stages[-1].name, total=None, note="")

    def get_renderables(self) -> Iterator[RenderableType]:
        if len(self.tasks) == 2:
            progress = self._run.progress
            self._set(self._sources, progress.sources_ended, progress.sources, "")
            note = f"{progress.failed} failed" if progress.failed else ""
            self._set(self._items, progress.ended, progress.discovered, note)
        yield from super().get_renderables()

    def _set(self, bar: TaskID, completed: int, total: int, note: str) -> None:
        # Not `update`, which may draw again.
        task = self._tasks[bar]
        task.completed, task.total, task.fields["note"] = completed, total, note


@contextmanager
def showing(run: EvolvingRun, console: Console, client: Client | None) -> Iterator[None]:
    """Show a run while it is under way; ten pictures a second, whatever its pace.

    Args:
        run: the run to show.
        console: where to.
        client: brings the log lines of workers that share the terminal.
    """
    # Prefect's console knows the styles of its log only.
    with (
        console.use_theme(Theme()),
        _Bars(run, console),
        _lines_of_workers(run.run, console, client),
    ):
        yield


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
