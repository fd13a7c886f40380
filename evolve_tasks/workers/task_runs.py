"""Prefect's record of a task run: how it is made, and what is noted when its state changes."""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from prefect import Task
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State, StateDetails, TaskRunPolicy, TaskRunResult
from prefect.context import FlowRunContext, TagsContext, TaskRunContext
from prefect.states import Pending
from prefect.utilities.callables import get_call_parameters

from evolve_tasks.stages import called

# Name of the `evolve` whose task runs are made here: it tells them from those of others in the same
# flow run, which may have the same stages.
_of_run: ContextVar[str] = ContextVar("evolve_run", default="")


def task_runs_are_of(run: str) -> None:
    """Say in the context of the caller to which `evolve` task runs belong.

    Args:
        run: its unique name.
    """
    _of_run.set(run)


def key_of(run: str, run_id: UUID) -> str:
    """What Prefect calls the dynamic key of a task run: unique in its flow run."""
    return f"{run}-{run_id}" if run else str(run_id)


def first_parameter(task: Task[..., Any]) -> str:
    """Name of the parameter that takes the item."""
    return next(iter(inspect.signature(called(task)).parameters))


class Parameters:
    """Gives what the parameters of a task's function are for some arguments, as Prefect does.

    Prefect asks for the function's signature each time, which takes longer than a short item.

    Args:
        task: the task.
    """

    def __init__(self, task: Task[..., Any]) -> None:
        self._task = task
        self._names: tuple[str, ...] = ()
        self._all: dict[str, Any] = {}

    def of(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """A dictionary of its own for each call of it."""
        if len(self._names) != len(arguments):
            self._all = get_call_parameters(self._task.fn, (None,) * len(arguments), {})
            self._names = _positional(self._task)[: len(arguments)]
            if len(self._names) != len(arguments):  # it takes any number of them
                return get_call_parameters(self._task.fn, arguments, {})
        parameters = self._all.copy()
        for name, value in zip(self._names, arguments, strict=True):
            parameters[name] = value
        return parameters


def _positional(task: Task[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(called(task)).parameters.items()
    return tuple(name for name, parameter in parameters if parameter.kind in kinds)


def new_task_run(
    task: Task[..., Any],
    *,
    run_id: UUID,
    name: str,
    upstream: UUID | None = None,
) -> TaskRun:
    """Make the record of a task run in the current flow run.

    Args:
        task: the task.
        run_id: its id.
        name: its name in the UI; a `task_run_name` of the user's own wins.
        upstream: the task run that gave its input.

    Returns:
        A pending task run. It is not sent: nobody has to hear that something is about to run.
    """
    flow_context = FlowRunContext.get()
    flow_run = flow_context.flow_run if flow_context else None
    flow_run_id = flow_run.id if flow_run else None
    inputs: dict[str, Any] = {name: [] for name in inspect.signature(task.fn).parameters}
    if upstream is not None:
        inputs[first_parameter(task)] = [TaskRunResult(id=upstream)]
    parent = TaskRunContext.get()
    if parent is not None and parent.task_run.flow_run_id == flow_run_id:
        inputs["__parents__"] = [TaskRunResult(id=parent.task_run.id)]
    tags_context = TagsContext.get()
    state: State[Any] = Pending(
        state_details=StateDetails(task_run_id=run_id, flow_run_id=flow_run_id)
    )
    now: Any = state.timestamp  # Prefect has two names for one type
    return TaskRun(
        id=run_id,
        name=name,
        flow_run_id=flow_run_id,
        task_key=task.task_key,
        dynamic_key=key_of(_of_run.get(), run_id),
        task_version=task.version,
        empirical_policy=TaskRunPolicy(
            retries=task.retries,
            retry_delay=task.retry_delay_seconds,
            retry_jitter_factor=task.retry_jitter_factor,
        ),
        tags=sorted(set(task.tags) | set(tags_context.current_tags if tags_context else ())),
        task_inputs=inputs,
        expected_start_time=now,
        state_id=state.id,
        state_type=state.type,
        state_name=state.name,
        state=state,
        created=now,
        updated=now,
    )


def enter_state(task_run: TaskRun, last: State[Any], new: State[Any]) -> None:
    """What Prefect's engines note on a task run when its state changes."""
    if last.timestamp == new.timestamp:
        new.timestamp += timedelta(microseconds=1)
    new.state_details.task_run_id = task_run.id
    new.state_details.flow_run_id = task_run.flow_run_id
    task_run.state = new
    task_run.state_id = new.id
    task_run.state_type = new.type
    task_run.state_name = new.name
    if last.is_running():
        task_run.total_run_time += new.timestamp - last.timestamp
    if new.is_running():
        task_run.run_count += 1
    if new.is_final() and task_run.start_time and not task_run.end_time:
        task_run.end_time = cast(Any, new.timestamp)
