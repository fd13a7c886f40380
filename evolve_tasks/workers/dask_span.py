"""One span of Dask's for all that is submitted here, so that a scheduler's memory does not grow.

Dask begins a span whenever a cluster has been idle, and keeps it for as long as the scheduler
lives, with the task groups of all that ran in it; and each worker counts for each span. With a
flow run in each minute that was 90 MB a day. Tasks that say which span they belong to begin none,
and of that one only what has been forgotten has to be let go of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter

from dask.base import annotate, get_annotations
from distributed import Scheduler

NAME = "evolve-tasks"

# As `distributed.span` makes it, but for the id, which is a new one there each time.
_ANNOTATION = {"name": (NAME,), "ids": (NAME,)}


@contextmanager
def in_our_span() -> Iterator[None]:
    """Let Dask tasks that are submitted in the block belong to our span, whatever is around it."""
    with annotate(span=_ANNOTATION):
        yield


@contextmanager
def in_one_span() -> Iterator[None]:
    """Let Dask tasks that are submitted in the block belong to our span, or to the user's own."""
    with nullcontext() if "span" in get_annotations() else in_our_span():
        yield


def forget_groups(dask_scheduler: Scheduler) -> None:
    """Let our span forget what the scheduler has forgotten; called on the scheduler."""
    spans = dask_scheduler.extensions.get("spans")
    span = None if spans is None else spans.spans.get(NAME)
    if span is None:
        return
    known = dask_scheduler.task_groups
    gone = [group for group in span.groups if known.get(group.name) is not group]
    if len(gone) == len(span.groups) > 0:
        # Dask takes it for granted that a span has one: its dashboard asks when the last has ended.
        gone.remove(max(gone, key=attrgetter("stop")))
    span.groups.difference_update(gone)
    if span._metadata is not None:  # an entry for each task that was ever submitted
        span._metadata["collections"].clear()
