"""Run a user's task on one item: as a Prefect task run, or with its semantics but unrecorded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State, StateDetails, TaskRunPolicy, TaskRunResult
from prefect.context import FlowRunContext, TagsContext, TaskRunContext
from prefect.states import Pending
from prefect.task_engine import run_task_sync
from prefect.utilities.callables import get_call_parameters

R = TypeVar("R")


def first_parameter(task: Task[..., Any]) -> str:
    """Name of the parameter that takes the item."""
    return next(iter(get_call_parameters(task.fn, (None,), {})))


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
        A pending task run. It is not sent: its first event is that it runs, which spares the
        API one of three events for each.
    """
    flow_context = FlowRunContext.get()
    flow_run = flow_context.flow_run if flow_context else None
    flow_run_id = flow_run.id if flow_run else None
    inputs: dict[str, Any] = {
        parameter: [] for parameter in get_call_parameters(task.fn, (None,), {})
    }
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
        dynamic_key=str(run_id),
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


def run_as_unit(
    task: Task[..., Any],
    *,
    run_id: UUID,
    name: str,
    upstream: UUID | None,
    body: Callable[[], R],
) -> R:
    """Run something as one task run under a task's name, with nothing else of the task.

    It has no tags: they are limits on concurrency, which its items take themselves.
    """
    results: list[R] = []
    unit = Task(
        fn=lambda: results.append(body()),
        name=task.name,
        version=task.version,
        retries=0,
        log_prints=task.log_prints,
        persist_result=False,
        cache_policy=NO_CACHE,
    )
    task_run = new_task_run(task, run_id=run_id, name=name, upstream=upstream)
    task_run.tags = []
    task_run.empirical_policy = TaskRunPolicy(retries=0)
    run_task_sync(unit, task_run=task_run, parameters={})
    return results[0]


class OpenRun:
    """A task run that lasts until it is closed, whatever is done meanwhile.

    Prefect's engine runs it in a thread of its own, where it waits.

    Args:
        task: the task under whose name it stands.
        stage: name of its stage.
        label: what its name has in brackets.
        context: context variables of the flow run; not used by anybody else.
    """

    def __init__(self, task: Task[..., Any], stage: str, label: str, context: Context) -> None:
        self.run_id = uuid4()
        self.label = label
        name = f"{stage}[{label}]"
        self._over = threading.Event()
        run = partial(
            run_as_unit,
            task,
            run_id=self.run_id,
            name=name,
            upstream=None,
            body=self._over.wait,
        )
        self._thread = threading.Thread(target=context.run, args=(run,), name=f"evolve-{name}")
        self._thread.start()

    def close(self) -> None:
        """End it; it is completed when this returns."""
        self._over.set()
        self._thread.join()


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
