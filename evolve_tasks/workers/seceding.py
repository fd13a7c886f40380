"""Wait inside a Dask task without holding a thread of the worker.

A task that waits for tasks it submitted deadlocks as soon as all threads wait like that, on
one thread at once. `secede` gives the thread's place away for the time of waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context

from distributed import get_worker, rejoin, secede
from distributed.threadpoolexecutor import thread_state, threads_lock
from distributed.worker import thread_state as task_state  # type: ignore[attr-defined]
from distributed.worker_state_machine import SecedeEvent
from prefect.context import FlowRunContext, TaskRunContext


@contextmanager
def seceded() -> Iterator[None]:
    """Leave the worker's thread pool and come back, whatever happens in between.

    Does nothing in a thread that is in no pool or has left it already: seceding twice raises,
    and rejoining without having seceded costs the pool a thread.
    """
    if not getattr(thread_state, "proceed", False):
        yield
        return
    copy_context().run(_secede_alone)
    try:
        yield
    finally:
        rejoin()


def secede_for_good() -> None:
    """Leave the worker's thread pool, whose place goes to another thread, until the task ends."""
    if getattr(thread_state, "proceed", False):
        copy_context().run(_secede_alone)


class PoolPlace:
    """The place of this thread in its worker's pool, which another thread may give away.

    Who is kept waiting by user code cannot secede itself; Dask's `secede` does the same, and
    means the thread that calls it.
    """

    def __init__(self) -> None:
        self._in_pool = getattr(thread_state, "proceed", False)
        self._left = False
        self._lock = threading.Lock()
        self._thread = threading.current_thread()
        # It may have left the pool with something that its task did before.
        self._of_pool = getattr(thread_state, "executor", None) is not None
        if self._in_pool:
            self._executor = thread_state.executor
            self._worker = get_worker()
            self._key, self._began_s = task_state.key, task_state.start_time

    @property
    def mine(self) -> bool:
        """Whether this thread is the one that has the place, or had it."""
        return self._of_pool and threading.current_thread() is self._thread

    def leave(self) -> None:
        """Let another thread have it, until the task ends."""
        with self._lock:
            if self._left or not self._in_pool:
                return
            self._left = True
        with threads_lock:
            self._executor._threads.discard(self._thread)
            self._executor._adjust_thread_count()
        now = time.time()
        seceded = SecedeEvent(
            key=self._key, compute_duration=now - self._began_s, stimulus_id=f"secede-{now}"
        )
        # In a context of its own: the event loop keeps it.
        Context().run(self._worker.loop.add_callback, self._worker.handle_stimulus, seceded)

    def settle(self) -> None:
        """Note in the thread itself that it has none any more, before its task ends."""
        if self._left:
            thread_state.proceed = False


def _secede_alone() -> None:
    # Seceding adds a callback to the worker's event loop, which keeps a copy of the context
    # variables; the next task on this worker would inherit the run contexts as its parents.
    FlowRunContext.__var__.set(None)  # type: ignore[arg-type]
    TaskRunContext.__var__.set(None)  # type: ignore[arg-type]
    secede()
