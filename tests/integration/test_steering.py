"""Somebody steers a run from outside: pauses it, resumes it, lets it do more at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Paused
from prefect.variables import Variable

from evolve_tasks import EvolveTaskRunner, InvalidInput, Limits, Outcome, evolve
from tests.integration.waiting import until

PARALLEL = ["as_completed", "async", "nested"]
THREADS = 6
WIDTH = 10  # items in flight

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

Item = tuple[str, int]
ITEMS = 60
FREE = 5  # items that end at once


@pytest.fixture(scope="module")
def wide() -> Iterator[str]:
    with LocalCluster(
        processes=False, n_workers=1, threads_per_worker=THREADS, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


@task
def sixty(gates: str) -> list[Item]:
    return [(gates, number) for number in range(ITEMS)]


@task
def gated(item: Item) -> int:
    """The first few end at once, the others wait until somebody lets them."""
    gates, number = item
    Path(gates, f"begun-{number}").touch()
    if number >= FREE:
        until(Path(gates, "gate").exists, "the gate is opened")
    return number


def begun(gates: Path) -> int:
    return len(list(gates.glob("begun-*")))


def in_thread(body: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(body()))
    thread.start()
    return thread, given


@pytest.mark.parametrize("strategy", ["sequential", *PARALLEL])
def test_a_paused_flow_run_begins_nothing_until_it_is_resumed(
    strategy: str, tmp_path: Path, wide: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=wide))
    def night() -> Outcome:
        ids.append(UUID(flow_run.id))
        options: Any = {"strategy": strategy, "batch": 1, "record": "sources"}
        return evolve([str(tmp_path)], sixty, gated, in_flight=WIDTH, **options)

    with caplog.at_level(logging.INFO):
        thread, given = in_thread(night)
        until(lambda: begun(tmp_path) > FREE, "items wait")
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(ids[0], Paused(timeout_seconds=300), force=True)
        until(lambda: "The flow run was paused" in caplog.text, "it is heard")
        (tmp_path / "gate").touch()
        # What had been submitted ends; nothing else begins, though nothing holds it any more.
        counts = [-2, -1]
        while counts[-1] != counts[-2]:
            time.sleep(1)
            counts.append(begun(tmp_path))
        assert counts[-1] <= FREE + WIDTH + 1
        assert not given
        with get_client(sync_client=True) as client:
            client.resume_flow_run(ids[0])
        thread.join()
    assert "The flow run goes on after a pause" in caplog.text
    assert given[0].results == list(range(ITEMS))


SOME = 8


@task
def some(gates: str) -> list[str]:
    return [gates] * SOME


@task
def gated_alike(gates: str) -> int:
    """Wait with the others; the first eight are let go before the rest."""
    mine = Path(gates, f"waiting-{time.monotonic_ns()}-{threading.get_ident()}")
    mine.touch()
    first = len(list(Path(gates).glob("ended-*"))) < SOME
    until(
        lambda: Path(gates, "gate").exists() or (first and Path(gates, "first").exists()),
        "the gate is opened",
    )
    mine.rename(mine.with_name(mine.name.replace("waiting", "ended")))
    return 1


def waiting(gates: Path) -> int:
    return len(list(gates.glob("waiting-*")))


@pytest.mark.parametrize("strategy", PARALLEL)
def test_a_variable_says_how_many_items_are_in_flight(
    strategy: str, tmp_path: Path, wide: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"width_of_{strategy}"
    Variable.set(name, 2, overwrite=True)

    @flow(task_runner=EvolveTaskRunner(address=wide))
    def night() -> Outcome:
        limits = Limits(in_flight_variable=name)
        options: Any = {"strategy": strategy, "batch": 1, "record": "sources", "limits": limits}
        return evolve([str(tmp_path)] * 4, some, gated_alike, **options)

    with caplog.at_level(logging.INFO):
        thread, given = in_thread(night)
        until(lambda: waiting(tmp_path) in (1, 2), "some wait")
        Variable.set(name, "no number", overwrite=True)
        until(lambda: "in_flight stays as it is" in caplog.text, "it is refused")
        assert waiting(tmp_path) <= 2
        Variable.set(name, "5", overwrite=True)
        until(lambda: "items in flight may be: 5" in caplog.text, "it is heard")
        (tmp_path / "first").touch()
        until(lambda: waiting(tmp_path) > 2, "more wait")
        assert waiting(tmp_path) <= 5
        (tmp_path / "gate").touch()
        thread.join()
    assert len(given[0].results) == 4 * SOME


def test_what_cannot_be_steered_is_refused(wide: str) -> None:
    Variable.set("no_width", "wide", overwrite=True)

    @flow(task_runner=EvolveTaskRunner(address=wide))
    def night(strategy: Any) -> None:
        limits = Limits(in_flight_variable="no_width")
        evolve([1], range, abs, strategy=strategy, limits=limits)

    with pytest.raises(InvalidInput, match="one at a time: use as_completed"):
        night("sequential")
    with pytest.raises(InvalidInput, match=r"'no_width' is 'wide'.*whole number from 1"):
        night("as_completed")
