"""Marks at the scheduler: which expansions have been reported with some of their items.

An expansion may work on short lists in passing, and leave a long one to others. If that list is
lost with its worker, Dask runs the expansion again, which must not work on the short ones again.
"""

from __future__ import annotations

from distributed import Client, Scheduler, get_worker
from distributed.utils import sync

from evolve_tasks.workers.calls import ExpandCall, Measure


def _name(run: str) -> str:
    return f"evolve-ended-{run}"


def mark_ended(client: Client, run: str, call: ExpandCall, measure: Measure) -> bool:
    """Mark an expansion, where it has both ended items and some that are left; say whether.

    Called before the ended ones are reported.
    """
    ended = any(end.ended for end in measure.ends)
    left = any(end.size > end.ended for end in measure.ends)
    if ended and left:
        client.set_metadata([_name(run), str(call.sources[0].position)], True)
    return ended and left


def ended_before(run: str, call: ExpandCall) -> bool:
    """Whether an expansion was marked; asked on a worker, about a millisecond."""
    worker = get_worker()
    keys = [_name(run), str(call.sources[0].position)]
    return bool(sync(worker.loop, worker.scheduler.get_metadata, keys=keys, default=False))


def forget_marks(client: Client, run: str) -> None:
    """Take the marks of a run away."""

    def forget(dask_scheduler: Scheduler, name: str) -> None:
        dask_scheduler.task_metadata.pop(name, None)

    client.run_on_scheduler(forget, name=_name(run))
