"""A list that is lost with its worker is made again, and nothing is done twice over it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from distributed import Client, Future, LocalCluster

from evolve_tasks.core.actions import Expand, Process, Turn
from evolve_tasks.stages import stages_from
from evolve_tasks.strategies.submitting import Submitter, new_run_name
from evolve_tasks.strategies.together import Member
from evolve_tasks.workers import units
from evolve_tasks.workers.calls import (
    ExpandCall,
    Measure,
    Part,
    ProcessCall,
    Recording,
    RunSpec,
    SourceCall,
    Together,
)
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


def test_lists_of_units_that_went_together_are_made_again(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        run = new_run_name()

        def listed(source: int) -> list[int]:
            return [10 * source + number for number in range(SIZES[source])]

        def ten_times(number: int) -> int:
            Path(tmp_path, f"{number}.{uuid4().hex}").touch()
            return 10 * number

        spec = RunSpec(run, stages_from([listed, ten_times]), {}, failures_recorded=False)
        submitter = Submitter(client, None, spec)
        submitter.open()
        # Units 1 and 2 expand two sources and one; the short list is worked on in passing.
        sources = [SourceCall(source, str(source), uuid4()) for source in SIZES]
        party = [
            Member(
                Expand(unit, 0, 0, 0, 0, 0, len(given), INLINE, beside=beside),
                ExpandCall(
                    stage=0,
                    sources=tuple(sources[source] for source in given),
                    items=Packed.of(given),
                    inline=2,
                    recording=Recording(),
                ),
            )
            for unit, beside, given in ((1, -1, [0, 1]), (2, 1, [2]))
        ]
        told: Together = submitter.together(party, turn=Turn.BEHIND).result()
        first, second = told.answers
        assert isinstance(first, Measure)
        assert isinstance(second, Measure)
        assert [(end.size, end.ended) for end in first.ends] == [(2, 2), (5, 0)]
        assert [(end.size, end.ended) for end in second.ends] == [(3, 0)]
        assert (first.values.value(), second.values.value()) == ([[0, 10], []], [[]])
        submitter.measured(1, first)
        submitter.measured(2, second)
        kill_who_has(client, submitter._expansions[1])

        def batch(unit: int, parent: int, offset: int, size: int, beside: int = -1) -> Member:
            source = sources[parent + offset]
            part = Part(source.label, offset, 0, size, size)
            action = Process(unit, 1, 0, parent, offset, 0, size, beside=beside)
            return Member(action, ProcessCall(1, source, part, Recording()))

        # In whatever company they are asked for.
        alone = submitter.process(*batch(3, 2, 0, 3)).result()  # type: ignore[arg-type]
        assert alone.values.value() == [200, 210, 220]
        answers = submitter.together([batch(4, 1, 1, 5)], turn=Turn.BEHIND).result().answers
        assert [one.values.value() for one in answers] == [[100, 110, 120, 130, 140]]
        # What the first one had done in passing is not done again.
        done = [path.name.split(".")[0] for path in tmp_path.iterdir()]
        assert sorted(done, key=int) == ["0", "1", *map(str, range(10, 15)), "20", "21", "22"]
        # The lists are there until both have let go of them.
        submitter.release(2)
        assert submitter._expansions[1].status != "cancelled"
        submitter.close()


def kill_who_has(client: Client, future: Future[Any]) -> None:
    """Kill the worker that holds a result, and wait until the scheduler has seen it."""
    (address,) = client.who_has([future])[future.key]
    os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)
    until(
        lambda: address not in client.scheduler_info(n_workers=-1)["workers"],
        "the scheduler sees that the worker died",
    )
