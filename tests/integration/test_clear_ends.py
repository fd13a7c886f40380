"""What cannot go on ends within a bound, with an error that says what to do."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from prefect import task

from evolve_tasks import (
    ClusterLost,
    ClusterUnfit,
    DaskCluster,
    EvolveTaskRunner,
    InvalidInput,
    evolve,
)
from evolve_tasks.serving import Serving
from tests.conformance.flows import in_flow
from tests.integration.servers import free_port
from tests.integration.slow_work import begun, many, slowly
from tests.integration.waiting import until

ROOT = Path(__file__).parents[2]
STRATEGIES = ["as_completed", "async", "nested"]
SHORT = {"distributed.scheduler.no-workers-timeout": "2s"}

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


def test_a_run_without_workers_ends_with_a_clear_error(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:

        def leave() -> None:
            until(lambda: begun(tmp_path) >= 5, "it works")
            cluster.scale(0)

        leaver = threading.Thread(target=leave)
        leaver.start()
        with (
            dask.config.set(SHORT),
            pytest.raises(ClusterLost, match=r"no worker .* for 2 s"),
        ):
            in_flow(
                EvolveTaskRunner(address=cluster.scheduler_address),
                lambda: evolve([str(tmp_path)], many, slowly),
            )
        leaver.join()


BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "evolve_tasks":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
"""


@contextmanager
def worker(address: str, folder: Path, *options: str, first: Path | None = None) -> Iterator[None]:
    """A worker process of its own, which has registered; `first` stands first on its path."""
    places = [first, ROOT, os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(str(place) for place in places if place)
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_worker", address, *options),
            *("--no-nanny", "--local-directory", str(folder), "--no-dashboard"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path},
        cwd=folder,  # Python looks for packages where it is started, before all else
    )
    try:
        with Client(address, set_as_default=False) as client:
            until(lambda: client.scheduler_info()["workers"], "the worker registers")
        yield
    finally:
        process.kill()
        process.wait()


def test_a_worker_without_the_package_is_told_of_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(BLOCK)
    with LocalCluster(n_workers=0, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with worker(address, tmp_path, "--preload", str(tmp_path / "block.py")):
            with pytest.raises(ClusterUnfit, match="install evolve-tasks"):
                in_flow(
                    EvolveTaskRunner(address=address),
                    lambda: evolve([str(tmp_path)], many, slowly),
                )
            found = DaskCluster(address=address).check()
    assert begun(tmp_path) == 0
    assert (found.package_on_scheduler, found.package_on_workers) == (True, False)
    assert [problem for problem in found.problems if "cannot import evolve_tasks" in problem]


@pytest.mark.parametrize(("package", "version"), [("evolve_tasks", "0.0.1"), ("prefect", "3.1.4")])
def test_other_versions_are_told_of_before_work_starts(
    package: str, version: str, tmp_path: Path
) -> None:
    # What is installed somewhere is what stands first on the path there.
    installed = tmp_path / f"{package}-{version}.dist-info"
    installed.mkdir()
    name = package.replace("_", "-")
    (installed / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    with LocalCluster(n_workers=0, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with worker(address, tmp_path / "worker", first=tmp_path):
            said = f"worker tcp://.* has {name} {version}, the flow "
            with pytest.raises(ClusterUnfit, match=said):
                in_flow(
                    EvolveTaskRunner(address=address),
                    lambda: evolve([str(tmp_path)], many, slowly),
                )
            found = DaskCluster(address=address).check()
    assert begun(tmp_path) == 0
    assert found.versions[name]["workers"] == [version]
    assert any(f"has {name} {version}, the flow" in problem for problem in found.problems)


def test_code_of_the_stages_that_a_worker_lacks_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text(
        "from pathlib import Path\n"
        "def parse(diary): Path(diary, 'item-parse').touch(); return [1, 2]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    only_here: Any = importlib.import_module("only_here")
    with LocalCluster(n_workers=0, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with worker(address, tmp_path / "worker"):
            for strategy in STRATEGIES:
                said = "cannot load the stages .*only_here.*: install the code that they are in"
                given: Any = {"strategy": strategy}
                body = partial(evolve, [str(tmp_path)], only_here.parse, abs, **given)
                with pytest.raises(ClusterUnfit, match=said):
                    in_flow(EvolveTaskRunner(address=address), body)
    assert begun(tmp_path) == 0


# -- resources ---------------------------------------------------------------------------------


def where(item: Any) -> tuple[Any, str]:
    from distributed import get_worker

    return item, str(get_worker().name)


def three(source: int) -> list[tuple[int, str]]:
    return [where(source)] * 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stage_runs_where_its_resources_are(strategy: Any, tmp_path: Path) -> None:
    with LocalCluster(n_workers=0, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        options: dict[str, Any] = {"strategy": strategy, "resources": {"where": {"GPU": 1}}}
        with (
            worker(address, tmp_path / "plain", "--name", "plain"),
            worker(address, tmp_path / "gpu", "--name", "gpu", "--resources", "GPU=1"),
        ):
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
            outcome = in_flow(
                EvolveTaskRunner(address=address),
                lambda: evolve(range(20), three, where, **options),
            )
            assert {place for _, place in outcome.results} == {"gpu"}
            # Both stages take it, and there is one of it: no source may hold it for its items.
            options["resources"] = {"three": {"GPU": 1}, "where": {"GPU": 1}}
            outcome = in_flow(
                EvolveTaskRunner(address=address),
                lambda: evolve(range(20), three, where, **options),
            )
    assert {place for (_, place), _ in outcome.results} == {"gpu"}
    assert len(outcome.results) == 60


@pytest.mark.parametrize("strategy", ["async", "nested"])
def test_resources_that_nobody_offers_end_the_run(strategy: Any, tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        dask.config.set(SHORT),
        pytest.raises(ClusterUnfit, match=r"has offered GPU=2 for 2 s, which stage 'slowly' takes"),
    ):
        in_flow(
            EvolveTaskRunner(address=cluster.scheduler_address),
            lambda: evolve(
                [str(tmp_path)],
                many,
                slowly,
                strategy=strategy,
                resources={"slowly": {"GPU": 2}},
            ),
        )
    assert begun(tmp_path) == 0


@task
def number(given: int) -> int:
    return given


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            {"resources": {"GPU": 2}},
            "takes GPU=2; they offer none: start workers with dask worker --resources 'GPU=2'",
        ),
        (
            {"workers": ["tcp://127.0.0.1:9"]},
            r"may only run at tcp://127\.0\.0\.1:9; there are \S+: start a worker there",
        ),
        (
            {"resources": {"GPU": 2}, "workers": ["192.0.2.1"]},
            r"takes GPU=2 and may only run at 192\.0\.2\.1; they offer none; there are ",
        ),
    ],
    ids=["resources", "workers", "both"],
)
def test_waiting_for_a_task_that_no_worker_can_run_ends(
    asked: dict[str, object], told: str
) -> None:
    """Dask waits for ever, also for what comes after it."""

    def body() -> None:
        with dask.annotate(**asked):
            nowhere = number.submit(1)
        number.submit(nowhere).result()

    told = rf"able to run task 'number-\S+' for 2 s: it {told}"
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        dask.config.set(SHORT),
        pytest.raises(ClusterUnfit, match=told),
    ):
        in_flow(EvolveTaskRunner(address=cluster.scheduler_address), body)


def test_waiting_for_a_task_ends_where_there_are_no_workers() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        dask.config.set(SHORT),
        pytest.raises(ClusterLost, match=r"no worker .* for 2 s"),
    ):
        in_flow(
            EvolveTaskRunner(address=cluster.scheduler_address), lambda: number.submit(1).result()
        )


def test_what_nobody_can_run_and_nobody_waits_for_does_not_hold_the_flow_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def body() -> None:
        with dask.annotate(resources={"GPU": 2}):
            number.submit(1)

    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        dask.config.set(SHORT),
    ):
        in_flow(EvolveTaskRunner(address=cluster.scheduler_address), body)
    assert "Cancelling 'number', which was submitted and not waited for" in caplog.text


def test_wrong_resources_are_refused(tmp_path: Path, thread_workers: str) -> None:
    def refusal(**options: Any) -> str:
        with pytest.raises(InvalidInput) as raised:
            in_flow(
                EvolveTaskRunner(address=thread_workers),
                lambda: evolve([str(tmp_path)], many, slowly, **options),
            )
        return str(raised.value)

    assert "'slow', which is no stage" in refusal(resources={"slow": {"GPU": 1}})
    assert "above 0" in refusal(resources={"slowly": {"GPU": 0}})
    assert "sequential" in refusal(resources={"slowly": {"GPU": 1}}, strategy="sequential")
    assert begun(tmp_path) == 0


# -- the scheduler -----------------------------------------------------------------------------


@contextmanager
def scheduler() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler that may be killed, and its address."""
    address = f"tcp://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_scheduler"),
            *("--port", address.rpartition(":")[2], "--no-dashboard"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield address, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("strategy", ["async", "nested"])
def test_a_scheduler_that_is_gone_is_told_of(strategy: Any, tmp_path: Path) -> None:
    with scheduler() as (address, process), worker(address, tmp_path):

        def kill() -> None:
            until(lambda: begun(tmp_path) >= 5, "it works")
            process.send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ClusterLost, match="see that the scheduler is up"):
            in_flow(
                EvolveTaskRunner(address=address),
                lambda: evolve([str(tmp_path)], many, slowly, strategy=strategy),
            )
        killer.join()


def test_futures_tell_of_a_scheduler_that_is_gone_though_it_is_just_being_asked() -> None:
    # A run asks now and then whether there are workers: the scheduler may die at that moment.
    with (
        scheduler() as (address, process),
        Client(address, set_as_default=False, timeout="60s") as client,
        ThreadPoolExecutor() as threads,
    ):
        serving = Serving(client, {})
        future = client.submit(len, "there is no worker")
        serving.require([])
        client._periodic_callbacks["scheduler-info"].stop()  # it asks by itself
        until(lambda: not client.rpc.active, "nothing else is asked")
        process.send_signal(signal.SIGSTOP)
        asked = threads.submit(serving.require, [])
        until(lambda: client.rpc.active, "the question is on its way")
        process.kill()
        asked.result(120)
        until(lambda: client.status == "connecting", "Dask knows that the scheduler is gone")
        until(lambda: future.status == "cancelled", "Dask has cancelled it")
        serving.require([])
        serving.require_for(future.key)
