"""How far a run is, in lines of its log: where no terminal shows it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import Event, Thread
from typing import Any

# A short run has its last line alone, and a night of work some fifty lines.
FIRST_S = 30.0
SLOWEST_S = 600.0


@contextmanager
def told_in_lines(
    text: Callable[[], str], logger: logging.Logger | Any, first_s: float = FIRST_S
) -> Iterator[None]:
    """Log how far a run is while the block runs, after twice the time each time.

    Args:
        text: how far it is, as one line.
        logger: where to.
        first_s: seconds until the first line.
    """
    over = Event()

    def tell() -> None:
        pause_s = first_s
        while not over.wait(pause_s):
            logger.info("Evolving: %s", text())
            pause_s = min(2 * pause_s, SLOWEST_S)

    # Prefect finds the run that a line belongs to in the context.
    thread = Thread(
        target=copy_context().run, args=(tell,), name="evolve-progress-lines", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
