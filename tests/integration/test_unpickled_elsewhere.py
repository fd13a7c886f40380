"""Items that cannot be made in another process than the one that found them cost themselves."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from evolve_tasks import EvolveTaskRunner, Failure, Outcome, evolve
from tests.conformance.flows import in_flow
from tests.integration.dask_processes import DaskProcess

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

ITEMS = 30
HEAVY = b"x" * 20_000  # so that parts of the list travel, and not all of it


def made_at_home(pid: int) -> AtHome:
    """Unpickle one, in the process that it comes from alone."""
    if os.getpid() != pid:
        raise OSError("the file it stands for is elsewhere")
    return AtHome()


class AtHome:
    """Something that is bound to its process."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return made_at_home, (os.getpid(),)


def found(source: str) -> list[Any]:
    return {
        "plain": [*range(ITEMS)],
        "at home": [AtHome()] * ITEMS,
        "heavy": [(HEAVY, AtHome())] * ITEMS,
    }[source]


def seen(item: Any) -> Any:
    return item


def test_they_fail_and_nothing_else_does(tmp_path: Path) -> None:
    """Dask would ask for them again and again."""
    sources = ["plain", "at home", "heavy"]
    with LocalCluster(n_workers=0, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with (
            DaskProcess(tmp_path / "one", "worker", address, "--resources", "READS=1"),
            DaskProcess(tmp_path / "other", "worker", address, "--resources", "WORKS=1"),
        ):
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)

            def body(strategy: Any, batch: Any) -> Outcome:
                resources = {"found": {"READS": 1}, "seen": {"WORKS": 1}}
                options: dict[str, Any] = {"strategy": strategy, "batch": batch}
                return evolve(
                    sources, found, seen, resources=resources, on_failure="ignore", **options
                )

            for strategy, batch in [("as_completed", 1), ("async", "auto"), ("nested", "auto")]:
                call = partial(body, strategy, batch)
                outcome = in_flow(EvolveTaskRunner(address=address), call)
                assert outcome.results == [*range(ITEMS)], strategy
                assert [_of(one) for one in outcome.failures] == [
                    (source, item) for source in (1, 2) for item in range(ITEMS)
                ], strategy
                assert all("is elsewhere" in one.message for one in outcome.failures), strategy


def _of(failure: Failure) -> tuple[int, ...]:
    return tuple(failure.index)
