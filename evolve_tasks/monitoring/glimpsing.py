"""Hear how far nested sources are, while they are under way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client

from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.workers.glimpses import TOPIC, Glimpse

# A client has one listener for each topic, and several runs may share the client.
_runs: WeakKeyDictionary[Client, dict[str, EvolvingRun]] = WeakKeyDictionary()
_changing = Lock()


@contextmanager
def glimpsing(client: Client, run: EvolvingRun) -> Iterator[None]:
    """Note glimpses of a run's nested sources while the block runs.

    Args:
        client: client of the cluster that they are on.
        run: the run.
    """
    with _changing:
        runs = _runs.setdefault(client, {})
        runs[run.run] = run
        if len(runs) == 1:
            client.subscribe_topic(TOPIC, partial(_show, runs))
    try:
        yield
    finally:
        with _changing:
            del runs[run.run]
            if not runs and client.status == "running":
                client.unsubscribe_topic(TOPIC)


def _show(runs: Mapping[str, EvolvingRun], event: tuple[Any, Any]) -> None:
    _, told = event
    glimpse = Glimpse(*told)
    run = runs.get(glimpse.run)
    if run is not None:
        run.glimpsed(glimpse)
