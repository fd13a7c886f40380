"""The API goes away for a while in the middle of a run: the work does not notice.

The server is stopped and started again with the same address and database, as when somebody
updates it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from evolve_tasks import EvolveTaskRunner, Outcome, evolve, opened
from evolve_tasks.monitoring import publishing
from tests.integration.api import report_of, task_runs
from tests.integration.servers import Server
from tests.integration.waiting import until

ITEMS = 160
SOURCES = 4
ITEM_S = 0.5  # on two threads about 40 s in all
AWAY_S = 30.0
BEGIN_S = 120.0  # until a quarter of the items has begun, on a busy machine

pytestmark = pytest.mark.cluster


@task
def parse(source: int) -> list[int]:
    """Give a share of the items."""
    share = ITEMS // SOURCES
    return list(range(source * share, (source + 1) * share))


@task
def process(diary: str, item: int) -> int:
    """Note on disk that it ran, and take its time."""
    with Path(diary, f"{item}").open("a") as file:
        file.write("x")
    time.sleep(ITEM_S)
    return item * 2


@pytest.fixture(scope="module")
def server(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: others would miss the session's.

    All events of a process go to the server of its first one: here to the session's, which lasts.
    """
    emit_event("evolve.tests.began", resource={"prefect.resource.id": "evolve.tests"})
    made = Server(tmp_path_factory.mktemp("server") / "home")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def workers() -> Iterator[str]:
    """Worker processes, whose events go to the server of their flow."""
    with LocalCluster(
        processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def away_in_the_middle(server: Server, diary: Path, told: list[float]) -> None:
    """Stop the server when a quarter of the items has begun, start it again after a while."""
    deadline = time.monotonic() + BEGIN_S
    while len(list(diary.iterdir())) < ITEMS // 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.stop()
    told.append(time.monotonic())
    begun = len(list(diary.iterdir()))
    time.sleep(AWAY_S)
    assert len(list(diary.iterdir())) > begun  # the work went on meanwhile
    server.start()
    told.append(time.monotonic())


@pytest.mark.timeout(300)
def test_a_restarted_server_costs_nothing(
    server: Server, workers: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    diary = tmp_path / "diary"
    diary.mkdir()
    ids: list[UUID] = []
    ended: list[Outcome] = []
    told: list[float] = []
    stopping = threading.Thread(target=away_in_the_middle, args=(server, diary, told))

    def process_item(item: int) -> int:
        return process.fn(str(diary), item)

    stage = task(process_item, name="process")

    with (
        temporary_settings({PREFECT_API_URL: server.url}),
        caplog.at_level(logging.INFO),
    ):

        @flow(name="api away", task_runner=EvolveTaskRunner(address=workers))
        def around() -> None:
            context = FlowRunContext.get()
            assert context is not None
            assert context.flow_run is not None
            ids.append(context.flow_run.id)
            ended.append(evolve(range(SOURCES), parse, stage, record="items", batch=1))

        stopping.start()
        began = time.monotonic()
        state: Any = around(return_state=True)
        took_s = time.monotonic() - began
        stopping.join()
        assert state.is_completed(), state
        (outcome,) = ended
        assert outcome.results == [2 * item for item in range(ITEMS)]
        assert not outcome.failures
        assert len(told) == 2
        ran = [path.read_text() for path in diary.iterdir()]
        assert ran == ["x"] * ITEMS
        missing = said_to_be_missing([record.getMessage() for record in caplog.records])
        runs = task_runs(ids[0])
        final = [run for run in runs if run.state is not None and run.state.is_final()]
        # All of them, unless the log counts those that are not.
        assert len(final) + missing >= ITEMS + SOURCES, (told, took_s)
        assert all(run.state is not None and run.state.is_completed() for run in final)


def said_to_be_missing(lines: list[str]) -> int:
    found = [re.match(r"The end of (\d+) of \d+ task runs is not recorded", line) for line in lines]
    return sum(int(match.group(1)) for match in found if match)


@task
def waits_at_the_last(item: tuple[str, int]) -> int:
    """The last item says that it has begun, and waits until it may end."""
    gates, number = item
    if number == ITEMS - 1:
        Path(gates, "begun").touch()
        until(Path(gates, "may end").exists, "the last item may end")
    return number * 2


@task
def with_gates(source: tuple[str, int]) -> list[tuple[str, int]]:
    gates, number = source
    return [(gates, item) for item in parse.fn(number)]


def test_a_server_that_hangs_at_the_end_holds_nothing_up(
    server: Server,
    workers: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes connections and does not answer, until somebody has read that it does not."""
    monkeypatch.setattr(publishing, "ANSWER_S", 0.5)
    monkeypatch.setattr(publishing, "AWAY_S", 1.0)
    ids: list[UUID] = []

    def freeze() -> None:
        until((tmp_path / "begun").exists, "the last item has begun")
        server.freeze()
        (tmp_path / "may end").touch()
        try:
            until(lambda: said(caplog, "does not take the artifact"), "it is said")
        finally:
            server.thaw()

    with temporary_settings({PREFECT_API_URL: server.url}), caplog.at_level(logging.INFO):

        @flow(name="api hangs", task_runner=EvolveTaskRunner(address=workers))
        def night() -> Outcome:
            ids.append(UUID(flow_run.id))
            sources = [(str(tmp_path), number) for number in range(SOURCES)]
            return evolve(sources, with_gates, waits_at_the_last, record="batches")

        freezing = threading.Thread(target=freeze)
        freezing.start()
        state: Any = night(return_state=True)
        freezing.join()
        assert state.is_completed(), state
        assert state.result().results == [2 * item for item in range(ITEMS)]
        # What was tried for the last time while it hung is not there; what came later is.
        assert report_of(ids[0]) == state.result().report.markdown()
        assert all(one.state_type == StateType.COMPLETED for one in task_runs(ids[0]))


def said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in caplog.records)


def test_a_flow_run_that_somebody_deletes(
    server: Server, workers: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its work is done all the same, and it is said that nobody can see it."""
    ended: list[Outcome] = []

    def let_end() -> None:
        until(lambda: said(caplog, "Somebody deleted the flow run"), "it is said")
        (tmp_path / "may end").touch()

    with temporary_settings({PREFECT_API_URL: server.url}), caplog.at_level(logging.INFO):

        @flow(name="deleted", task_runner=EvolveTaskRunner(address=workers))
        def night() -> None:
            with get_client(sync_client=True) as client:
                client.delete_flow_run(UUID(flow_run.id))
            sources = [(str(tmp_path), number) for number in range(SOURCES)]
            ended.append(evolve(sources, with_gates, waits_at_the_last, record="sources"))

        letting = threading.Thread(target=let_end)
        letting.start()
        with suppress(ObjectNotFound):
            night()
        letting.join()
    assert ended[0].results == [2 * item for item in range(ITEMS)]


def test_who_was_given_up_while_the_api_is_away_costs_no_outcome(
    prefect_api: str,
    thread_workers: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(_: object) -> list[UUID]:
        raise httpx.ConnectError("nobody is there")

    monkeypatch.setattr(opened, "record_given_up", away)
    ended: list[Outcome] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        ended.append(evolve([2, 3], range, abs))

    night()
    assert ended[0].results == [0, 1, 0, 1, 2]
    assert said(caplog, "ConnectError: nobody is there")
