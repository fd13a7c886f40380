"""Let worker processes close in silence.

A heartbeat that is under way when a worker closes finds its connection gone, and Dask logs a
traceback for it. After a run that went well that looks like a fault. A scheduler that is lost
while a worker is running is still logged.
"""

from __future__ import annotations

import logging

from distributed import Worker, WorkerPlugin
from distributed.core import Status

_HEARTBEAT_FAILED = "Failed to communicate with scheduler during heartbeat"
_ALIVE = (Status.init, Status.starting, Status.running, Status.paused)


class QuietClosing(WorkerPlugin):
    """Keeps the heartbeat of a closing worker from being logged as a failure."""

    name = "evolve-quiet-closing"

    def setup(self, worker: Worker) -> None:
        """Watch what Dask's workers log in this process; there may be several in it."""
        logging.getLogger("distributed.worker").addFilter(worth_logging)


def worth_logging(record: logging.LogRecord) -> bool:
    """Whether a log record of Dask's workers tells of anything but their closing."""
    if not str(record.msg).startswith(_HEARTBEAT_FAILED) or record.exc_info is None:
        return True
    # The error was caught in the method of the worker whose heartbeat it was.
    traceback = record.exc_info[2]
    worker = traceback.tb_frame.f_locals.get("self") if traceback is not None else None
    return not isinstance(worker, Worker) or worker.status in _ALIVE
