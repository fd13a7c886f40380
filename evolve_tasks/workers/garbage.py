"""Look for garbage less often while a run is under way, as Dask does in its own processes.

Modules of Prefect and Dask are 200,000 objects that the collector goes through from time to time:
0.1 to 0.3 s in the flow's process and in each worker, of the 1.5 s that ten thousand short sources
take. How often follows from how many objects are made and kept.
"""

from __future__ import annotations

import gc
import os
import threading

# As `dask scheduler` and `dask worker` set it for themselves, three times what CPython had
# (dask/distributed#1653). What a nanny starts is another process, and has CPython's own.
RARE = (2_100, 30, 30)

# CPython has had it for long; some of its versions have more. Who has less wants it so.
USUAL = 700

Thresholds = tuple[int, int, int]


class _Thresholds:
    """The collector's thresholds in this process, and who wants them raised."""

    def __init__(self) -> None:
        self._wanted: set[RarelyCollected] = set()
        self._raised: tuple[Thresholds, Thresholds] | None = None  # before, and since
        self._lock = threading.Lock()

    def raise_for(self, one: RarelyCollected) -> None:
        with self._lock:
            before = gc.get_threshold()
            if not self._wanted and before[0] >= USUAL:
                gc.set_threshold(*map(max, before, RARE))
                self._raised = before, gc.get_threshold()
            self._wanted.add(one)

    def put_back_for(self, one: RarelyCollected) -> None:
        with self._lock:
            self._wanted.discard(one)
            if self._wanted or self._raised is None:
                return
            (before, since), self._raised = self._raised, None
            if gc.get_threshold() == since:
                gc.set_threshold(*before)


class RarelyCollected:
    """Raise the collector's thresholds; the last of several that overlap puts them back.

    Who has turned the collector off, has it run more often than CPython does, or sets thresholds
    meanwhile, is left alone.
    """

    def __enter__(self) -> None:
        """Raise them."""
        _here.raise_for(self)

    def __exit__(self, *_: object) -> None:
        """Put them back; nothing happens if that was done before."""
        _here.put_back_for(self)


_here = _Thresholds()


def _in_child() -> None:
    """Runs of the parent are none of a process that was forked meanwhile, nor is its lock."""
    global _here
    raised, _here = _here._raised, _Thresholds()
    if raised is not None and gc.get_threshold() == raised[1]:
        gc.set_threshold(*raised[0])


os.register_at_fork(after_in_child=_in_child)
