"""A worker dies with results that had ended, before the flow has fetched them.

Dask makes them again, where it can. The run neither waits for that nor stands still meanwhile.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import dask
import pytest
from distributed import Client, Future, LocalCluster
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelling

from evolve_tasks import ClusterLost, EvolveTaskRunner, Outcome, RunCancelled, evolve
from evolve_tasks.strategies import fetching
from evolve_tasks.strategies.fetching import Fetching
from evolve_tasks.workers.calls import BatchResult
from evolve_tasks.workers.watch import RunWatch
from tests.conformance.flows import in_flow
from tests.integration.test_clear_ends import SHORT, worker
from tests.integration.waiting import until

ITEMS = 20
WIDTH = 8  # items in flight
ENDS_S = 40.0  # until a run has ended that cannot go on; on a busy machine

STRATEGIES = ["as_completed", "async"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


def twenty(diary: str) -> list[tuple[str, int]]:
    return [(diary, number) for number in range(ITEMS)]


def noted(item: tuple[str, int]) -> int:
    """The first ones run on all workers that there are; what runs again waits at a gate."""
    diary, number = Path(item[0]), item[1]
    again = any(diary.glob(f"item-{number}.*"))
    (diary / f"item-{number}.{os.getpid()}.{os.urandom(4).hex()}").touch()
    workers = int((diary / "workers").read_text())
    until(lambda: len(at_work(diary)) >= workers, "each worker has begun one")
    if again:
        until((diary / "gate").exists, "the gate is opened")
    return number


def at_work(diary: Path) -> set[str]:
    """The processes that have begun an item."""
    return {path.name.split(".")[1] for path in diary.glob("item-*")}


@contextmanager
def workers(count: int, folder: Path) -> Iterator[str]:
    """A scheduler with workers that nobody starts again."""
    (folder / "workers").write_text(str(count))
    with (
        LocalCluster(n_workers=0, processes=True, dashboard_address=None) as cluster,
        ExitStack() as stack,
    ):
        address = cluster.scheduler_address
        for number in range(count):
            stack.enter_context(worker(address, folder / f"worker-{number}", "--nthreads", "1"))
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)
        yield address


@dataclass
class Hold:
    """Keeps the flow from fetching results of items until their worker has been killed."""

    killed: threading.Event = field(default_factory=threading.Event)
    fetched: list[BatchResult] = field(default_factory=list)

    def over(self, monkeypatch: pytest.MonkeyPatch, then: Callable[[], Any]) -> None:
        """Hold them back; call `then` when some have come after that."""
        take = Fetching.take

        def held(results: Fetching, futures: list[Future[Any]], *more: Any) -> list[Any]:
            of_items = any(str(future.key[0]).startswith("noted-") for future in futures)
            if of_items:
                assert self.killed.wait(60), "the worker was not killed"
            answers = take(results, futures, *more)
            if found := [answer for answer in answers if isinstance(answer, BatchResult)]:
                self.fetched += found
                then()
            return answers

        monkeypatch.setattr(Fetching, "take", held)

    def kill(self, address: str) -> None:
        """Kill a worker, as soon as each has results and none is at work."""
        with Client(address, set_as_default=False) as client:
            count = len(client.nthreads())
            until(lambda: len(holders(client, "noted-")) == count, "each worker has results")
            until(lambda: not any(client.processing().values()), "all that was sent has ended")
            place = min(holders(client, "noted-"))
            pids = client.run(os.getpid)
            os.kill(pids[place], signal.SIGKILL)
            until(lambda: place not in client.nthreads(), "the scheduler sees that it died")
        self.killed.set()


def holders(client: Client, prefix: str) -> set[str]:
    """The workers that have results of such tasks."""

    def on_scheduler(dask_scheduler: Any) -> list[str]:
        return [
            worker.address
            for key, task in dask_scheduler.tasks.items()
            if str(key[0]).startswith(prefix)
            for worker in task.who_has or ()
        ]

    return set(client.run_on_scheduler(on_scheduler))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_others_have_is_taken_before_lost_results_are_made_again(
    strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold()
    # What was lost is not made again before something else was fetched.
    hold.over(monkeypatch, (tmp_path / "gate").touch)
    with workers(2, tmp_path) as address:
        killer = threading.Thread(target=hold.kill, args=(address,))
        killer.start()

        def body() -> Outcome:
            options: Any = {"strategy": strategy, "batch": 1, "in_flight": WIDTH}
            return evolve([str(tmp_path)], twenty, noted, **options)

        outcome = in_flow(EvolveTaskRunner(address=address), body)
        killer.join()
    assert outcome.results == list(range(ITEMS))
    assert outcome.counts.done == ITEMS
    # Each was fetched once, and some had run for nothing.
    assert len(hold.fetched) == ITEMS
    assert len(list(tmp_path.glob("item-*"))) > ITEMS


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lost_results_that_nobody_can_make_again_end_the_run(
    strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold()
    hold.over(monkeypatch, lambda: None)
    with workers(1, tmp_path) as address, dask.config.set(SHORT):
        killer = threading.Thread(target=hold.kill, args=(address,))
        killer.start()
        options: Any = {"strategy": strategy, "batch": 1, "in_flight": WIDTH}
        with pytest.raises(ClusterLost, match=r"no worker .* for 2 s"):
            in_flow(
                EvolveTaskRunner(address=address),
                partial(evolve, [str(tmp_path)], twenty, noted, **options),
            )
        killer.join()
    assert not hold.fetched


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_waits_for_lost_results_can_be_cancelled(
    strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold()
    hold.over(monkeypatch, lambda: None)
    ids: list[UUID] = []
    cancelled: list[float] = []
    with workers(1, tmp_path) as address:

        def kill_and_cancel() -> None:
            hold.kill(address)
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(ids[0], Cancelling())
            cancelled.append(time.monotonic())

        canceller = threading.Thread(target=kill_and_cancel)
        canceller.start()

        def body() -> Outcome:
            ids.append(UUID(flow_run.id))
            options: Any = {"strategy": strategy, "batch": 1, "in_flight": WIDTH}
            return evolve([str(tmp_path)], twenty, noted, **options)

        with pytest.raises(RunCancelled):
            in_flow(EvolveTaskRunner(address=address), body)
        took_s = time.monotonic() - cancelled[0]
        canceller.join()
    assert took_s < ENDS_S  # without workers it would go on for five minutes


def known(keys: list[Any], dask_scheduler: Any) -> list[Any]:
    return [key for key in keys if key in dask_scheduler.tasks]


def test_only_what_is_there_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.5)
    with workers(2, tmp_path) as address, Client(address, set_as_default=False) as client:
        results = Fetching(client)
        ones, pids = list(client.nthreads()), client.run(os.getpid)
        futures = [client.submit(abs, -number, key=("one", number)) for number in range(4)]
        ours = [
            client.submit(abs, -number, key=("bound", number), workers=[place])
            for number, place in enumerate(ones)
        ]
        until(lambda: all(future.done() for future in futures + ours), "all have ended")
        client.register_plugin(RunWatch("none", client.id, []))
        with monkeypatch.context() as kept:
            kept.setattr(Future, "release", lambda future: None)
            assert results.take(futures, lambda: False) == [0, 1, 2, 3]
            # Who has told of them must not see them made again, if their worker dies now.
            assert client.run_on_scheduler(known, [future.key for future in futures]) == []
        for future in futures:
            future.release()
        until(lambda: all(future.status == "cancelled" for future in futures), "they are released")

        # A worker that does not answer, and does not close its connections.
        os.kill(pids[ones[0]], signal.SIGSTOP)
        assert results.take(ours, lambda: False) == [None, None]
        assert results.take(ours[1:], lambda: False) == [1]
        assert results.take(ours[:1], lambda: True) == [None]
        os.kill(pids[ones[0]], signal.SIGCONT)
        until(lambda: results.take(ours[:1], lambda: False) == [0], "it comes")

        # One that is lost, one that failed, one that is there.
        lost = client.submit(abs, -1, key=("lost", 1), workers=[ones[0]])
        failed = client.submit(abs, None, key=("failed", 1))
        there = client.submit(abs, -2, key=("there", 1), workers=[ones[1]])
        mixed = [lost, failed, there]
        until(lambda: all(future.done() for future in mixed), "all have ended")
        os.kill(pids[ones[0]], signal.SIGKILL)
        until(lambda: lost.status == "lost", "it is told that it is lost")
        answers: list[Any] = results.take(mixed, lambda: False)
        assert [type(answer).__name__ for answer in answers] == ["NoneType", "Lost", "int"]
