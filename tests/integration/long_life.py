"""Runs of a served flow, one after another, and whether anything grows with them.

    python -m tests.integration.long_life --runs 120

A server, a scheduler, four workers and a process that serves a flow live as long as this does; the
flow is run again and again. After every tenth run a line tells what these processes hold. It ends
with 1 if they hold more after the last run than after the sixtieth.

Two workers are as users have them: what is resident is judged in these. Python keeps to itself what
small objects have, and tells how many there are, not how large. So two more have glibc's allocator
for all of it, which knows each byte that is in use: that is judged in those. What is resident there
is not: between objects of all sizes more is free than where Python keeps small ones apart.

What Dask's processes keep for later is given back before each look: memory that is free, and
connections with each other that nobody uses. Not judged is what Dask keeps by itself, an empty
topic for each client that there ever was. What it notes of what it did has bounds that are reached
after an hour or so: here they are reached before the first look. What cannot be set is thrown away
before each look: the last 100,000 names of tasks that a process has taken apart.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
from dask.utils import key_split
from distributed import Client
from distributed.core import ConnectionPool
from prefect import task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.integration.faults import ROOT, Site, site
from tests.integration.servers import prefect_environment
from tests.integration.waiting import until

NAME = "long-life"
EVERY = 10  # runs between two lines
# So many bring in what is used for good: modules, caches, a client on each worker. And they age the
# workers' memory: what is free between what is in use, on pages that are resident, grows for some
# thirty runs on each of two workers, and then no more. Four take twice as many to do as much each.
# What leaks goes on after that.
BASE = 60
LIMIT_S = 180.0  # for one run
SETTLED_S = 60.0  # until what a run used has been given back
MB = 1e6

# A process may keep so much more after some runs than after others, for its buffers.
RESIDENT_MB = 4.0
# In use is what it is: what workers have allocated, and not freed.
USED_MB = 1.0

# Dask's own; and where each byte in use is counted, what is free beside it, for those who ask.
NOT_JUDGED = {"clients_topics", "counted_mb", "counted_free_mb"}

# glibc has a heap for each of some threads: what is left of peaks looks like growth. One heap gives
# back each page that is free.
FREE_IS_GIVEN_BACK = {"MALLOC_ARENA_MAX": "1"}

# glibc knows what is in use of all that it has allocated.
COUNTED = {"PYTHONMALLOC": "malloc"}
WORKERS = ({}, {}, COUNTED, COUNTED)

# Dask's settings for what it notes: lines of its log, samples of its monitor, transitions,
# computations, profiles, and events of clients that have left.
BRIEF_NOTES = {
    "DASK_DISTRIBUTED__SCHEDULER__EVENTS_CLEANUP_DELAY": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__LOG_LENGTH": "20",
    "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "10",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__DIAGNOSTICS__COMPUTATIONS__MAX_HISTORY": "10",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}

KINDS = [
    {"strategy": "as_completed"},
    {"strategy": "nested"},
    {"strategy": "async"},
    {"strategy": "as_completed", "journal": "long-life"},
    {"strategy": "sequential"},
]


@task
def numbers_below(limit: int) -> list[int]:
    """A source gives this many items."""
    return list(range(limit))


@task(retries=1)
def twice(x: int) -> int:
    """What comes out of an item."""
    return 2 * x


EXPECTED = sum(2 * x for limit in range(20) for x in range(limit)) + 1 + 2 + 3


@dataclass
class Held:
    """What the processes hold at one moment, between runs.

    Args:
        processes: those that serve the flow, and those of the scheduler and the workers.
        files: that they have open, connections among them, but for those with whoever looks, and
            those that Dask's pools have opened again since they were emptied.
        connections: of these.
        threads: of all.
        serving_mb: resident, in the process that serves the flow.
        scheduler_mb: in that of the scheduler.
        workers_mb: in those of the workers as users have them, and their nannies.
        counted_mb: in those of the others.
        counted_used_mb: of that, allocated by these workers and not freed.
        counted_free_mb: free in these workers, on pages of their heap that are resident.
        tasks: that the scheduler knows.
        metadata: entries in its task metadata.
        plugins: of the scheduler, and of workers as it knows them.
        topics: of its events that are ours.
        clients_topics: of its events that are Dask's own: one for each client that there ever was.
        worker_plugins: on the workers.
    """

    processes: int
    files: int
    connections: int
    threads: int
    serving_mb: float
    scheduler_mb: float
    workers_mb: float
    counted_mb: float
    counted_used_mb: float
    counted_free_mb: float
    tasks: int
    metadata: int
    plugins: int
    topics: int
    clients_topics: int
    worker_plugins: int

    def grown(self, before: Held) -> list[str]:
        """What is more than it was, of what is judged."""
        told = []
        for field in fields(self):
            now, then = getattr(self, field.name), getattr(before, field.name)
            allowed = RESIDENT_MB if field.name.endswith("_mb") else 0
            allowed = USED_MB if field.name == "counted_used_mb" else allowed
            if field.name not in NOT_JUDGED and now > then + allowed:
                told.append(f"{field.name} {_told(then)} -> {_told(now)}")
        return told


class Life:
    """The processes, and how they are asked."""

    def __init__(self, here: Site, serving: subprocess.Popen[bytes], client: Client) -> None:
        self._serving = psutil.Process(serving.pid)
        pids = [process.pid for process in here.cluster]
        self._scheduler = psutil.Process(pids[0])
        self._workers = [psutil.Process(pid) for pid in pids[1:]]
        pairs = list(zip(self._workers, WORKERS, strict=True))
        self._counted = [worker for worker, own in pairs if own == COUNTED]
        self._client = client

    def held(self) -> Held:
        """What they hold."""
        serving, scheduler = [self._serving], [self._scheduler]
        serving += self._serving.children(recursive=True)
        workers = _with_children([one for one in self._workers if one not in self._counted])
        counted = _with_children(self._counted)
        everybody = serving + scheduler + workers + counted

        for asked in _close_unused, _give_back:
            self._client.run_on_scheduler(asked)
            self._client.run(asked)

        def on_scheduler(dask_scheduler: Any) -> dict[str, int]:
            topics = list(dask_scheduler._broker._topics)
            ours = [topic for topic in topics if topic.startswith("evolve")]
            return {
                "tasks": len(dask_scheduler.tasks),
                "metadata": len(dask_scheduler.task_metadata),
                "plugins": len(dask_scheduler.plugins) + len(dask_scheduler.worker_plugins),
                "topics": len(ours),
                "clients_topics": len(topics) - len(ours),
            }

        def on_worker(dask_worker: Any) -> dict[str, float]:
            is_counted = COUNTED.items() <= os.environ.items()
            return {
                "worker_plugins": len(dask_worker.plugins),
                **(_heap() if is_counted else {}),
            }

        counts: dict[str, Any] = self._client.run_on_scheduler(on_scheduler)
        for more in self._client.run(on_worker).values():
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count
        files, connections = self._open(everybody)
        return Held(
            processes=len(everybody),
            files=files,
            connections=connections,
            threads=sum(process.num_threads() for process in everybody),
            serving_mb=_resident(serving),
            scheduler_mb=_resident(scheduler),
            workers_mb=_resident(workers),
            counted_mb=_resident(counted),
            **counts,
        )

    def _open(self, processes: list[psutil.Process]) -> tuple[int, int]:
        """Files and connections that these have open, at a moment when none opens or closes any."""

        def is_quiet() -> bool:
            nonlocal files, connections, pooled
            files, connections = _files(processes), _connections(processes)
            pooled = self._client.run_on_scheduler(_pooled)
            pooled += sum(self._client.run(_pooled).values())
            return (files, connections) == (_files(processes), _connections(processes))

        files, connections, pooled = 0, list[Any](), 0
        until(is_quiet, "no connection is opened or closed for a moment", SETTLED_S)
        mine = {one.laddr for one in _connections([psutil.Process()])}
        # Both ends of those in pools, and those with whoever looks.
        apart = 2 * pooled + sum(one.raddr in mine for one in connections)
        return files - apart, len(connections) - apart

    def connections(self) -> Counter[str]:
        """Who is connected with whom, each end by itself, for those who ask why there are more."""
        named = {self._serving.pid: "serving", self._scheduler.pid: "scheduler"}
        for number, worker in enumerate(self._workers):
            for process in (worker, *worker.children(recursive=True)):
                named[process.pid] = f"worker {number} ({process.pid})"
        ends = [
            (name, one)
            for pid, name in named.items()
            for one in _connections([psutil.Process(pid)])
        ]
        owner = {one.laddr: name for name, one in ends}
        return Counter(
            f"{name} - {owner.get(one.raddr, one.raddr) if one.raddr else 'nobody'}, {one.status}"
            for name, one in ends
        )

    def transitions(self) -> int:
        """How often a task of the scheduler has changed its state."""
        return int(self._client.run_on_scheduler(_transitions))

    def settled(self, before: Held | None) -> Held:
        """What they hold when a run has given everything back, or the time for that is over."""
        give_up = time.monotonic() + SETTLED_S
        latest = None
        while True:
            try:
                found = self.held()
            except psutil.NoSuchProcess:
                if time.monotonic() > give_up:
                    raise
                continue  # that of a run, which has ended meanwhile
            # Without one before it, it goes by itself: it is over when nothing changes.
            since = before or latest
            settled = since is not None and not found.grown(since)
            if before is None and settled and latest is not None:
                settled = not latest.grown(found)
            if settled or time.monotonic() > give_up:
                return found
            latest = found
            time.sleep(1)


def _transitions(dask_scheduler: Any) -> int:
    return int(dask_scheduler.transition_counter)


def _pools() -> list[ConnectionPool]:
    # A server has one, and so have the clients that tasks use there.
    return list(ConnectionPool._instances)


def _close_unused() -> None:
    """Let a process of Dask close the connections that it keeps for later."""
    for pool in _pools():
        pool.collect()


def _pooled() -> int:
    """Connections that this process has in its pools."""
    return sum(pool.open for pool in _pools())


def _give_back() -> None:
    """Let a process of Dask give back what else it keeps for later."""
    key_split.cache_clear()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _heap() -> dict[str, float]:
    """What this process has allocated and not freed, and what is free on its heap's pages."""
    # As glibc's `mallinfo2` tells it. Made here: the class could not be sent to a worker.
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    kept = {"_fields_": [(name, ctypes.c_size_t) for name in names.split()]}
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = type("Allocated", (ctypes.Structure,), kept)
    told = libc.mallinfo2()
    resident = sum(one.rss for one in psutil.Process().memory_maps() if one.path == "[heap]")
    # What is larger than a page or some has a mapping of its own, all of which is in use.
    return {
        "counted_used_mb": float(told.uordblks + told.hblkhd) / MB,
        "counted_free_mb": float(resident - told.uordblks) / MB,
    }


def _with_children(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for process in processes for one in (process, *process.children(recursive=True))]


def _told(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _files(processes: list[psutil.Process]) -> int:
    return sum(process.num_fds() for process in processes)


def _connections(processes: list[psutil.Process]) -> list[Any]:
    return [one for process in processes for one in process.net_connections("inet")]


def _resident(processes: list[psutil.Process]) -> float:
    return float(sum(process.memory_info().rss for process in processes)) / MB


@contextmanager
def _served(here: Site, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the flow in a process of its own."""
    environment = prefect_environment(home / "prefect", here.server.url)
    environment |= {
        "PYTHONPATH": str(ROOT),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "DASK_SCHEDULER_ADDRESS": here.scheduler,
    }
    with (home / "serving.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.served_flow"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_served(client: SyncPrefectClient) -> bool:
    try:
        client.read_deployment_by_name(f"{NAME}/{NAME}")
    except ObjectNotFound:
        return False
    return True


def _run(client: SyncPrefectClient, parameters: dict[str, Any]) -> None:
    """Have the flow run once, and wait for its end."""
    deployment = client.read_deployment_by_name(f"{NAME}/{NAME}")
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def state() -> Any:
        return client.read_flow_run(run.id).state

    until(lambda: state().is_final(), f"run {run.name} ends", LIMIT_S)
    assert state().is_completed(), f"run {run.name} with {parameters}: {state()}"


def live(home: Path, runs: int) -> int:
    """Run the flow so often; print what is held.

    Args:
        home: an empty folder.
        runs: how often, at least 70: two looks are compared. Those after the last full ten are
            not looked at.

    Returns:
        How many things have grown.
    """
    with (
        site(home, BRIEF_NOTES | FREE_IS_GIVEN_BACK, WORKERS) as here,
        temporary_settings({PREFECT_API_URL: here.server.url}),
        _served(here, home) as serving,
        Client(here.scheduler, set_as_default=False) as dask,
        get_client(sync_client=True) as client,
    ):
        until(lambda: _is_served(client), "the flow is served", LIMIT_S)
        life = Life(here, serving, dask)
        names = [field.name for field in fields(Held)]
        print("runs", *names, sep="\t")  # noqa: T201
        looks: list[Held] = []
        base = BASE // EVERY - 1
        connections: list[Counter[str]] = []
        for number, parameters in enumerate(islice(cycle(KINDS), runs), start=1):
            _run(client, parameters)
            if number % EVERY == 0:
                looks.append(life.settled(looks[base] if len(looks) > base else None))
                connections.append(life.connections())
                values = (_told(getattr(looks[-1], name)) for name in names)
                print(number, *values, sep="\t", flush=True)  # noqa: T201
        assert life.transitions() > 10 * runs, "runs did not use the cluster"
    grown = looks[-1].grown(looks[base])
    for text in grown:
        print(f"it grew: {text}")  # noqa: T201
    if grown:
        print(f"connections since then: {connections[-1] - connections[base]}")  # noqa: T201
    return len(grown)


def main() -> int:
    """Run, and print what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.long_life", description=__doc__
    )
    parser.add_argument("--runs", type=int, default=120)
    given = parser.parse_args()
    if given.runs < BASE + EVERY:
        parser.error(
            f"--runs {given.runs}: what is held after {BASE} runs is what the last look is "
            f"compared with, so at least {BASE + EVERY} are needed"
        )
    with tempfile.TemporaryDirectory(prefix="evolve-life-", ignore_cleanup_errors=True) as home:
        return int(live(Path(home), given.runs) > 0)


if __name__ == "__main__":
    sys.exit(main())
