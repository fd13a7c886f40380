"""Keep a local cluster from giving up workers that are only starting again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import dask

_SETTING = "distributed.deploy.lost-worker-timeout"
# A local cluster looks once, so long after it lost a worker; longer than any run takes.
_NEVER = "365 days"

_lock = threading.Lock()
_users = 0
_restoring = ExitStack()


@contextmanager
def lost_workers_return() -> Iterator[None]:
    """While this is entered, the clusters of this process wait for workers that were lost.

    `LocalCluster` looks whether a worker is back 15 s after it was lost, and closes its nanny for
    good if it is not there at that moment: one that needs longer to start, or that has been lost
    a second time meanwhile, is never replaced, and a run may be left with no workers. A nanny
    that was left alone starts them again. The setting is read when a worker is lost.

    Several runs in one process may overlap in any way; the last one restores the setting.
    """
    global _users
    with _lock:
        if not _users:
            _restoring.enter_context(dask.config.set({_SETTING: _NEVER}))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _restoring.close()
