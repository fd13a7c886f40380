"""Every block of code in docs/clusters.md: run, and what it configures constructed."""

from __future__ import annotations

import asyncio
import inspect
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import LocalCluster, SSHCluster
from distributed.cli import dask_scheduler, dask_worker
from prefect.workers.process import ProcessVariables
from tornado.ioloop import IOLoop

from evolve_tasks import DaskCluster, EvolveTaskRunner

DOC = Path(__file__).parents[2] / "docs" / "clusters.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def made(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Run everything in the order of the document; give the names of the blocks it made."""
    names: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("clusters"))
        for language, text in BLOCKS:
            if language == "python":
                exec(compile(text, "clusters.md", "exec"), found := {})
                names += re.findall(r'\.save\("([\w-]+)"', text)
                for flow in (value for value in found.values() if hasattr(value, "task_runner")):
                    assert isinstance(flow.task_runner, EvolveTaskRunner)
                    assert flow.task_runner.cluster_block
            elif language == "bash":
                for line in text.splitlines():
                    understood(shlex.split(line))
            else:
                assert language == "yaml"
                variables = ProcessVariables.model_validate(yaml.safe_load(text)["job_variables"])
                assert variables.env == {"DASK_CLUSTER": "prod"}
        yield names


def understood(command: list[str]) -> None:
    """A command of Dask is parsed as Dask parses it; others are run."""
    if command[0] != "dask":
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return
    COMMANDS[command[1]].make_context(f"dask {command[1]}", command[2:])


def load(name: str) -> dict[str, Any]:
    return DaskCluster.load(name).runner_arguments()


def address(name: str) -> None:
    assert load(name)["address"].startswith("tcp://")


def encrypted(name: str) -> None:
    arguments = load(name)
    assert arguments["address"].startswith("tls://")
    security = arguments["client_kwargs"]["security"]
    assert security.get_connection_args("client")["ssl_context"] is not None


def local(name: str) -> None:
    arguments = load(name)
    assert arguments["cluster_class"] is LocalCluster
    constructed = not_started(arguments)
    assert len(constructed.worker_spec) == arguments["cluster_kwargs"]["n_workers"]


def ssh(name: str) -> None:
    arguments = load(name)
    assert arguments["cluster_class"] is SSHCluster
    constructed = not_started(arguments)
    reached = [one["options"]["address"] for one in constructed.worker_spec.values()]
    assert reached == ["10.0.0.6", "10.0.0.7"]
    assert constructed.scheduler_spec["options"]["address"] == "10.0.0.5"


def slurm(name: str) -> None:
    """The scheduler is started here as in a run; nothing is submitted until a worker is needed."""
    arguments = load(name)
    assert arguments["adapt_kwargs"] == {"minimum": 0, "maximum": 40}
    more = {"scheduler_options": {"dashboard_address": None}}
    with arguments["cluster_class"](**arguments["cluster_kwargs"], **more) as cluster:
        script = cluster.job_script()
    assert "#SBATCH -p regular" in script
    assert "#SBATCH -A climate" in script
    assert "#SBATCH -t 02:00:00" in script
    assert "#SBATCH --constraint=haswell" in script
    assert re.search(r"--nthreads 4 .*--lifetime 115m", script)


def kubernetes(name: str) -> None:
    from dask_kubernetes.operator.kubecluster.kubecluster import make_cluster_spec

    arguments = load(name)
    assert "maximum" in inspect.signature(arguments["cluster_class"].adapt).parameters
    constructed = not_started(arguments)
    constructed._instances.discard(constructed)  # what is in it is deleted in Kubernetes at exit
    assert constructed.name.startswith("evolve-")
    spec = make_cluster_spec(
        name=constructed.name,
        image=constructed.image,
        n_workers=constructed.n_workers,
        resources=constructed.resources,
        worker_command=constructed.worker_command,
        idle_timeout=constructed.idle_timeout,
    )
    (container,) = spec["spec"]["worker"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"}
    assert container["image"] == "images.example.com/flows:1"


def coiled(name: str) -> None:
    """Bound to the signature alone: to construct one asks the service."""
    arguments = load(name)
    inspect.signature(arguments["cluster_class"]).bind(**arguments["cluster_kwargs"])


def not_started(arguments: dict[str, Any]) -> Any:
    """The cluster as its class makes it, before it starts anything."""

    async def construct() -> Any:
        options = {**arguments["cluster_kwargs"], "asynchronous": True, "loop": IOLoop.current()}
        return arguments["cluster_class"](**options)

    return asyncio.run(construct())


CONSTRUCTED: dict[str, Callable[[str], None]] = {
    "prod": address,
    "night": address,
    "sealed": encrypted,
    "mounted": encrypted,
    "local": local,
    "adaptive": local,
    "ssh": ssh,
    "slurm": slurm,
    "kubernetes": kubernetes,
    "coiled": coiled,
}
NEEDED = {"slurm": "dask_jobqueue", "kubernetes": "dask_kubernetes", "coiled": "coiled"}


def test_everything_in_the_document_is_looked_at(made: list[str]) -> None:
    assert set(made) == set(CONSTRUCTED)
    assert {language for language, _ in BLOCKS} == {"python", "bash", "yaml"}


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("name", CONSTRUCTED)
def test_what_it_configures_is_constructed(name: str) -> None:
    if (package := NEEDED.get(name)) is not None:
        pytest.importorskip(package, reason=f"{package} is not in the environment of the tests")
    CONSTRUCTED[name](name)
