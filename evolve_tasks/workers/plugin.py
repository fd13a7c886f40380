"""Bring a run to the workers once, and keep it warm there: a Dask worker plugin."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, suppress
from contextvars import copy_context

from distributed import Worker, WorkerPlugin, get_worker

from evolve_tasks.errors import ClusterUnfit
from evolve_tasks.naming import error_text
from evolve_tasks.workers.calls import RunSpec
from evolve_tasks.workers.console import forwarded
from evolve_tasks.workers.context import context_here, flush, surrounded
from evolve_tasks.workers.garbage import RarelyCollected
from evolve_tasks.workers.marks import Marks, marks_path
from evolve_tasks.workers.runtime import Runtime
from evolve_tasks.workers.task_runs import task_runs_are_of
from evolve_tasks.workers.transport import Packed

logger = logging.getLogger(__name__)

# How long after its start a worker gets what others have died with; starting takes longer.
SETTLED_S = 2.0


def plugin_name(run: str) -> str:
    """Name under which a run is registered with the workers."""
    return f"evolve-run-{run}"


def stop_name(run: str) -> str:
    """Name of the mark that a run has been stopped."""
    return f"evolve-stop-{run}"


def pause_name(run: str) -> str:
    """Name of the mark that a run is paused."""
    return f"evolve-pause-{run}"


class PauseMark(WorkerPlugin):
    """Present on a worker while a run is paused: nested sources look for its name."""


class StopMark(WorkerPlugin):
    """Present on a worker once a run has been stopped: units look for its name."""


class RunPlugin(WorkerPlugin):
    """Holds a run on a worker.

    Args:
        run: unique name of the run.
        context: name of the run context that it runs in, as `context_here` takes it.
        packed: the packed `RunSpec`; unpacked where it is first used, outside the event loop.
    """

    def __init__(self, run: str, context: str | None, packed: Packed) -> None:
        self.name = plugin_name(run)
        self._run = run
        self._context = context
        self._packed = packed

    def setup(self, worker: Worker) -> None:
        """Note the worker; the rest waits until it is needed."""
        self._worker = worker
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self._template = copy_context()
        self._stack = ExitStack()
        self._garbage = RarelyCollected()

    def settle(self) -> None:
        """Wait until this worker has been here for a moment; before what may kill it.

        A nanny does not start a worker again that dies before it has told that it is up.
        """
        time.sleep(max(0.0, self._since + SETTLED_S - time.monotonic()))

    def runtime(self) -> Runtime:
        """The run, ready: made by the first task of the run on this worker."""
        with self._lock:
            if self._runtime is None:
                self._template = context_here(self._context)
                try:
                    self._runtime = self._template.run(self._open)
                except BaseException:
                    self._template.run(self._stack.close)  # the next task tries it again
                    raise
                self._garbage.__enter__()
                if self.name not in self._worker.plugins:  # it was torn down meanwhile
                    self._garbage.__exit__()
            return self._runtime

    def _open(self) -> Runtime:
        spec = self._spec()
        task_runs_are_of(self._run)
        self._stack.enter_context(surrounded(spec.surroundings))
        self._stack.enter_context(forwarded(self._worker, self._run, spec.terminal_pid))
        mark, plugins = stop_name(self._run), self._worker.plugins
        address = self._worker.address
        return Runtime(
            spec,
            self._template,
            # The mark goes with the run; a unit may be left behind.
            lambda: mark in plugins or self.name not in plugins,
            address,
            marks=self._marks(address),
            gone=lambda: self.name not in plugins,
        )

    def _spec(self) -> RunSpec:
        try:
            spec: RunSpec = self._packed.value()
        except (ImportError, AttributeError) as error:
            # The functions travel by name: their module is missing here, or another version of it.
            raise ClusterUnfit(
                f"worker {self._worker.address} cannot load the stages ({error_text(error)}): "
                "install the code that they are in, in the version that the flow has, on all "
                "workers"
            ) from error
        return spec

    def _marks(self, address: str) -> Marks | None:
        if address.startswith("inproc://"):
            return None  # it dies with the flow
        try:
            marks = Marks(marks_path(self._run, address))
        except OSError as error:
            logger.warning(
                "Nobody will know what worker %s was at if it is killed (%s)", address, error
            )
            return None
        self._stack.callback(marks.close)
        return marks

    async def teardown(self, worker: Worker) -> None:
        """Send what Prefect still holds back on this worker."""
        self._garbage.__exit__()
        if self._runtime is None:
            return
        self._runtime.close()
        self._runtime = None
        try:
            await flush(worker)
        finally:
            # The connection may be gone with the flow; there is nobody left to tell.
            with suppress(Exception):
                self._template.run(self._stack.close)


def runtime_of(run: str, crashes: int = 0) -> Runtime:
    """The runtime of a run, inside a task on a worker.

    Args:
        run: unique name of the run.
        crashes: workers that died with what is to be run.

    Raises:
        ClusterUnfit: this worker lacks the code of the stages.
        RuntimeError: this worker has not been told of the run, or not any more.
    """
    plugin = get_worker().plugins.get(plugin_name(run))
    if not isinstance(plugin, RunPlugin):
        raise RuntimeError(
            f"run {run} is not registered on worker {get_worker().address}: the flow that began "
            "it has ended"
        )
    if crashes:
        plugin.settle()
    return plugin.runtime()
