"""No PREFECT_API_URL, no server: the embedded default has to work with worker processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.integration.servers import with_database

pytestmark = pytest.mark.cluster

SCRIPT = """
    import sys
    from prefect import flow, task
    from prefect_dask import DaskTaskRunner
    from evolve_tasks import DaskCluster, EvolveTaskRunner, evolve

    @task
    def parse_file(n: int) -> list[int]:
        return list(range(n))

    @task
    def process_item(x: int) -> int:
        return x + 1

    cluster = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    runner = {
        "evolve": lambda: EvolveTaskRunner(cluster_kwargs=cluster),
        "block": lambda: EvolveTaskRunner(cluster_block="two-workers"),
        "stock": lambda: DaskTaskRunner(cluster_kwargs=cluster),
    }[sys.argv[1]]

    @flow(task_runner=runner())
    def embedded(strategy: str):
        print("RESULTS", evolve([3, 2], parse_file, process_item, strategy=strategy).results)
        print("SUBMITTED", [f.result() for f in process_item.map([1, 2, 3])])

    if __name__ == "__main__":
        if sys.argv[1] == "block":  # it is found in the server of the flow, there is no other
            DaskCluster(cluster_kwargs=cluster).save("two-workers")
        embedded(sys.argv[2])
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without any Prefect or Dask configuration."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT", "DASK"))
    }
    with_database(tmp_path / "home")
    return {
        **kept,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Other tests use the CPUs, too.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }


def run_script(
    tmp_path: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def left_behind(home: str) -> list[psutil.Process]:
    """Processes that still run with this PREFECT_HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == home:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


# A block leads to the cluster that the other options would.
@pytest.mark.parametrize(("runner", "strategy"), [("block", "as_completed")])
def test_all_task_runs_are_in_the_database_afterwards(
    runner: str, strategy: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    ended = run_script(tmp_path, environment, runner, strategy)
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    assert "RESULTS [1, 2, 3, 1, 2]" in ended.stdout, output
    assert "SUBMITTED [2, 3, 4]" in ended.stdout, output
    # One server: that of the flow. The workers started none of their own.
    assert output.count("Starting temporary server") == 1, output
    with sqlite3.connect(Path(environment["PREFECT_HOME"], "prefect.db")) as database:
        runs = database.execute("select name, state_type from task_run").fetchall()
        flows = database.execute("select state_type from flow_run").fetchall()
    assert flows == [("COMPLETED",)]
    assert [state for _, state in runs] == ["COMPLETED"] * (2 + 5 + 3), runs
    assert left_behind(environment["PREFECT_HOME"]) == []


def test_the_stock_runner_is_refused_at_once(tmp_path: Path, environment: dict[str, str]) -> None:
    """Its worker processes would each start a server, and hang."""
    ended = run_script(tmp_path, environment, "stock", "as_completed")
    assert ended.returncode != 0
    assert "NotInFlow" in ended.stderr
    assert "PREFECT_API_URL" in ended.stderr
    assert "EvolveTaskRunner" in ended.stderr
    assert "RESULTS" not in ended.stdout
    assert left_behind(environment["PREFECT_HOME"]) == []
