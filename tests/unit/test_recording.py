"""Waiting for what the API knows: from a small server over real HTTP that may be away."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from prefect.states import Completed

from evolve_tasks.monitoring.recording import wait_until_recorded

LOGGER = logging.getLogger("test-recording")


class Api:
    """Answers questions for task runs: with those in `known`, or with an error status."""

    def __init__(self, port: int) -> None:
        self.known: set[UUID] = set()
        self.status = 200
        self.asked = 0
        api = self

        class Answering(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_error(404)  # to the client: no CSRF tokens here

            def do_POST(self) -> None:
                api.asked += 1
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                ids = [UUID(one) for one in asked["task_runs"]["id"]["any_"]]
                known = [one for one in dict.fromkeys(ids) if one in api.known]
                counted = self.path.endswith("/task_runs/count")
                assert counted or len(ids) <= 200, "Prefect's limit for a page"
                body = json.dumps(len(known) if counted else list(map(ended, known))).encode()
                self.send_response(api.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Answering)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def ended(run_id: UUID) -> Any:
    run = TaskRun(id=run_id, task_key="t", dynamic_key="0", name="t", state=Completed())
    return json.loads(run.model_dump_json())


@pytest.fixture
def port() -> Iterator[int]:
    """A port where nothing answers yet, and the address of the API."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    url = f"http://127.0.0.1:{number}/api"
    with temporary_settings({PREFECT_API_URL: url, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}):
        yield number


@pytest.fixture
def api(port: int) -> Iterator[Api]:
    made = Api(port)
    yield made
    made.close()


def waiting(run_ids: list[UUID], **limits: float) -> tuple[threading.Thread, list[int]]:
    """Begin to wait in a thread; give it and the list that gets the answer."""
    unknown: list[int] = []
    url = PREFECT_API_URL.value()

    def wait() -> None:
        with temporary_settings({PREFECT_API_URL: url}):
            unknown.append(wait_until_recorded(run_ids, LOGGER, **limits))

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, unknown


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the waiting logged; threads of other tests may log meanwhile."""
    return [record.getMessage() for record in caplog.records if record.name == LOGGER.name]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_waits_until_all_are_there(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    ids = [uuid4() for _ in range(1_250)]
    thread, unknown = waiting([*ids, ids[0]])
    until(lambda: api.asked)
    api.known |= set(ids[:1_201])
    asked = api.asked
    until(lambda: api.asked > asked)
    assert thread.is_alive()
    api.known |= set(ids)
    thread.join(30)
    assert unknown == [0]
    assert not said(caplog)


def test_it_gives_up_without_progress_and_says_what_is_lost(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [uuid4() for _ in range(303)]
    api.known |= {ids[0]}
    assert wait_until_recorded(ids, LOGGER, no_progress_s=0.2) == 302
    (message,) = said(caplog)
    assert "302 of 303 task runs" in message
    assert "no progress" in message
    assert "nothing of their results is lost" in message


def test_it_asks_on_while_nothing_answers(port: int, caplog: pytest.LogCaptureFixture) -> None:
    run_id = uuid4()
    with caplog.at_level(logging.INFO, LOGGER.name):
        # Away for longer than there may be no progress: that is counted from the first answer.
        thread, unknown = waiting([run_id], no_progress_s=20, away_s=60)
        until(lambda: said(caplog))
        api = Api(port)
        try:
            until(lambda: api.asked)
            assert thread.is_alive()
            api.known.add(run_id)
            thread.join(30)
        finally:
            api.close()
    assert unknown == [0]
    first, last = said(caplog)
    assert "does not answer" in first
    assert "answers again" in last


@pytest.mark.parametrize("status", [None, 500, 503, 404])
def test_it_gives_up_when_nothing_answers_for_long(
    port: int, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    api = Api(port) if status is not None else None
    try:
        if api is not None and status is not None:
            api.status = status
        began = time.monotonic()
        assert wait_until_recorded([uuid4(), uuid4()], LOGGER, away_s=0.5) == 2
        assert 0.4 < time.monotonic() - began < 20
    finally:
        if api is not None:
            api.close()
    first, last = said(caplog)
    assert "does not answer" in first
    assert "2 of 2 task runs" in last
    assert "did not answer" in last
