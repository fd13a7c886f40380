"""A closing worker says nothing of its last heartbeat; one that lost its scheduler does."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster, Worker

from evolve_tasks.workers.closing import QuietClosing


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What Dask's workers log in this process, after their filters."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener, logger = Listener(), logging.getLogger("distributed.worker")
    logger.addHandler(listener)
    yield told
    logger.removeHandler(listener)
    for one in list(logger.filters):
        logger.removeFilter(one)


@pytest.mark.parametrize("closes", [True, False])
def test_only_the_heartbeat_of_a_closing_worker_fails_in_silence(
    closes: bool, lines: list[str]
) -> None:
    arrived = threading.Event()

    async def never(**_: Any) -> None:
        arrived.set()
        await asyncio.Event().wait()

    with (
        # A worker that goes on beside it in the same process says nothing of it.
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as bystander,
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(bystander) as other,
        Client(cluster) as client,
    ):
        other.register_plugin(QuietClosing())
        client.register_plugin(QuietClosing())
        worker: Worker = next(iter(cluster.workers.values()))
        cluster.scheduler.handlers["heartbeat_worker"] = never
        beat = asyncio.run_coroutine_threadsafe(worker.heartbeat(), cluster.loop.asyncio_loop)
        assert arrived.wait(30)
        if closes:
            cluster.scale(0)
        else:
            # As when the scheduler's machine went away: the worker itself is still running.
            closing = asyncio.run_coroutine_threadsafe(
                _drop_connections(worker), cluster.loop.asyncio_loop
            )
            closing.result(30)
        beat.result(30)
        failed = [line for line in lines if "heartbeat" in line]
        assert bool(failed) is not closes, lines


async def _drop_connections(worker: Worker) -> None:
    await worker.rpc.close()
