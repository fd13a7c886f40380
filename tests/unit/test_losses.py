"""What of a unit its worker was at when it died, as far as the marks tell."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from distributed import KilledWorker, Status
from distributed.scheduler import WorkerState

from evolve_tasks.answers import Lost
from evolve_tasks.core.actions import Expand, Process
from evolve_tasks.losses import Losses
from evolve_tasks.under_way import UnderWay
from evolve_tasks.workers.calls import SourceCall
from evolve_tasks.workers.marks import (
    PACKING,
    SOURCE_ITSELF,
    Marks,
    marks_path,
    packing,
    sweep_marks,
)

ADDRESS = "tcp://127.0.0.1:41000"

# Unit 7 has expanded sources 20 to 22; the others are batches of what source 21 gave.
SOURCES = Expand(7, stage=0, source=20, parent=-1, offset=0, start=20, stop=23, inline=9)
FIRST = Process(8, stage=1, source=21, parent=7, offset=1, start=0, stop=100)
SECOND = Process(9, stage=1, source=21, parent=7, offset=1, start=100, stop=200)
SINGLE = Process(10, stage=1, source=21, parent=7, offset=1, start=100, stop=101)


@pytest.fixture
def losses() -> Iterator[Losses]:
    under_way = UnderWay()
    under_way.calls[7] = tuple(SourceCall(at, str(at), uuid4()) for at in range(20, 23))
    unused: Any = None
    run = f"test-losses-{uuid4().hex}"
    yield Losses(run, (), unused, unused, under_way)
    sweep_marks(run)


def dies_at(losses: Losses, *marks: tuple[int, int], start: int = 1) -> Lost:
    """A worker dies whose threads were at this; `start` tells its life from others."""
    noted = Marks(marks_path(losses.run, ADDRESS))
    for mark in marks:
        thread = threading.Thread(target=noted.at, args=mark)
        thread.start()
        thread.join()
    return lost_with(start)


def lost_with(start: int) -> Lost:
    worker = WorkerState(
        address=ADDRESS,
        status=Status.running,
        pid=start,
        name="a worker",
        memory_limit=0,
        local_directory="",
        nanny=None,
        server_id=f"Worker-{start}",
    )
    worker._occupancy_cache = 1.0  # else it asks a scheduler
    # As it comes to the flow.
    return Lost(KilledWorker("a key", worker.clean(), 0))


def test_what_threads_were_at_is_known(losses: Losses) -> None:
    lost = dies_at(losses, (21, 57), (22, SOURCE_ITSELF), (3, 8))
    assert losses.running(FIRST, lost) == [57]
    assert losses.running(SECOND, lost) == []
    assert losses.running(SOURCES, lost) == [21, 22]


def test_of_a_batch_whose_results_were_pickled_any_may_be_guilty(losses: Losses) -> None:
    lost = dies_at(losses, (21, packing(100)), (3, packing(0)))
    assert losses.running(SECOND, lost) is None
    assert losses.running(FIRST, lost) == []
    assert losses.running(SINGLE, lost) == [100]


def test_of_sources_whose_results_were_pickled_any_may_be_guilty(losses: Losses) -> None:
    lost = dies_at(losses, (20, PACKING))
    assert losses.running(SOURCES, lost) is None
    assert losses.running(FIRST, lost) == []


def test_sources_are_not_pickled_while_a_batch_of_theirs_is(losses: Losses) -> None:
    lost = dies_at(losses, (20, packing(0)))
    assert losses.running(SOURCES, lost) == [20]


def test_nobody_knows_anything_without_marks(losses: Losses) -> None:
    assert losses.running(FIRST, lost_with(1)) is None
    assert losses.running(FIRST, Lost(ValueError("not sent"))) is None


def test_a_worker_at_the_address_of_a_dead_one_has_marks_of_its_own(losses: Losses) -> None:
    """As with `dask worker --worker-port 41000`."""
    first = dies_at(losses, (21, 57))
    assert losses.running(FIRST, first) == [57]
    second = dies_at(losses, (21, 123), start=2)
    assert losses.running(FIRST, second) == []
    assert losses.running(SECOND, second) == [123]
    # What else was lost with the first is judged by what that one was at.
    assert losses.running(FIRST, lost_with(1)) == [57]
