"""Run a task that a flow submitted: in a copy of the flow run's context that is warm already."""

from __future__ import annotations

import copyreg
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from dask.sizeof import sizeof
from distributed import Future, Worker
from prefect import Task
from prefect.client.schemas.objects import RunInput, State
from prefect.context import AssetContext
from prefect.exceptions import CrashedRun
from prefect.states import exception_to_crashed_state
from prefect.task_engine import _create_task_run_locally, run_task_async, run_task_sync
from prefect.utilities.annotations import BaseAnnotation, allow_failure, opaque, quote, unmapped
from prefect.utilities.collections import visit_collection

from evolve_tasks.workers.context import context_here, surrounded, threads_here, tracking_alone
from evolve_tasks.workers.engines import (
    needs_engine,
    run_coroutine,
    run_in_time,
    run_plainly,
)
from evolve_tasks.workers.seceding import seceded
from evolve_tasks.workers.timed import TimedThreads
from evolve_tasks.workers.transport import Packed


def _annotation_parts(annotation: BaseAnnotation) -> tuple[Any, tuple[Any]]:
    return type(annotation), (annotation.unwrap(),)


# Prefect's annotations are tuples that are made from their content. Pickle makes them from the
# whole tuple, so they come back wrapped twice.
for _kind in (quote, opaque, allow_failure, unmapped):
    copyreg.pickle(_kind, _annotation_parts)


# A state is pickled with what its result alone does not weigh: details, ids, a traceback.
PICKLED_OVER = 4


@dataclass(frozen=True, slots=True)
class Upstream:
    """Stands in the parameters of a task for what a future will give.

    Args:
        position: which of the futures that travel beside the parameters.
    """

    position: int


@dataclass(frozen=True, slots=True)
class Submission:
    """A task and what it is called with.

    Args:
        task: the task.
        run_id: id of its task run.
        parameters: its parameters, with an `Upstream` in place of each future.
        wait_for: what it waits for, in the same way.
        inputs: the task runs that its parameters came from, by parameter.
        surroundings: what is around it in its run context, as `surrounded` takes it.
    """

    task: Task[..., Any]
    run_id: UUID
    parameters: dict[str, Any]
    wait_for: Any
    inputs: dict[str, set[RunInput]]
    surroundings: dict[str, Any] = field(default_factory=dict)


def begun(keys: list[str], dask_worker: Worker) -> list[str]:
    """Tell which of some tasks run on this worker, in a thread of its pool or beside it."""
    tasks = dask_worker.state.tasks
    running = ("executing", "long-running")
    return [key for key in keys if key in tasks and tasks[key].state in running]


def small_states(keys: list[str], most_bytes: int, dask_worker: Worker) -> dict[str, Packed]:
    """Pack final states that this worker holds; runs in its event loop, beside all tasks.

    Args:
        keys: Dask keys of N >= 0 submitted tasks that have finished.
        most_bytes: larger ones are left where they are.
        dask_worker: the worker; Dask gives it.

    Returns:
        Those that it holds, that are small, and that can be pickled.
    """
    packed: dict[str, Packed] = {}
    for key in keys:
        known = dask_worker.state.tasks.get(key)
        if known is None or known.get_nbytes() > most_bytes or key not in dask_worker.data:
            continue
        try:
            state = Packed.of(dask_worker.data[key])
        except Exception:
            # Who asks for this one alone gets the error; the others must not.
            continue
        if len(state.payload) <= PICKLED_OVER * most_bytes:
            packed[key] = state
    return packed


@sizeof.register(State)  # type: ignore[untyped-decorator]
def _state_size(state: State[Any]) -> int:
    """What a state weighs is its result; Dask alone would see the few bytes around it."""
    size: int = sizeof(getattr(state.data, "result", state.data))
    return size


# Futures of what a task on a worker submitted itself.
children: ContextVar[list[Future[Any]] | None] = ContextVar("evolve_children", default=None)


def run_submission(context: str | None, packed: Packed, upstream: list[Any]) -> State[Any]:
    """Run a `Submission` as a Dask task.

    Args:
        context: name of its run context.
        packed: the submission. One opaque object: Dask neither searches the parameters for
            keys nor copies them one by one.
        upstream: what the N >= 0 futures among its parameters gave.

    Returns:
        The final state of its task run.
    """
    with threads_here(context) as threads:
        return context_here(context).run(_run, packed, upstream, threads)


def _run(packed: Packed, upstream: list[Any], threads: TimedThreads) -> State[Any]:
    submission: Submission = packed.value()
    mine: list[Future[Any]] = []
    children.set(mine)
    try:
        try:
            with surrounded(submission.surroundings), tracking_alone():
                state = _run_task(submission, upstream, threads)
        except (SystemExit, KeyboardInterrupt) as error:
            # The engine has told the API that it crashed. Dask would end the worker, and after
            # it each that the task is given to; raised from a state in the flow's process it
            # would end the loop that Prefect's sync calls share.
            state = run_coroutine(exception_to_crashed_state(error))
            state.data = CrashedRun(state.message)
            state.state_details.task_run_id = submission.run_id
        # What was submitted here and not waited for ends before its parent does; otherwise it
        # would be dropped together with its futures.
        pending = [child for child in mine if not child.done()]
        if pending:
            with seceded():
                for child in pending:
                    child.exception()
        return state
    finally:
        # Threads and callbacks that began here keep the context variables, and with them the
        # list: the scheduler would keep the tasks as long.
        mine.clear()


def _run_task(submission: Submission, upstream: list[Any], threads: TimedThreads) -> State[Any]:
    task = submission.task
    parameters = _filled(submission.parameters, upstream)
    wait_for = _filled(submission.wait_for, upstream)
    # A task run that exists already is not announced: its first event is that it runs.
    task_run = _create_task_run_locally(
        task=task,
        id=submission.run_id,
        parameters=parameters,
        wait_for=wait_for,
        extra_task_inputs=submission.inputs,
    )
    if task.isasync:
        state = run_coroutine(
            run_task_async(
                task,
                task_run=task_run,
                parameters=parameters,
                wait_for=wait_for,
                return_type="state",
            )
        )
    elif not (task.isgenerator or needs_engine(task) or AssetContext.get()):
        state = run_plainly(task, task_run, parameters, wait_for)
    elif task.timeout_seconds is not None:
        state = run_in_time(task, task_run, parameters, wait_for, threads)
    else:
        state = run_task_sync(
            task, task_run=task_run, parameters=parameters, wait_for=wait_for, return_type="state"
        )
    return cast(State[Any], state)


def _filled(value: Any, upstream: list[Any]) -> Any:
    if not upstream:
        return value

    def visit(part: Any) -> Any:
        return upstream[part.position] if isinstance(part, Upstream) else part

    return visit_collection(value, visit_fn=visit, return_data=True)
