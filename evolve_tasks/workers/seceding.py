"""Wait inside a Dask task without holding a thread of the worker.

A task that waits for tasks it submitted deadlocks as soon as all threads wait like that, on
one thread at once. `secede` gives the thread's place away for the time of waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context

from distributed import rejoin, secede
from distributed.threadpoolexecutor import thread_state
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


def _secede_alone() -> None:
    # Seceding adds a callback to the worker's event loop, which keeps a copy of the context
    # variables; the next task on this worker would inherit the run contexts as its parents.
    FlowRunContext.__var__.set(None)  # type: ignore[arg-type]
    TaskRunContext.__var__.set(None)  # type: ignore[arg-type]
    secede()
