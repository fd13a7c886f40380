"""Prefect's run contexts on a worker: brought once, hydrated once, copied for each task.

The context of a flow run costs 25 ms to serialize and 50 ms to hydrate. It travels in a Dask
worker plugin, once to each worker, also to those that join later, and is hydrated once in
each. Tasks run in copies of the context variables that come of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from prefect.context import FlowRunContext, SettingsContext, SyncClientContext, hydrated_context
from prefect.results import default_cache

from evolve_tasks.workers.announcing import afterwards
from evolve_tasks.workers.dask_span import in_our_span
from evolve_tasks.workers.draining import drain
from evolve_tasks.workers.prints import prints_heard
from evolve_tasks.workers.timed import TimedThreads
from evolve_tasks.workers.transport import Packed


class ContextPlugin(WorkerPlugin):
    """Holds a run context on a worker.

    Args:
        name: unique name of the context.
        packed: what `portable_context` gave; unpacked where it is first used, outside the
            event loop.
    """

    def __init__(self, name: str, packed: Packed) -> None:
        self.name = name
        self._packed = packed

    def setup(self, worker: Worker) -> None:
        """The rest waits until it is needed."""
        self._lock = threading.Lock()
        self._template: Context | None = None
        self._stack = ExitStack()
        self.threads = TimedThreads()

    def template(self) -> Context:
        """The context variables of the flow run: made by the first of its tasks here."""
        with self._lock:
            if self._template is None:
                # A copy, because Dask keeps the worker in a context variable, too; and the span of
                # the task, which is not that of the tasks to come.
                with in_our_span():
                    template = copy_context()
                template.run(self._hydrate)
                self._template = template
            return self._template

    def _hydrate(self) -> None:
        self._stack.enter_context(prints_heard())
        self._stack.enter_context(hydrated_context(self._packed.value()))
        self._stack.enter_context(SyncClientContext())
        _here.set(_Here(self.name, FlowRunContext.get(), SettingsContext.get()))

    async def teardown(self, worker: Worker) -> None:
        """Send what Prefect still holds back on this worker, then let go of the context."""
        self.threads.close()
        if self._template is None:
            return
        template, self._template = self._template, None
        await flush(worker)
        # The connection may be gone with the flow; there is nobody left to tell.
        with suppress(Exception):
            template.run(self._stack.close)


async def flush(worker: Worker) -> None:
    """Send the events and log lines that are held back in this process."""
    await asyncio.to_thread(afterwards.drain)
    if any(isinstance(plugin, ContextPlugin) for plugin in worker.plugins.values()):
        # A service that is drained takes nothing more, and others are still at work here: it sends
        # what it has, and the last of them drains it.
        return
    await drain()


def context_here(name: str | None) -> Context:
    """A fresh copy of a run context, inside a task on a worker.

    Args:
        name: its name; `None` where all of it travels with each task.

    Raises:
        RuntimeError: this worker has not been told of it, or not any more.
    """
    if name is None:
        return copy_context()
    return _registered(name).template().copy()


def _registered(name: str) -> ContextPlugin:
    plugin = get_worker().plugins.get(name)
    if not isinstance(plugin, ContextPlugin):
        raise RuntimeError(
            f"the run context {name} is not registered on worker {get_worker().address}: the "
            "flow run that began this task has ended"
        )
    return plugin


@contextmanager
def threads_here(name: str | None) -> Iterator[TimedThreads]:
    """Give the threads for tasks with a time limit of a run context, inside a task on a worker.

    Args:
        name: its name, as `context_here` takes it.

    Raises:
        RuntimeError: this worker has not been told of it, or not any more.
    """
    if name is not None:
        yield _registered(name).threads
        return
    threads = TimedThreads()
    try:
        yield threads
    finally:
        threads.close()


@contextmanager
def tracking_alone() -> Iterator[None]:
    """Keep what Prefect notes of results and assets for a single task.

    It notes each result in the flow run context, to know dependencies, and keeps the last
    thousand in memory. On a worker the context lives as long as the flow run: the notes would
    pile up, and large results fill the memory.
    """
    flow_run = FlowRunContext.get()
    if flow_run is None:
        yield
        return
    fresh: dict[str, Any] = {"run_results": {}, "task_run_assets": {}}
    if (store := flow_run.result_store) is not None:
        fresh["result_store"] = store.model_copy(update={"cache": default_cache()})
    with flow_run.model_copy(update=fresh) as alone:
        here = _here.get()
        unchanged = here is not None and here.flow_run is flow_run
        token = _here.set(replace(here, flow_run=alone) if here and unchanged else here)
        try:
            yield
        finally:
            _here.reset(token)


def on_worker() -> bool:
    """Whether the caller is a task on a Dask worker."""
    try:
        get_worker()
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Here:
    """Which registered context the variables around the caller come from."""

    name: str
    flow_run: FlowRunContext | None
    settings: SettingsContext | None


_here: ContextVar[_Here | None] = ContextVar("evolve_context", default=None)


def name_here() -> str | None:
    """Name of the registered context around the caller, if it has not been changed since."""
    here = _here.get()
    if here is None:
        return None
    same = here.flow_run is FlowRunContext.get() and here.settings is SettingsContext.get()
    return here.name if same else None


@contextmanager
def surrounded(surroundings: dict[str, Any]) -> Iterator[None]:
    """Enter what is around a single task: tags, the task that submitted it, its assets.

    Args:
        surroundings: those parts of what `serialize_context` gives that are set.
    """
    if not surroundings:
        yield
        return
    warm = SyncClientContext.get()
    with hydrated_context(surroundings, client=warm.client if warm else None):
        yield
