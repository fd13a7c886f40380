"""What a run leaves under way when its own cluster ends is not Running for ever."""

from __future__ import annotations

import time
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.runtime import flow_run

from evolve_tasks import EvolveTaskRunner, evolve_iter
from tests.integration.api import task_runs

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@task
def lasting(number: int) -> int:
    if number:
        time.sleep(60)  # longer than anybody waits for it
    return number


def test_what_was_left_under_way_is_cancelled() -> None:
    ids: list[UUID] = []
    cluster = {"n_workers": 1, "threads_per_worker": 3, "dashboard_address": None}

    @flow(task_runner=EvolveTaskRunner(cluster_kwargs=cluster))
    def left() -> None:
        ids.append(UUID(flow_run.id))
        for one in evolve_iter([3], range, lasting, record="items", batch=1):
            assert one.value == 0
            break

    left()
    states = {one.name: one.state for one in task_runs(ids[0])}
    ended = sorted(state.name for state in states.values() if state is not None)
    assert ended == ["Cancelled", "Cancelled", "Completed"]
    messages = {one.message for one in states.values() if one is not None and one.is_cancelled()}
    assert messages == {
        "its run was left before it had ended, and the cluster went with the flow run"
    }
