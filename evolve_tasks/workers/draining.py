"""Prefect's services in a worker process: they send what they hold, and leave nothing behind.

Prefect ends a service at the end of a process, and keeps each until then, with all that it has:
the run context in which it began, its connection, and the events that it sent last. A worker
outlives thousands of flow runs; some 5 MB were left of each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from prefect._internal.concurrency.threads import get_global_loop
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

FLUSH_S = 10.0  # how long a worker may take to send its last events and logs

_forgetting = threading.Lock()  # workers in one process may have a loop each


async def drain() -> None:
    """Have the services send what they hold, and end; who needs one later gets another."""
    for service in (EventsWorker, APILogWorker):
        draining: Any = service.drain_all(timeout=FLUSH_S)
        await draining
    # Neither can be taken back by other means; and what has ended has nothing left to do.
    with _forgetting:
        _forget_ended(get_global_loop()._on_shutdown, lambda call: call.fn)
        _forget_ended(getattr(threading, "_threading_atexits", []), lambda call: call.func)


def _forget_ended(calls: list[Any], function_of: Callable[[Any], Any]) -> None:
    """Take calls of services that have ended out of a list, to which others may add."""
    for place in reversed(range(len(calls))):
        service = getattr(function_of(calls[place]), "__self__", None)
        if isinstance(service, EventsWorker | APILogWorker):
            over = service._done_event
            if over is not None and over.is_set():
                del calls[place]
