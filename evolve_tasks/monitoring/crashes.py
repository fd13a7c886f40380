"""What the API has to know of workers that died: they cannot tell it themselves.

A task run whose worker died stays Running in the API, for ever; so does that of a batch whose
items have run again since, in other batches. And whoever is given up needs a task run that says
so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas import TaskRun
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterId,
    TaskRunFilterState,
    TaskRunFilterStateType,
    TaskRunFilterSubFlowRuns,
)
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import TaskRunSort
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.utilities.engine import emit_task_run_state_change_event

from evolve_tasks.core.suspects import MOST_DEATHS
from evolve_tasks.monitoring.recording import unrecorded_after
from evolve_tasks.stages import Stage
from evolve_tasks.workers.calls import GivenUp, Recorded
from evolve_tasks.workers.task_runs import enter_state, key_of, new_task_run

PAGE = 200  # task runs in one answer: Prefect's own limit
LEFT = "its run was left before it had ended, and the cluster went with the flow run"
# How long ends that workers told at the last moment may be on their way; without progress.
SETTLED_S = 3.0
OPEN = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED]
DIED = "its worker died; what it worked on ran again, unless it has a crashed task run of its own"


def record_given_up(given_up: Sequence[GivenUp]) -> list[UUID]:
    """Give each of N >= 0 of them a Crashed or Failed task run; called in the flow.

    Returns:
        The ids of the task runs.
    """
    known = _known([one.run_id for one in given_up])  # if it ran for more than a moment
    for one in given_up:
        task_run = known.get(one.run_id) or new_task_run(
            one.task, run_id=one.run_id, name=one.name, upstream=one.upstream
        )
        state: State[Any] = (Crashed if one.crashed else Failed)(message=one.message)
        if task_run.start_time is None:  # its worker died before it could say when it began
            task_run.start_time = cast(Any, state.timestamp)
        if one.crashed:
            task_run.run_count = MOST_DEATHS
        _end(task_run, state)
    return [one.run_id for one in given_up]


def tell_for_the_dead(
    recorded: Sequence[Recorded],
    missing: Collection[UUID],
    stages: Sequence[Stage],
    logger: logging.Logger | Any,
) -> None:
    """Tell the API how task runs ended whose worker died before it had told.

    A worker sends events some milliseconds after the fact; what it had not sent died with it.
    Their times are those of now.

    Args:
        recorded: the task runs of the run, N >= 0, as the workers said that they ended.
        missing: ids of those that the API does not know the end of.
        stages: the stages of the run.
        logger: told how many there were.
    """
    lost = [one for one in recorded if one.run_id in missing]
    if not lost:
        return
    known = _known([one.run_id for one in lost])
    for one in lost:
        stage = stages[one.stage]
        if stage.task is None:
            continue
        name = f"{stage.name}[{one.label}]"
        task_run = known.get(one.run_id) or new_task_run(stage.task, run_id=one.run_id, name=name)
        _end(task_run, Completed() if one.error is None else Failed(message=one.error))
    logger.warning(
        "%d task runs had ended when their workers died, and the API had not been told: it is "
        "told now",
        len(lost),
    )


def end_killed(
    killed: Mapping[UUID, tuple[Task[Any, Any], str]], logger: logging.Logger | Any
) -> list[UUID]:
    """Say of submitted tasks that they crashed; called in the context of the flow run.

    Args:
        killed: task and what happened, by id of the task run.
        logger: told if the API does not answer.

    Returns:
        The ids of those N >= 0 whose end the API did not know.
    """
    # What has ended before its worker died, or could not send its result, is told some time later.
    missing = unrecorded_after(list(killed), logger, SETTLED_S)
    known = _known(missing)
    ended = []
    for run_id in missing:
        task, message = killed[run_id]
        task_run = known.get(run_id)
        if task_run is None:  # its worker died before it could say that it ran
            task_run = new_task_run(task, run_id=run_id, name=task.name)
        if task_run.state is None or not task_run.state.is_final():
            _end(task_run, Crashed(message=message))
            ended.append(run_id)
    return ended


def _known(ids: Sequence[UUID]) -> dict[UUID, TaskRun]:
    """The task runs that the API knows, of those that are asked for."""
    known: dict[UUID, TaskRun] = {}
    with get_client(sync_client=True) as client:
        for start in range(0, len(ids), PAGE):
            for found in client.read_task_runs(
                task_run_filter=TaskRunFilter(
                    id=TaskRunFilterId(any_=list(ids[start : start + PAGE])),
                ),
                sort=TaskRunSort.ID_DESC,
                limit=PAGE,
            ):
                known[found.id] = found
    return known


def end_what_died(
    flow_run_id: UUID, run: str, ended: Collection[UUID], logger: logging.Logger | Any
) -> list[UUID]:
    """Say of task runs that they crashed, where workers died and left them open.

    Called when nothing of the run is under way any more.

    Args:
        flow_run_id: the flow run that they belong to.
        run: unique name of the run that they are of; others may go on beside it.
        ended: ids of task runs that have ended, also where the API does not know it yet.
        logger: told how many there were.

    Returns:
        The ids of those N >= 0 task runs.
    """
    left = [
        one
        for one in _open(flow_run_id)
        if one.dynamic_key == key_of(run, one.id) and one.id not in ended
    ]
    for one in left:
        _end(one, Crashed(message=DIED))
    if left:
        logger.warning(
            "%d task runs were open when their workers died: they are Crashed", len(left)
        )
    return [one.id for one in left]


def end_what_was_left(flow_run_id: UUID, logger: logging.Logger | Any) -> list[UUID]:
    """Say of task runs that they were cancelled, once nobody is there any more who could end them.

    Called in the context of the flow run, when its cluster is gone, and with it all that the flow
    run had there.

    Args:
        flow_run_id: the flow run that they belong to.
        logger: told how many there were.

    Returns:
        The ids of those N >= 0 task runs.
    """
    ended = _end_all_open(flow_run_id, lambda: Cancelled(message=LEFT), logger)
    if ended:
        logger.info(
            "%d task runs were under way when their run was left: they are Cancelled", len(ended)
        )
    return ended


def end_what_died_with_workers(flow_run_id: UUID, logger: logging.Logger | Any) -> list[UUID]:
    """Say of task runs that they crashed, where workers died and nobody else would say it.

    They are those that tasks on workers have submitted themselves, or an `evolve` there: whoever
    waited for them may have died as well.

    Called in the context of the flow run, when workers have died and nothing of it is under way.

    Args:
        flow_run_id: the flow run that they belong to.
        logger: told how many there were.

    Returns:
        The ids of those N >= 0 task runs.
    """
    ended = _end_all_open(flow_run_id, lambda: Crashed(message=DIED), logger)
    if ended:
        logger.warning(
            "%d task runs were open when their workers died: they are Crashed", len(ended)
        )
    return ended


def _end_all_open(
    flow_run_id: UUID, state: Callable[[], State[Any]], logger: logging.Logger | Any
) -> list[UUID]:
    left = {one.id: one for one in _open(flow_run_id)}
    # Some have ended, and the API has not recorded it yet; that must not be written over.
    left = {one: left[one] for one in unrecorded_after(list(left), logger, SETTLED_S)}
    for one in left.values():
        _end(one, state())
    return list(left)


def _open(flow_run_id: UUID) -> list[TaskRun]:
    """The task runs of a flow run that have not ended, as far as the API knows."""
    with get_client(sync_client=True) as client:
        found: list[TaskRun] = []
        while page := client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
            task_run_filter=TaskRunFilter(
                state=TaskRunFilterState(type=TaskRunFilterStateType(any_=OPEN)),
                # Those stand for flow runs, which tell of themselves.
                subflow_runs=TaskRunFilterSubFlowRuns(exists_=False),
            ),
            sort=TaskRunSort.ID_DESC,
            limit=PAGE,
            offset=len(found),
        ):
            found += page
    # NotReady is an end, too: what it would have needed has failed.
    return [one for one in found if one.state_name != "NotReady"]


def _end(task_run: TaskRun, state: State[Any]) -> None:
    before = task_run.state
    assert before is not None, "every task run has a state"
    # What the API keeps is the latest state, and a worker's clock may be ahead of ours.
    state.timestamp = max(state.timestamp, before.timestamp + timedelta(microseconds=1))
    if task_run.start_time is None and not state.is_crashed():
        task_run.start_time = cast(Any, state.timestamp)
    enter_state(task_run, before, state)
    emit_task_run_state_change_event(task_run, initial_state=before, validated_state=state)
