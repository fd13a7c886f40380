"""Look for garbage less often while a run is under way, as Dask does for its own processes.

Modules of Prefect and Dask are 200,000 objects that the collector goes through from time to time:
0.1 to 0.3 s in the flow's process and in each worker, of the 1.5 s that ten thousand short sources
take. How often follows from how many objects are made and kept.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Three times CPython's own, as `dask scheduler` and `dask worker` set it for themselves
# (dask/distributed#1653). What a nanny starts is another process, and has CPython's own.
RARE = (2_100, 30, 30)

Thresholds = tuple[int, int, int]

_lock = threading.Lock()
_runs = 0
_raised: tuple[Thresholds, Thresholds] | None = None  # before, and since


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Raise the collector's thresholds; the last of several that overlap puts them back.

    Who has turned the collector off, or sets thresholds meanwhile, is left alone.
    """
    global _runs, _raised
    with _lock:
        _runs += 1
        before = gc.get_threshold()
        if _runs == 1 and before[0] > 0:
            since = tuple(map(max, before, RARE))
            gc.set_threshold(*since)
            _raised = before, gc.get_threshold()
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if _runs == 0 and _raised is not None:
                before, since = _raised
                _raised = None
                if gc.get_threshold() == since:
                    gc.set_threshold(*before)
