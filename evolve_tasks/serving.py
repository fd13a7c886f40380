"""Whether a cluster can run what was sent to it: asked while nothing ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import dask
from dask.typing import Key
from dask.utils import parse_timedelta
from distributed import Client, Scheduler

from evolve_tasks.core.absence import Absence
from evolve_tasks.errors import ClusterLost, ClusterUnfit

logger = logging.getLogger(__name__)

# How long a run goes on without a worker that could run it, unless Dask's own setting says
# otherwise: adaptive clusters may need some minutes for their first machine.
NO_WORKERS_S = 300.0

# How long nothing may end before it is asked whether there are workers at all.
IDLE_S = 5.0

Resources = Mapping[str, float]


class Serving:
    """Remembers since when there has been nobody to run what was sent.

    Args:
        client: the client of the run.
        resources: what a unit takes, by stage.
    """

    def __init__(self, client: Client, resources: Mapping[str, Resources]) -> None:
        self._client = client
        self._resources = resources
        self._absence = Absence()  # of workers, by stage; "" for any stage

    def require(self, stages: Collection[str]) -> None:
        """Called now and then while nothing ends.

        Args:
            stages: names of the stages that something is in flight of.

        Raises:
            ClusterLost: there has been no worker for `no_workers_s()`.
            ClusterUnfit: for as long no worker has had what a stage takes.
        """
        if self._connected():
            with _unless_it_dies():
                self._require_any()
                self._require_stages(stages)

    def _require_stages(self, stages: Collection[str]) -> None:
        takes = {stage: self._resources[stage] for stage in stages if self._resources.get(stage)}
        offers = self._offers() if takes else []
        for stage, wanted in takes.items():
            if self._too_long(stage, any(_covers(offer, wanted) for offer in offers)):
                raise ClusterUnfit(
                    f"no worker at {address_of(self._client)} has offered {_said(wanted)} for "
                    f"{no_workers_s():.0f} s, which stage {stage!r} takes; they offer "
                    f"{_all_said(offers)}: start workers with dask worker --resources "
                    f"{_said(wanted)!r}, or correct resources= (Dask's setting "
                    "distributed.scheduler.no-workers-timeout says how long to wait)"
                )

    def require_for(self, key: Key) -> None:
        """Called now and then while a submitted task does not end.

        Args:
            key: Dask's key of it.

        Raises:
            ClusterLost: there has been no worker for `no_workers_s()`.
            ClusterUnfit: for as long no worker has been able to run it, or what it waits for.
        """
        if self._connected():
            with _unless_it_dies():
                self._require_any()
                self._require_runnable(key)

    def _require_runnable(self, key: Key) -> None:
        found: Unrunnable | None = self._client.run_on_scheduler(unrunnable, key)
        if found is not None and found.since_s >= no_workers_s():
            raise ClusterUnfit(
                f"no worker at {address_of(self._client)} has been able to run task {found.key!r} "
                f"for {no_workers_s():.0f} s: {self._why(found)} (Dask's setting "
                "distributed.scheduler.no-workers-timeout says how long to wait)"
            )

    def _why(self, found: Unrunnable) -> str:
        """What a task asks for, what there is, and the way out."""
        wanted, there, ways = [], [], []
        if found.takes:
            wanted.append(f"takes {_said(found.takes)}")
            there.append(f"they offer {_all_said(self._offers())}")
            ways += [
                f"start workers with dask worker --resources {_said(found.takes)!r}",
                "correct its resources",
            ]
        if found.workers:
            wanted.append(f"may only run at {', '.join(found.workers)}")
            there.append(f"there are {', '.join(sorted(self._client.nthreads()))}")
            ways += [
                "start a worker there",
                "let it run elsewhere (workers= or allow_other_workers=)",
            ]
        asked = " and ".join(wanted) or "asks for nothing special"
        return f"it {'; '.join([asked, *there])}: {', or '.join(ways) or 'see the scheduler log'}"

    def _require_any(self) -> None:
        if self._too_long("", bool(self._client.nthreads())):
            raise ClusterLost(
                f"no worker has been connected to the scheduler at {address_of(self._client)} for "
                f"{no_workers_s():.0f} s, and the run cannot go on: start workers, or see in their "
                "logs why they ended, and run the flow again (Dask's setting "
                "distributed.scheduler.no-workers-timeout says how long to wait)"
            )

    def missing(self) -> str | None:
        """What no worker offers at this moment, in words; `None` if nothing is missing."""
        if not self._resources:
            return None
        offers = self._offers()
        missing = [
            f"{_said(wanted)} for stage {stage!r}"
            for stage, wanted in self._resources.items()
            if not any(_covers(offer, wanted) for offer in offers)
        ]
        return ", ".join(missing) or None

    def _offers(self) -> list[Resources]:
        """What each worker offers; a long answer, so asked only where a stage takes something."""
        # Not by `scheduler_info`: what it gives is overwritten every two seconds with an answer
        # that has no workers in it, and where nobody answers it gives the one before.
        if self._client.scheduler is None:
            raise ConnectionError("the Dask client has been closed")
        told = self._client.sync(self._client.scheduler.identity, n_workers=-1)
        return [worker.get("resources") or {} for worker in told["workers"].values()]

    def _connected(self) -> bool:
        """Whether there is a scheduler to ask.

        If not, Dask has cancelled what was in flight there, and cancels what is sent meanwhile if
        it cannot connect again. Who waits is told by the futures, with an error that says what was
        lost.
        """
        return bool(self._client.status == "running")

    def _too_long(self, stage: str, served: bool) -> bool:
        if served:
            self._absence.found(stage)
            return False
        return self._absence.missing_s(stage, time.monotonic()) >= no_workers_s()


@contextmanager
def _unless_it_dies() -> Iterator[None]:
    """Leave a question for the next time, if the scheduler dies over it."""
    try:
        yield
    except OSError as error:
        logger.debug("The scheduler cannot be asked at this moment: %r", error)


class Unrunnable(NamedTuple):
    """A task that no worker can run."""

    key: str
    since_s: float
    takes: dict[str, float]
    workers: list[str]  # addresses, names or hosts that it is restricted to; none if it is not


def unrunnable(key: Key, dask_scheduler: Scheduler) -> Unrunnable | None:
    """Look at the scheduler whether a task, or one that it waits for, can run nowhere.

    Args:
        key: Dask's key of the task.
        dask_scheduler: the scheduler; Dask gives it.
    """
    todo, seen = [dask_scheduler.tasks.get(key)], set()
    while todo:
        task = todo.pop()
        if task is None or task in seen:
            continue
        seen.add(task)
        if (since := dask_scheduler.unrunnable.get(task)) is not None:
            takes = dict(task.resource_restrictions or {})
            workers = {*(task.worker_restrictions or ()), *(task.host_restrictions or ())}
            return Unrunnable(str(task.key), time.monotonic() - since, takes, sorted(workers))
        todo += task.waiting_on or ()
    return None


def no_workers_s() -> float:
    """Seconds that a run goes on without any worker that could run it."""
    given = dask.config.get("distributed.scheduler.no-workers-timeout", None)
    return NO_WORKERS_S if given is None else float(parse_timedelta(given))


def address_of(client: Client) -> str:
    """Where the scheduler of a client is, as far as it knows."""
    scheduler = client.scheduler
    return str(scheduler.address) if scheduler is not None else "an unknown address"


def _covers(offer: Resources, wanted: Resources) -> bool:
    return all(offer.get(name, 0) >= amount for name, amount in wanted.items())


def _said(resources: Resources) -> str:
    return " ".join(f"{name}={amount:g}" for name, amount in sorted(resources.items()))


def _all_said(offers: Collection[Resources]) -> str:
    kinds = sorted({_said(offer) or "none" for offer in offers})
    return ", ".join(kinds) or "none"
