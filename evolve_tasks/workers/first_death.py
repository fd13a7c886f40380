"""Hear of a worker's death at once: a Dask scheduler plugin.

Dask runs a task again on other workers and gives up when the fourth has died with it. By then
a poisonous item has taken down four workers, each time with all that ran beside it, and nobody
has looked which item of the batch it was. Here the first death is told to the run, which decides
what runs again, how and beside what.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from distributed import Scheduler, SchedulerPlugin

_OF_A_RUN = re.compile("-[0-9a-f]{12}$")


def first_death_name(run: str) -> str:
    """Name under which the plugin of a run is registered with the scheduler."""
    return f"evolve-first-death-{run}"


class FirstDeath(SchedulerPlugin):
    """Lets the tasks of one run fail at the first death of a worker that has them.

    The scheduler counts the deaths of each task. This begins to count where Dask's patience ends;
    tasks of others keep theirs.

    Args:
        run: unique name of the run; the keys of its tasks are tuples whose first part ends so.
    """

    def __init__(self, run: str) -> None:
        self.name = first_death_name(run)
        self._run = run

    async def start(self, scheduler: Scheduler) -> None:
        """Hold back what the scheduler would say of our tasks: that four workers died."""
        # A function of the module: the logger keeps it once, however many runs there are.
        logging.getLogger("distributed.scheduler").addFilter(worth_logging)

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        """Look at tasks that have just been submitted, before any of them is sent to a worker."""
        for key in tasks:
            if isinstance(key, tuple) and str(key[0]).endswith(self._run):
                task = scheduler.tasks.get(key)
                if task is not None:
                    task.suspicious = scheduler.allowed_failures


def worth_logging(record: logging.LogRecord) -> bool:
    """Whether a log record of the scheduler is anything but its count of a run's deaths."""
    if not str(record.msg).startswith("Task %s marked as failed"):
        return True
    key = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return not (isinstance(key, tuple) and _OF_A_RUN.search(str(key[0])))
