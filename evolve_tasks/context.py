"""Prefect's run contexts on their way to the workers: what travels, once, and under which name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from copy import copy
from typing import Any
from uuid import uuid4

from distributed import Client, SchedulerPlugin, WorkerPlugin
from prefect.context import (
    FlowRunContext,
    SettingsContext,
    TagsContext,
    TaskRunContext,
    serialize_context,
)
from prefect_dask.task_runners import DaskTaskRunner

from evolve_tasks.errors import ClusterUnfit, InvalidInput
from evolve_tasks.versions import require_same_versions
from evolve_tasks.workers.context import ContextPlugin, name_here, on_worker
from evolve_tasks.workers.dask_span import forget_groups
from evolve_tasks.workers.transport import Packed

_logger = logging.getLogger(__name__)

# What differs from task to task; the rest of a run context is that of the flow run.
_AROUND_A_TASK = ("task_run_context", "tags_context", "asset_context")


class RunContexts:
    """The run contexts of a flow run that its workers know.

    There is one as a rule. A flow that changes its settings as it goes has one for each
    setting that it uses.

    Args:
        client: the client whose workers are meant.
        kind: class of the task runner that tasks find there.
    """

    def __init__(self, client: Client, kind: type[DaskTaskRunner]) -> None:
        self._client = client
        self._kind = kind
        self._lock = threading.Lock()
        # The contexts are held, so that their identities are not given to others.
        self._names: dict[tuple[int, ...], tuple[FlowRunContext | None, Any, Any, str]] = {}

    def current(self) -> str | None:
        """Name of the run context around the caller; brought to the workers if it is new.

        Returns:
            The name; `None` on a worker, in a context that is not the flow run's own: in a
            subflow, or with settings changed there. It then travels whole with each task.

        Raises:
            InvalidInput: it cannot be pickled, as with an open file among the parameters of
                the flow.
            ClusterUnfit: as `register`.
        """
        if (name := name_here()) is not None or on_worker():
            return name
        flow_run, settings = FlowRunContext.get(), SettingsContext.get()
        # A scheduler that was started again, or that took us for gone, does not know them.
        connection = self._client.scheduler_comm
        identity = (id(flow_run), id(settings), id(connection))
        with self._lock:
            if identity not in self._names:
                name = self._of_equal(flow_run, settings, connection) or self._register()
                self._names[identity] = flow_run, settings, connection, name
            return self._names[identity][-1]

    def _of_equal(
        self, flow_run: FlowRunContext | None, settings: SettingsContext | None, connection: Any
    ) -> str | None:
        """Name of a context with equal settings; comparing them costs less than Prefect's hash."""
        wanted = settings and settings.settings
        for other_run, other, over, name in self._names.values():
            same = other_run is flow_run and over is connection
            if same and (other and other.settings) == wanted:
                return name
        return None

    def _register(self) -> str:
        name = f"evolve-context-{uuid4().hex[:12]}"
        try:
            packed = Packed.of(portable_context(self._client, self._kind))
        except Exception as error:
            raise InvalidInput(
                f"the context of the flow run cannot be pickled ({type(error).__name__}: {error}), "
                "so it cannot be sent to the workers; give flows plain values as parameters, and "
                "open files, locks and connections where they are used"
            ) from error
        register(self._client, ContextPlugin(name, packed))
        return name

    def close(self) -> None:
        """Take them away again; the workers send what they still hold for the API."""
        with self._lock:
            names = {name for *_, name in self._names.values()}
            self._names.clear()
        for name in names:
            if self._client.status != "running":
                return
            cleared(self._client.unregister_worker_plugin, name)
        if names and self._client.status == "running":
            cleared(self._client.run_on_scheduler, forget_groups)

    def around(self, name: str | None) -> dict[str, Any]:
        """What is around a single task and not part of the run context.

        Args:
            name: name of the run context, as `current` gave it.

        Returns:
            What `workers.context.surrounded` takes.
        """
        parts: dict[str, Any] = {}
        if name is None:
            parts |= portable_context(self._client, self._kind)
        if (parent := TaskRunContext.get()) is not None:
            parts["task_run_context"] = parent.serialize()
        if (tags := TagsContext.get()).current_tags:
            parts["tags_context"] = tags.serialize()
        return parts


def cleared(clear: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    """Take something away from a cluster, whose worker or scheduler may be gone, or be coming.

    What was to be done is done by then: that somebody could not be told must not undo it.
    """
    try:
        clear(*arguments, **keywords)
    except Exception as error:
        _logger.debug("It could not be taken away: %s %s: %r", clear, arguments, error)


def register(client: Client, plugin: WorkerPlugin | SchedulerPlugin) -> None:
    """Bring a plugin of ours to a cluster.

    Raises:
        ClusterUnfit: the scheduler or a worker cannot take it, as without this package or with
            another version of it.
    """
    require_same_versions(client)
    try:
        client.register_plugin(plugin)
    except Exception as error:
        address = client.scheduler.address if client.scheduler is not None else "?"
        raise ClusterUnfit(
            f"the Dask cluster at {address} cannot take the run ({type(error).__name__}: {error}): "
            "install evolve-tasks and prefect, in the versions that the flow has, on the "
            "scheduler and on all workers"
        ) from error


def portable_context(client: Client, kind: type[DaskTaskRunner]) -> dict[str, Any]:
    """Serialize the flow run's context without what only the flow's own process can use.

    Workers need the flow's name and settings, not its function: that may close over anything,
    an open file or the cluster itself, and would fail to be pickled. Nor can they use its
    runner's cluster object; they have the scheduler's address.

    Args:
        client: the client whose workers will use it.
        kind: class of the task runner that tasks find there.

    Returns:
        What `prefect.context.hydrated_context` takes.
    """
    context = {**serialize_context(), **{part: {} for part in _AROUND_A_TASK}}
    flow_run_context = context["flow_run_context"]
    flow = flow_run_context.get("flow")
    if flow is None:
        return context
    portable = copy(flow)
    portable.fn = _runs_elsewhere
    portable.__dict__.pop("__wrapped__", None)
    for hooks in (
        "on_completion_hooks",
        "on_failure_hooks",
        "on_cancellation_hooks",
        "on_crashed_hooks",
        "on_running_hooks",
    ):
        setattr(portable, hooks, [])
    assert client.scheduler is not None, "the client is closed"
    portable.task_runner = kind(address=client.scheduler.address)
    return {**context, "flow_run_context": {**flow_run_context, "flow": portable}}


def _runs_elsewhere() -> None:
    raise RuntimeError("this flow runs in another process; only its settings are known here")
