"""The Prefect context of a flow run in a form that can travel to any worker."""

from __future__ import annotations

from copy import copy
from typing import Any

from distributed import Client
from prefect.context import serialize_context
from prefect_dask.task_runners import DaskTaskRunner

from evolve_tasks.runner import EvolveTaskRunner


def portable_context(client: Client) -> dict[str, Any]:
    """Serialize the current run context without what only the flow's own process can use.

    Workers need the flow's name and settings, not its function: that may close over anything,
    an open file or the cluster itself, and would fail to be pickled. Nor can they use its
    runner's cluster object; they have the scheduler's address.

    Args:
        client: the client whose workers will use it.

    Returns:
        What `prefect.context.hydrated_context` takes.
    """
    context = serialize_context()
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
    runner = EvolveTaskRunner if isinstance(flow.task_runner, EvolveTaskRunner) else DaskTaskRunner
    assert client.scheduler is not None, "the client is closed"
    portable.task_runner = runner(address=client.scheduler.address)
    return {**context, "flow_run_context": {**flow_run_context, "flow": portable}}


def _runs_elsewhere() -> None:
    raise RuntimeError("this flow runs in another process; only its settings are known here")
