"""How a run is left before its end."""

from __future__ import annotations

import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Future

from evolve_tasks.strategies.ended import Ended
from evolve_tasks.strategies.submitting import Submitter

# How long a run that is left early waits for what is already running. Prefect gives a
# cancelled flow 30 s by default before it kills it; this leaves most of that.
ABANDON_S = 5.0


def abandon(submitter: Submitter, ended: Ended) -> None:
    """Let what runs end within `ABANDON_S`, then drop what is left."""
    if submitter.client.status != "running":
        return
    submitter.stop()
    futures = ended.under_way()
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    deadline = time.monotonic() + ABANDON_S
    with suppress(Empty):
        for _ in futures:
            done.get(timeout=max(0.0, deadline - time.monotonic()))
    if rest := [future for future in futures if not future.done()]:
        submitter.client.cancel(rest, asynchronous=False)
    for future in futures:
        future.release()
