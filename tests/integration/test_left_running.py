"""What a run leaves under way when its own cluster ends is not Running for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.runtime import flow_run

from evolve_tasks import EvolveTaskRunner, evolve_iter
from tests.integration.api import task_runs

ROOT = Path(__file__).parents[2]

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


def test_what_was_submitted_and_interrupted_is_cancelled(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "id")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "KeyboardInterrupt" in ended.stderr
    flow_run_id = UUID((tmp_path / "id").read_text())
    states = sorted(str(one.state_name) for one in task_runs(flow_run_id))
    assert states == ["Cancelled"] * 2, ended.stderr


INTERRUPTED = """
import sys
import time
from pathlib import Path
from uuid import UUID
from prefect import flow, task
from prefect.runtime import flow_run
from evolve_tasks import EvolveTaskRunner
from tests.integration.api import task_runs
from tests.integration.waiting import until

@task
def lasting(number):
    time.sleep(60)

@flow(task_runner=EvolveTaskRunner(cluster_kwargs={"n_workers": 1, "threads_per_worker": 2}))
def night():
    lasting.map(range(5))
    until(lambda: len(task_runs(UUID(flow_run.id))) == 2, "two of them run")
    Path(sys.argv[1]).write_text(flow_run.id)
    raise KeyboardInterrupt

if __name__ == "__main__":
    night()
"""
