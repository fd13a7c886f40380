"""Runs that are cancelled or killed end soon, and leave nothing behind."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from distributed import Client
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Cancelling

from evolve_tasks import EvolveTaskRunner, RunCancelled, evolve, evolve_iter, journal_info
from tests.integration.api import progress_of, report_of
from tests.integration.servers import prefect_environment
from tests.integration.slow_work import begun, last_begun, many, slowly
from tests.integration.waiting import until

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

WITHIN_S = 10.0  # nothing begins any more, so long after the cancel

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


def stays(diary: Path) -> int:
    """How many items have begun, when a second has passed in which none did."""
    limit = time.monotonic() + 10
    count, since = begun(diary), time.monotonic()
    while time.monotonic() - since < 1:
        assert time.monotonic() < limit, "items still begin"
        time.sleep(0.05)
        if (now := begun(diary)) != count:
            count, since = now, time.monotonic()
    return count


def own(client: Client) -> dict[str, Any]:
    """What of ours is on a cluster."""

    def on_scheduler(dask_scheduler: Any) -> list[str]:
        plugins = [name for name in dask_scheduler.plugins if name.startswith("evolve-")]
        tasks = [str(key) for key in dask_scheduler.tasks if "slowly" in str(key)]
        return plugins + tasks

    def on_worker(dask_worker: Any) -> list[str]:
        return [name for name in dask_worker.plugins if name.startswith("evolve-")]

    found = {"scheduler": client.run_on_scheduler(on_scheduler), **client.run(on_worker)}
    return {place: names for place, names in found.items() if names}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_flow_run_that_is_cancelled_by_the_api_stops(
    strategy: str, tmp_path: Path, thread_workers: str
) -> None:
    seen: list[Any] = []
    cancelled: list[float] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        seen.append(context.flow_run.id)
        diary = str(tmp_path)
        evolve([diary], many, slowly, strategy=strategy, batch=5, journal=diary)

    def cancel() -> None:
        until(lambda: begun(tmp_path) >= 10, "it works")
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(seen[0], Cancelling())
        cancelled.append(time.time())

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(RunCancelled, match="was cancelled after"):
        night()
    canceller.join()
    assert stays(tmp_path) < 5_000
    assert last_begun(tmp_path) - cancelled[0] < WITHIN_S
    # What had ended is in the journal, but for the batches that were in flight.
    kept = journal_info(str(tmp_path)).items
    assert begun(tmp_path) - 100 <= kept <= begun(tmp_path)
    assert kept > 0
    with Client(thread_workers, set_as_default=False) as client:
        until(lambda: not own(client), "nothing is left on the cluster")
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(seen[0]).state
    assert state is not None
    assert state.is_cancelled(), state
    percent, words = progress_of(seen[0])
    assert percent < 100
    assert "cancelled after" in words
    assert report_of(seen[0]).startswith("# Cancelled after")


@pytest.mark.parametrize("strategy", ["as_completed", "async"])
def test_what_a_slow_reader_has_before_it_begins_nothing_after_a_cancel(
    strategy: str, tmp_path: Path, thread_workers: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All of the window has ended and waits to be read when the run hears of it."""
    begun_by_then: list[int] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        options: Any = {"strategy": strategy, "batch": 1, "in_flight": 10, "record": "sources"}
        for _ in evolve_iter([str(tmp_path)], many, slowly, **options):
            if begun_by_then:
                continue
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(flow_run.id), Cancelling())
            until(lambda: "The flow run was cancelled" in caplog.text, "it is heard")
            begun_by_then.append(stays(tmp_path))

    with caplog.at_level(logging.INFO), pytest.raises(RunCancelled, match="was cancelled after"):
        night()
    assert stays(tmp_path) == begun_by_then[0]


may_end = threading.Event()
begun_here: list[int] = []  # items of the long source


def one_or_twenty(source: int) -> list[tuple[int, int]]:
    return [(source, number) for number in range(source)]


def waits_for_the_end(item: tuple[int, int]) -> int:
    """The first item of the long source holds its batch up until the run is over."""
    source, number = item
    if source > 1:
        begun_here.append(number)
        may_end.wait(60)
    return number


@pytest.mark.parametrize("strategy", ["as_completed", "nested"])
def test_a_batch_that_is_left_behind_goes_no_further(strategy: str, thread_workers: str) -> None:
    may_end.clear()
    begun_here.clear()

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        options: Any = {"strategy": strategy, "batch": 20, "in_flight": 60}
        for one in evolve_iter([1, 20], one_or_twenty, waits_for_the_end, **options):
            assert one.ok
            until(lambda: begun_here, "the batch is under way")
            break

    night()
    assert len(begun_here) == 1
    may_end.set()
    with Client(thread_workers, set_as_default=False) as client:
        until(lambda: not any(client.run(busy).values()), "the batch has ended")
        until(lambda: not own(client), "nothing is left on the cluster")
    assert len(begun_here) == 1


def busy(dask_worker: Any) -> list[str]:
    return list(map(str, dask_worker.active_threads.values()))


SCRIPT = """
import sys
from pathlib import Path
from prefect import flow
from prefect.runtime import flow_run
from evolve_tasks import EvolveTaskRunner, evolve
from tests.integration.slow_work import many, slowly

@flow
def night(diary, strategy):
    (Path(diary) / "flow run").write_text(flow_run.id)
    evolve([diary], many, slowly, strategy=strategy, batch=5)

if __name__ == "__main__":
    diary, address, strategy = sys.argv[1:]
    night.with_options(task_runner=EvolveTaskRunner(address=address))(diary, strategy)
"""


@contextmanager
def night(
    strategy: str, diary: Path, prefect_api: str, address: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A flow in a process of its own, once it works."""
    script = diary / "night.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = prefect_environment(diary / "home", prefect_api)
    process = subprocess.Popen(
        [sys.executable, str(script), str(diary), address, strategy],
        env=environment | {"PYTHONPATH": root},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Whoever runs the tests in the background has them ignore Ctrl-C, which is inherited.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: begun(diary) >= 10, "it works")
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("strategy", ["as_completed", "async", "nested"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_flow_that_dies_leaves_the_cluster_clean(
    how: signal.Signals, strategy: str, tmp_path: Path, prefect_api: str, process_workers: str
) -> None:
    with night(strategy, tmp_path, prefect_api, process_workers) as process:
        signalled = time.time()
        process.send_signal(how)
        process.wait(30)
        assert stays(tmp_path) < 5_000
        assert last_begun(tmp_path) - signalled < WITHIN_S
    with Client(process_workers, set_as_default=False) as client:
        until(lambda: not own(client), "nothing is left on the cluster")
    if how != signal.SIGKILL:
        flow_run_id = UUID((tmp_path / "flow run").read_text())
        assert "cancelled after" in progress_of(flow_run_id)[1]


def test_a_runner_that_cancels_by_a_signal_leaves_a_progress_that_says_so(
    tmp_path: Path, prefect_api: str, process_workers: str
) -> None:
    # As Prefect's own runner does it: first the state, then the signal.
    with night("as_completed", tmp_path, prefect_api, process_workers) as process:
        flow_run_id = UUID((tmp_path / "flow run").read_text())
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run_id, Cancelling(), force=True)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert "cancelled after" in progress_of(flow_run_id)[1]
    assert report_of(flow_run_id).startswith("# Cancelled after")
