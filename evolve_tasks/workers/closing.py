"""Let worker processes close in silence.

A heartbeat that is under way when a worker closes finds its connection gone, and Dask logs a
traceback for it. After a run that went well that looks like a fault. A scheduler that is lost
while a worker is running is still logged.
"""

from __future__ import annotations

import logging
from weakref import WeakSet

from distributed import Worker, WorkerPlugin
from distributed.core import Status

_HEARTBEAT_FAILED = "Failed to communicate with scheduler during heartbeat"
_ALIVE = (Status.init, Status.starting, Status.running, Status.paused)


class QuietClosing(WorkerPlugin):
    """Keeps the heartbeat of a closing worker from being logged as a failure."""

    name = "evolve-quiet-closing"

    def setup(self, worker: Worker) -> None:
        """Watch the worker, and what Dask logs in its process."""
        _workers_here.add(worker)
        logging.getLogger("distributed.worker").addFilter(worth_logging)


# Several workers share one process where they are threads of it.
_workers_here: WeakSet[Worker] = WeakSet()


def worth_logging(record: logging.LogRecord) -> bool:
    """Whether a log record of Dask's workers tells of anything but their closing."""
    if not str(record.msg).startswith(_HEARTBEAT_FAILED):
        return True
    return any(worker.status in _ALIVE for worker in _workers_here)
