"""Bring a run to the workers once, and keep it warm there: a Dask worker plugin.

The Prefect context of a flow run costs 25 ms to serialize and 50 ms to hydrate. It travels
with this plugin, once to each worker, also to those that join later, and is hydrated once in
each. Units run in copies of the context variables that come of it.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from contextvars import copy_context
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from prefect.context import SyncClientContext, hydrated_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from evolve_tasks.workers.console import forwarded
from evolve_tasks.workers.runtime import Runtime
from evolve_tasks.workers.transport import Packed

FLUSH_S = 10.0  # how long a worker may take to send its last events and logs at the end of a run


def plugin_name(run: str) -> str:
    """Name under which a run is registered with the workers."""
    return f"evolve-run-{run}"


def stop_name(run: str) -> str:
    """Name of the mark that a run has been stopped."""
    return f"evolve-stop-{run}"


class StopMark(WorkerPlugin):
    """Present on a worker once a run has been stopped: units look for its name."""


class RunPlugin(WorkerPlugin):
    """Holds a run on a worker.

    Args:
        run: unique name of the run.
        spec: the packed `RunSpec`; unpacked where it is first used, outside the event loop.
    """

    def __init__(self, run: str, spec: Packed) -> None:
        self.name = plugin_name(run)
        self._run = run
        self._spec = spec

    def setup(self, worker: Worker) -> None:
        """Note the worker; the rest waits until it is needed."""
        self._worker = worker
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self._template = copy_context()
        self._stack = ExitStack()

    def runtime(self) -> Runtime:
        """The run, hydrated: made by the first task of the run on this worker."""
        with self._lock:
            if self._runtime is None:
                self._template = copy_context()
                self._runtime = self._template.run(self._hydrate)
            return self._runtime

    def _hydrate(self) -> Runtime:
        spec = self._spec.value()
        self._stack.enter_context(hydrated_context(spec.context))
        self._stack.enter_context(SyncClientContext())
        self._stack.enter_context(forwarded(self._worker, self._run, spec.terminal_pid))
        mark, plugins = stop_name(self._run), self._worker.plugins
        return Runtime(spec, self._template, lambda: mark in plugins, self._worker.address)

    async def teardown(self, worker: Worker) -> None:
        """Send what Prefect still holds back on this worker, then let go of the context."""
        if self._runtime is None:
            return
        self._runtime = None
        for service in (EventsWorker, APILogWorker):
            draining: Any = service.drain_all(timeout=FLUSH_S)
            await draining
        # The connection may be gone with the flow; there is nobody left to tell.
        with suppress(Exception):
            self._template.run(self._stack.close)


def runtime_of(run: str) -> Runtime:
    """The runtime of a run, inside a task on a worker.

    Raises:
        RuntimeError: this worker has not been told of the run, or not any more.
    """
    plugin = get_worker().plugins.get(plugin_name(run))
    if not isinstance(plugin, RunPlugin):
        raise RuntimeError(
            f"run {run} is not registered on worker {get_worker().address}: the flow that began "
            "it has ended"
        )
    return plugin.runtime()
