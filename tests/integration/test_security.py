"""What is secret stays out of tasks and logs, and what a source is called stays a name."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster, SchedulerPlugin
from prefect import task
from prefect.settings import PREFECT_API_KEY, temporary_settings
from prefect.settings.context import get_current_settings

from evolve_tasks import EvolveTaskRunner, Outcome, evolve
from tests.conformance.flows import in_flow

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

SECRET = "pnu_d3b07384d113edec49eaa6238ad5ff00"


class Listening(SchedulerPlugin):
    """Keeps what travels with each task."""

    name = "listening"

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def update_graph(self, scheduler: Any, *, keys: Any, **_: Any) -> None:
        specs = [scheduler.tasks[key].run_spec for key in keys if key in scheduler.tasks]
        self.heard.append(pickle.dumps(specs))


@task
def numbers(count: int) -> list[int]:
    return list(range(count))


@task
def add_one(x: int) -> int:
    return x + 1


@pytest.mark.parametrize("strategy", ["as_completed", "async", "nested"])
def test_the_api_key_does_not_travel_with_tasks(
    strategy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    listening = Listening()
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        cluster.scheduler.add_plugin(listening)

        def body() -> Outcome:
            assert add_one.submit(1).result() == 2
            return evolve(
                [3, 4], numbers, add_one, strategy=strategy, journal=f"secrets-{strategy}"
            )

        with (
            caplog.at_level(logging.DEBUG),
            temporary_settings(updates={PREFECT_API_KEY: SECRET}),
        ):
            outcome = in_flow(EvolveTaskRunner(address=cluster.scheduler_address), body)
    assert outcome.counts.done == 7
    assert any(b"add_one" in heard for heard in listening.heard)
    assert not [heard for heard in listening.heard if SECRET.encode() in heard]
    assert SECRET not in caplog.text
    assert SECRET not in json.dumps(outcome.report)
    written = [path for path in stored_below().rglob("*") if path.is_file()]
    assert any("evolve-journals" in str(path) for path in written)
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def stored_below() -> Path:
    """Where Prefect keeps results, and the package its journals."""
    return Path(get_current_settings().results.local_storage_path)


def test_a_name_forges_no_line_of_a_log(
    thread_workers: str, caplog: pytest.LogCaptureFixture
) -> None:
    forged = "12:00:00.000 | INFO    | Flow run 'night' - all is well"
    names = [f"a.txt\n{forged}", f"b.txt\r\n{forged}\x1b[2K", f"c\u2028{forged}"]

    def refuse(name: str) -> list[int]:
        raise ValueError(name)

    def body() -> Outcome:
        return evolve(names, refuse, add_one, on_failure="ignore")

    with caplog.at_level(logging.DEBUG, "prefect"):
        outcome = in_flow(EvolveTaskRunner(address=thread_workers), body)
        logging.getLogger("prefect").warning("it failed: %s", outcome.failures[0])
    assert len(outcome.failures) == 3
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert any("a.txt" in line for line in lines)
    assert not [line for line in lines if line.startswith("12:00:00")]
