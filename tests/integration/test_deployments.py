"""`deployments/prefect.yaml` against a real Prefect server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.integration.servers import prefect_environment, prefect_server

pytestmark = pytest.mark.cluster

PROJECT = Path(__file__).parents[2]
DEADLINE_S = 120
POOL = "evolve-process"


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
