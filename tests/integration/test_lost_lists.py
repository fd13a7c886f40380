"""A list that is lost with its worker is made again, and nothing is done twice over it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from distributed import Client, Future, LocalCluster

from evolve_tasks.core.actions import Turn
from evolve_tasks.stages import stages_from
from evolve_tasks.strategies.submitting import Submitter, new_run_name
from evolve_tasks.workers import units
from evolve_tasks.workers.calls import ExpandCall, Measure, Recording, RunSpec, SourceCall
from evolve_tasks.workers.transport import Packed
from tests.integration.waiting import until

pytestmark = pytest.mark.cluster

# Two short lists, worked on where they are found, and one that is left to others.
SIZES = {0: 2, 1: 5, 2: 3}
INLINE = 4


def test_an_expansion_that_dask_runs_again_leaves_what_it_worked_on_in_passing(
    tmp_path: Path,
) -> None:
    """Whether or not the flow has its first result by then: it may just be reading it."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        run = new_run_name()

        def listed(source: int) -> list[int]:
            return list(range(SIZES[source]))

        def worked_on(_: int) -> None:
            Path(tmp_path, uuid4().hex).touch()

        spec = RunSpec(run, stages_from([listed, worked_on]), {}, failures_recorded=False)
        submitter = Submitter(client, None, spec)
        submitter.open()
        call = ExpandCall(
            stage=0,
            sources=tuple(SourceCall(source, str(source), uuid4()) for source in SIZES),
            items=Packed.of(list(SIZES)),
            inline=INLINE,
            recording=Recording(),
        )
        first: Measure = submitter.expand(0, call, turn=Turn.BEHIND).result()
        assert [(end.size, end.ended) for end in first.ends] == [(2, 2), (5, 0), (3, 3)]
        in_passing = len(list(tmp_path.iterdir()))
        assert in_passing == 2 + 3

        # Nobody has told anybody that the result was read.
        expansion = submitter._expansions[0]
        kill_who_has(client, expansion)
        again: Measure = client.submit(units.measure, expansion, pure=False).result()
        assert [(end.size, end.ended) for end in again.ends] == [(2, 0), (5, 0), (3, 0)]
        assert len(list(tmp_path.iterdir())) == in_passing

        submitter.close()
        left = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_metadata))
        assert not [name for name in left if name.startswith("evolve")]


def kill_who_has(client: Client, future: Future[Any]) -> None:
    """Kill the worker that holds a result, and wait until the scheduler has seen it."""
    (address,) = client.who_has([future])[future.key]
    os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)
    until(
        lambda: address not in client.scheduler_info(n_workers=-1)["workers"],
        "the scheduler sees that the worker died",
    )
