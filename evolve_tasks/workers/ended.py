"""Marks at the scheduler: what must not be done again when Dask makes a lost list anew.

An expansion works on short lists where it finds them. If what it gave is lost with its worker,
Dask runs it again, and those items may have been reported by then. So it leaves a mark before
anybody can see its result, and one that finds a mark leaves its items to be asked for: those
that were reported are not, the others are worked on as batches.

And an expansion may give some of its items on the way, while the lists of others stay where they
are. Once the flow has its answer, it marks which lists stayed: only these are made anew, and
nothing is sent.
"""

from __future__ import annotations

from typing import Any

from distributed import Client, Scheduler, get_worker
from distributed.utils import sync

from evolve_tasks.workers.calls import ExpandCall


def _name(run: str) -> str:
    return f"evolve-ended-{run}"


def _keys(run: str, call: ExpandCall) -> list[str]:
    return [_name(run), ".".join(map(str, call.sources[0].index))]


def mark_ended(run: str, call: ExpandCall) -> None:
    """Mark an expansion; called on a worker, about a millisecond."""
    worker = get_worker()
    sync(worker.loop, worker.scheduler.set_metadata, keys=_keys(run, call), value=True)


def ended_before(run: str, call: ExpandCall) -> bool:
    """Whether an expansion was marked; asked on a worker, about a millisecond."""
    worker = get_worker()
    get: Any = worker.scheduler.get_metadata
    return bool(sync(worker.loop, get, keys=_keys(run, call), default=False))


def mark_kept(client: Client, run: str, unit: int, offsets: list[int]) -> None:
    """Mark which lists of a unit stayed on its worker; called in the flow."""
    client.set_metadata([_name(run), f"unit {unit}"], offsets)


def kept_before(run: str, unit: int) -> list[int] | None:
    """Which lists of a unit stayed on its worker, if it was answered; asked on a worker."""
    worker = get_worker()
    get: Any = worker.scheduler.get_metadata
    found: list[int] | None = sync(
        worker.loop, get, keys=[_name(run), f"unit {unit}"], default=None
    )
    return found


def forget_marks(dask_scheduler: Scheduler, run: str) -> None:
    """Take the marks of a run away; called on the scheduler."""
    dask_scheduler.task_metadata.pop(_name(run), None)


def forget_marks_from(client: Client, run: str) -> None:
    """Take the marks of a run away, from where the flow is."""
    client.run_on_scheduler(forget_marks, run=run)
