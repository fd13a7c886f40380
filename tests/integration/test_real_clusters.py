"""Clusters as they are out there: TLS, workers that come and go, adaptive size, other hosts."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, get_worker
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from evolve_tasks import (
    ClusterTls,
    ClusterUnfit,
    DaskCluster,
    EvolveTaskRunner,
    Outcome,
    evolve,
)
from tests.certificates import Authority, Signed
from tests.conformance.flows import in_flow
from tests.integration.dask_processes import DaskProcess
from tests.integration.servers import Server, free_port, prefect_environment
from tests.integration.waiting import until

ROOT = Path(__file__).parents[2]
API_KEY = "pnu_9b1f6a0c4e7d2835b6a1c9e0f4d7a2b3"
START_S = 120.0  # for a process to come up where others use the CPUs, too
SOON = {"distributed.comm.timeouts.connect": "2s"}

pytestmark = pytest.mark.cluster


@dataclass
class Sealed:
    """A scheduler that speaks TLS, and who may talk to it."""

    address: str
    authority: Authority
    me: Signed
    folder: Path
    options: tuple[str, ...]
    first: DaskProcess

    def tls(self, **other: Any) -> ClusterTls:
        parts = {
            "ca": self.authority.certificate,
            "certificate": self.me.certificate,
            "key": SecretStr(self.me.key),
        }
        return ClusterTls(**{**parts, **other})

    def block(self, **other: Any) -> DaskCluster:
        return DaskCluster(address=self.address, tls=self.tls(**other))

    def worker(self, name: str) -> DaskProcess:
        return tls_worker(self.folder / name, self.address, self.options)

    def names(self) -> set[str]:
        """The workers that are there."""
        security = self.tls().security()
        with Client(self.address, security=security, set_as_default=False) as client:
            return {str(one["name"]) for one in client.scheduler_info(-1)["workers"].values()}


def tls_worker(folder: Path, address: str, options: tuple[str, ...]) -> DaskProcess:
    own = ("--nthreads", "1", "--name", folder.name, "--local-directory", str(folder))
    return DaskProcess(folder, "worker", address, *options, *own)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    """A scheduler with TLS and a worker, both started by command line."""
    folder = tmp_path_factory.mktemp("sealed")
    authority = Authority("authority")
    keys = tmp_path_factory.mktemp("keys")  # apart from what is searched for secrets
    (keys / "ca.pem").write_text(authority.certificate)
    certificate, key = authority.signs("cluster").write(keys, "cluster")
    options = ("--tls-ca-file", str(keys / "ca.pem"))
    options += ("--tls-cert", str(certificate), "--tls-key", str(key))
    address = f"tls://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.comm.timeouts.connect": "60s"}))
        own = ("--port", port, "--protocol", "tls", "--host", "127.0.0.1")
        stack.enter_context(DaskProcess(folder, "scheduler", *own, *options))
        first = stack.enter_context(tls_worker(folder / "first", address, options))
        cluster = Sealed(address, authority, authority.signs("me"), folder, options, first)
        until(lambda: cluster.names() == {"first"}, "the worker registers", START_S)
        yield cluster


# -- TLS ---------------------------------------------------------------------------------------

FLOW = """
    import logging
    from pathlib import Path
    from prefect import flow, get_run_logger, task
    from evolve_tasks import EvolveTaskRunner, evolve

    @task
    def numbers(count: int) -> list[int]:
        get_run_logger().info("a recorded line")
        return list(range(count))

    @task(persist_result=True)
    def add_one(x: int) -> int:
        if x == 3:
            raise ValueError("three is not wanted")
        return x + 1

    @flow(task_runner=EvolveTaskRunner(cluster_block="{{ $DASK_CLUSTER }}"))
    def encrypted() -> None:
        assert add_one.submit(1).result() == 2
        for strategy in ("as_completed", "nested"):
            outcome = evolve([3, 4], numbers, add_one, strategy=strategy, on_failure="ignore",
                             journal=f"sealed-{strategy}")
            print("RESULTS", outcome.results, outcome.strategy)

    if __name__ == "__main__":
        encrypted()
"""


@dataclass
class Home:
    """A Prefect server and the folder with all that it and its clients leave behind."""

    folder: Path
    server: Server

    def run(self, name: str, script: str, **more: str) -> str:
        """Run a script as a process of its own; give what it wrote, which is kept here, too."""
        (self.folder / f"{name}.py").write_text(textwrap.dedent(script))
        environment = prefect_environment(self.folder, self.server.url)
        ended = subprocess.run(
            [sys.executable, f"{name}.py"],
            cwd=self.folder,
            env=environment | {"PYTHONPATH": str(ROOT)} | more,
            capture_output=True,
            text=True,
            timeout=240,
        )
        output = ended.stdout + ended.stderr
        (self.folder / f"{name}.log").write_text(output)
        assert ended.returncode == 0, output
        return output

    def save(self, name: str, block: DaskCluster) -> None:
        """Save a block on this server."""
        with temporary_settings({PREFECT_API_URL: self.server.url}):
            block.save(name, overwrite=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_API_HOST", "0.0.0.0")  # other hosts talk to it as well
        server = Server(folder)
        server.start()
    try:
        yield Home(folder, server)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def ran(sealed: Sealed, home: Home) -> str:
    """What a flow wrote that ran through the block, as chatty as it can be.

    The cluster logs what Dask logs by default: at DEBUG it writes down each message as it comes,
    and one of them brings the flow's settings to the workers (docs/security.md).
    """
    home.save("sealed", sealed.block())
    return home.run(
        "encrypted",
        FLOW,
        PREFECT_API_KEY=API_KEY,
        PREFECT_LOGGING_LEVEL="DEBUG",
        DASK_CLUSTER="sealed",
        DASK_LOGGING__DISTRIBUTED="debug",
    )


def found(folder: Path, secret: str) -> list[Path]:
    """Files that have a text in them, as raw bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


def test_a_flow_runs_through_the_block_on_a_cluster_with_tls(ran: str, sealed: Sealed) -> None:
    assert "RESULTS [1, 2, 3, 1, 2, 3] as_completed" in ran
    assert "RESULTS [1, 2, 3, 1, 2, 3] nested" in ran
    assert f"The cluster is that of block 'sealed': {sealed.address}" in ran


@pytest.mark.usefixtures("ran")
def test_no_secret_is_left_anywhere(home: Home, sealed: Sealed) -> None:
    # What is searched has been written: a line of the log is in the database.
    database = {path.name.partition("-")[0] for path in found(home.folder, "a recorded line")}
    assert "prefect.db" in database
    assert found(sealed.folder, "Register worker")
    for secret in (API_KEY, *sealed.me.key.splitlines()[1:-1]):
        assert found(home.folder, secret) == []
        assert found(sealed.folder, secret) == []


@pytest.mark.usefixtures("prefect_api")
def test_who_has_not_the_right_certificate_is_refused(sealed: Sealed) -> None:
    def refused(runner: EvolveTaskRunner) -> str:
        begun = time.monotonic()
        with dask.config.set(SOON), pytest.raises(ClusterUnfit) as raised:
            in_flow(runner, lambda: evolve([3], range, abs))
        assert time.monotonic() - begun < 30
        assert re.search(r"no connection to the Dask scheduler at \S+:\d+ \(", str(raised.value))
        return str(raised.value)

    stranger = Authority("stranger")
    other = stranger.signs("me")
    foreign = {"certificate": other.certificate, "key": SecretStr(other.key)}
    for name, parts in (("foreign", foreign), ("wrong-ca", {"ca": stranger.certificate})):
        sealed.block(**parts).save(name, overwrite=True)
        said = refused(EvolveTaskRunner(cluster_block=name))
        assert "the certificate must be signed by the scheduler's CA" in said
        assert not any(line in said for line in other.key.splitlines()[1:-1])
    assert "nothing says with which certificate" in refused(
        EvolveTaskRunner(address=sealed.address)
    )
    assert "its address would begin with tls://" in refused(
        EvolveTaskRunner(address=sealed.address.replace("tls://", "tcp://"))
    )
    with socket.socket() as silent:  # takes connections, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tls://127.0.0.1:{silent.getsockname()[1]}"
        DaskCluster(address=address, tls=sealed.tls()).save("silent", overwrite=True)
        assert "the scheduler must be started with" in refused(
            EvolveTaskRunner(cluster_block="silent")
        )


# -- workers that come and go ------------------------------------------------------------------


def tracked(diary: str) -> list[tuple[str, int]]:
    return [(diary, number) for number in range(40)]


def noted(item: tuple[str, int]) -> int:
    """Leave a trace; from the tenth on, go on only after the workers have changed."""
    diary, number = item
    Path(diary, f"{get_worker().name}.{number}.{os.urandom(4).hex()}").touch()
    while number >= 10 and not Path(diary, "changed").exists():
        time.sleep(0.02)
    return number


def begun_by(diary: Path, name: str) -> int:
    return len(list(diary.glob(f"{name}.*")))


@pytest.mark.usefixtures("prefect_api")
def test_a_worker_joins_and_one_leaves_in_the_middle_of_a_run(
    sealed: Sealed, tmp_path: Path
) -> None:
    """The worker that leaves is the one that all others above have used: this comes last."""
    sealed.block().save("changing", overwrite=True)
    with ExitStack() as stack:

        def change() -> None:
            try:
                until(lambda: begun_by(tmp_path, "first") >= 2, "it works", START_S)
                stack.enter_context(sealed.worker("second"))
                until(lambda: begun_by(tmp_path, "second") >= 1, "the new one works", START_S)
                sealed.first.leave()
            finally:
                (tmp_path / "changed").touch()

        with ThreadPoolExecutor() as threads:
            changing = threads.submit(change)
            outcome: Outcome = in_flow(
                EvolveTaskRunner(cluster_block="changing"),
                lambda: evolve([str(tmp_path)] * 2, tracked, noted, batch=1),
            )
            changing.result()
        assert sealed.names() == {"second"}
    assert outcome.results == [*range(40)] * 2
    assert outcome.failures == []
    executions = len(list(tmp_path.glob("*.*.*")))
    assert executions <= 80 + 10, "what was reported is not worked on again"


# -- adaptive ----------------------------------------------------------------------------------

there_are_four = threading.Event()


def wait_for_four(number: int) -> int:
    there_are_four.wait(60)
    return number


@pytest.mark.usefixtures("prefect_api")
def test_an_adaptive_cluster_grows_from_one_worker_to_four_and_shrinks_again() -> None:
    local = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    DaskCluster(cluster_kwargs=local, adaptive={"minimum": 1, "maximum": 4}).save(
        "adaptive", overwrite=True
    )
    runner = EvolveTaskRunner(cluster_block="adaptive")
    quick = {"distributed.adaptive.interval": "200ms", "distributed.adaptive.target-duration": "1s"}
    seen: list[int] = []

    def body() -> Outcome:
        context = FlowRunContext.get()
        assert context is not None
        client = context.task_runner.client  # type: ignore[attr-defined]

        def workers() -> int:
            seen.append(len(client.scheduler_info(-1)["workers"]))
            return seen[-1]

        def watch() -> None:
            try:
                until(lambda: workers() == 4, "there are four")
            finally:
                there_are_four.set()

        assert workers() == 1
        with ThreadPoolExecutor() as threads:
            watching = threads.submit(watch)
            outcome = evolve([50], range, wait_for_four, batch=1)
            watching.result()
        until(lambda: workers() == 1, "one is left")
        return outcome

    with dask.config.set(quick):
        outcome = in_flow(runner, body)
    assert outcome.results == [*range(50)]
    assert max(seen) == 4


# -- hosts -------------------------------------------------------------------------------------

BRIDGE = "evolve0"
NETWORK = "10.213.77"


def ip(*words: str) -> None:
    """The command `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def hosts(*names: str) -> Iterator[dict[str, str]]:
    """Network namespaces on one bridge: hosts with addresses of their own, by name.

    Raises:
        CalledProcessError: this machine does not allow it, as where we are not root.
    """
    with ExitStack() as stack:

        def undo(*words: str) -> None:
            stack.callback(subprocess.run, ["ip", *words], check=False, capture_output=True)

        ip("link", "add", BRIDGE, "type", "bridge")
        undo("link", "del", BRIDGE)
        ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        addresses = {}
        for number, name in enumerate(names, 2):
            ip("netns", "add", name)
            undo("netns", "del", name)
            ip("link", "add", f"{name}-a", "type", "veth", "peer", "name", f"{name}-b")
            undo("link", "del", f"{name}-a")
            ip("link", "set", f"{name}-b", "netns", name)
            ip("link", "set", f"{name}-a", "master", BRIDGE, "up")
            addresses[name] = f"{NETWORK}.{number}"
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"{addresses[name]}/24", "dev", f"{name}-b")
            ip(*inside, "link", "set", f"{name}-b", "up")
            ip(*inside, "link", "set", "lo", "up")
        yield addresses


REMOTE = """
    from distributed import get_worker
    from prefect import flow, task
    from evolve_tasks import EvolveTaskRunner, evolve

    @task
    def three(source):
        return [source] * 3

    @task
    def where(item):
        return get_worker().address

    @flow(task_runner=EvolveTaskRunner(cluster_block="hosts"))
    def elsewhere() -> None:
        outcome = evolve(range(6), three, where, batch=1)
        for host in sorted({address.split("/")[2].split(":")[0] for address in outcome.results}):
            print("WORKED", host)
        assert outcome.counts.done == 18

    if __name__ == "__main__":
        elsewhere()
"""


def test_workers_on_two_hosts(home: Home, tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            addresses = stack.enter_context(hosts("evolve-a", "evolve-b"))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this machine makes no network namespaces: {error}")
        scheduler = f"tcp://{NETWORK}.1:{free_port()}"
        port = scheduler.rpartition(":")[2]
        own = ("--port", port, "--host", f"{NETWORK}.1")
        stack.enter_context(DaskProcess(tmp_path / "scheduler", "scheduler", *own))
        for name in addresses:
            inside = ("ip", "netns", "exec", name)
            options = (scheduler, "--nthreads", "1", "--name", name)
            stack.enter_context(DaskProcess(tmp_path / name, "worker", *options, before=inside))
        block = DaskCluster(address=scheduler)
        with dask.config.set({"distributed.comm.timeouts.connect": "60s"}):
            until(lambda: block.check().workers == 2, "both workers register", START_S)
        home.save("hosts", block)
        # The workers use the API of the flow, and have to reach it.
        url = home.server.url.replace("127.0.0.1", f"{NETWORK}.1")
        output = home.run("elsewhere", REMOTE, PREFECT_API_URL=url)
        for address in addresses.values():
            assert f"WORKED {address}" in output
