"""How far nested sources are, told to the flow while they are under way.

The flow hears of a nested source at its end; one with a million items would look idle for hours.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from distributed import Worker

# One topic for all runs: the scheduler keeps each topic, and its last events, for good.
TOPIC = "evolve-glimpses"

# Between two glimpses of a source; what shows them is no faster.
EVERY_S = 1.0


class Glimpse(NamedTuple):
    """Items of sources that are under way together.

    Args:
        run: unique name of the run.
        position: position of the first source.
        discovered: items that were found.
        done: of these, succeeded.
        failed: of these, failed.
    """

    run: str
    position: int
    discovered: int
    done: int
    failed: int


class Glimpses:
    """Tells how far sources are, now and then.

    Args:
        worker: the worker that they are on.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._due = 0.0
        self._shown: Glimpse | None = None

    def show(self, glimpse: Glimpse) -> float | None:
        """Tell the flow, if it was not told a moment ago.

        Returns:
            `None` if the flow knows; else seconds until it may be told.
        """
        if glimpse == self._shown:
            return None
        wait_s = self._due - time.monotonic()
        if wait_s > 0:
            return wait_s
        self._due, self._shown = time.monotonic() + EVERY_S, glimpse
        self._worker.log_event(TOPIC, tuple(glimpse))
        return None
