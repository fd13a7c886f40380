"""`deployments/prefect.yaml` against a real Prefect server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.integration.servers import prefect_environment, prefect_server
from tests.integration.waiting import until

pytestmark = pytest.mark.cluster

PROJECT = Path(__file__).parents[2]
DEADLINE_S = 120
POOL = "evolve-process"
AUTOMATIONS = "deployments/automations.yaml"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server to which everything has been deployed."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home) as url, temporary_settings({PREFECT_API_URL: url}):
        for command in (
            ["work-pool", "create", POOL, "--type", "process"],
            ["--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"],
        ):
            ended = subprocess.run(
                [sys.executable, "-m", "prefect", *command],
                cwd=PROJECT,
                env=prefect_environment(home, url),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
        yield url


@pytest.mark.parametrize(
    ("name", "entrypoint", "parameters"),
    [
        ("code-audit/local", "flows/code_audit.py:code_audit", {"root", "strategy", "json_file"}),
        (
            "evolving-files/local",
            "flows/evolving_files.py:evolving_files",
            {"strategy", "files", "seed", "scale"},
        ),
    ],
)
def test_flow_is_deployed(url: str, name: str, entrypoint: str, parameters: set[str]) -> None:
    with get_client(sync_client=True) as client:
        deployment: DeploymentResponse = client.read_deployment_by_name(name)
    assert deployment.entrypoint == entrypoint
    assert deployment.work_pool_name == POOL
    assert deployment.description
    properties = deployment.parameter_openapi_schema["properties"]
    assert parameters <= properties.keys()
    # What the form in the UI says of each parameter comes from the flow's docstring.
    assert all(properties[parameter]["description"] for parameter in parameters)
    assert "nested" in properties["strategy"]["enum"]
    assert deployment.parameters.keys() <= properties.keys()


def test_nothing_else_is_deployed(url: str) -> None:
    with get_client(sync_client=True) as client:
        assert len(client.read_deployments()) == 2


# In a process of its own: the one here may have sent events to another server before.
FAILING = """
import sys
from uuid import UUID
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from evolve_tasks import evolve

@task
def nothing_works(item):
    raise ValueError(f"{item} does not work")

@flow
def failing_night():
    evolve([3], range, nothing_works, strategy="sequential")

if __name__ == "__main__":
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(sys.argv[1]))
    run_flow(failing_night, flow_run=flow_run)
"""


@flow
def failing_night() -> None:
    """Stands for the flow of the script, which has this name."""


def test_the_automation_pauses_what_failed_beyond_its_policy(url: str, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "prefect", "automation", "create", "--from-file", AUTOMATIONS],
        cwd=PROJECT,
        env=prefect_environment(tmp_path, url),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(failing_night)
        deployment_id = client.create_deployment(flow_id, name="nightly")
        flow_run = client.create_flow_run_from_deployment(deployment_id)
        script = tmp_path / "failing.py"
        script.write_text(FAILING)
        ended = subprocess.run(
            [sys.executable, str(script), str(flow_run.id)],
            cwd=PROJECT,
            env=prefect_environment(tmp_path, url) | {"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert "EvolveFailed" in ended.stderr
        until(lambda: client.read_deployment(deployment_id).paused, "the deployment is paused")
