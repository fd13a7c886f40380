"""Deployments as `deployments/README.md` has them: deployed, scheduled, cancelled, done again."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from distributed import Client
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.integration.api import artifacts
from tests.integration.deployed import PROJECT, README, Desk
from tests.integration.servers import prefect_environment
from tests.integration.waiting import until

pytestmark = pytest.mark.cluster

DEADLINE_S = 120
INTERVAL_S = 120  # so long that the second run is not due before the first was seen
PAUSE_S = 0.3  # between two questions to a server that has other things to do
POOL = "evolve-process"

CONFIG = "prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api"
MAKE_POOL = "prefect work-pool create evolve-process --type process"
DEPLOY = "prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml"
PAUSE = "prefect deployment schedule pause --all"
WORKER = "prefect worker start --pool evolve-process"
RUN = "prefect deployment run code-audit/local --param root=flows --watch"
SCHEDULER = "dask scheduler --port 8786"
DASK_WORKER = "dask worker tcp://127.0.0.1:8786 --nworkers 2 --nthreads 1"
DEPLOY_ON_CLUSTER = (
    "DASK_SCHEDULER_ADDRESS=tcp://127.0.0.1:8786 "
    "prefect --no-prompt deploy --name on-cluster --prefect-file deployments/prefect.yaml"
)
RUN_ON_CLUSTER = "prefect deployment run audit-changes/on-cluster --param root=flows --watch"
SEND_TO_CLUSTER = (
    "prefect deployment run code-audit/nightly --param root=flows --job-variable "
    """env='{"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:8786"}'"""
)
CANCEL = "prefect flow-run cancel ID"
RETRY = "prefect flow-run retry ID"
DELETE = "prefect --no-prompt deployment delete --all"
SERVE = "DASK_SCHEDULER_ADDRESS=tcp://127.0.0.1:8786 python deployments/serve.py"
AUTOMATE = "prefect automation create --from-file deployments/automations.yaml"
SERVER = "prefect server start"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A server to which everything has been deployed, and a Dask cluster."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    with ExitStack() as stack:
        stack.enter_context(desk.running(SCHEDULER))
        stack.enter_context(desk.running(DASK_WORKER))
        stack.callback(desk.server.stop)
        desk.server.start()
        desk.typed.add(SERVER)
        stack.enter_context(temporary_settings({PREFECT_API_URL: desk.server.url}))
        for command in (CONFIG, MAKE_POOL, DEPLOY):
            desk.run(command)
        yield desk


@pytest.fixture(scope="module")
def worker(desk: Desk) -> Iterator[None]:
    """A worker of the pool; the deployments that have a schedule wait for a test."""
    desk.run(PAUSE)
    with desk.running(WORKER):
        yield


@pytest.fixture(scope="module")
def on_cluster(desk: Desk, worker: None) -> UUID:
    """The deployment that has the address of the cluster."""
    desk.run(DEPLOY_ON_CLUSTER)
    return deployment("audit-changes/on-cluster").id


@pytest.fixture(scope="module")
def served(desk: Desk) -> Iterator[None]:
    """The same deployments, served by one process."""
    desk.run(DELETE)
    with desk.running(SERVE) as printed:
        until(lambda: "are being served" in printed.read_text(), "it serves", DEADLINE_S)
        yield


def deployment(name: str) -> DeploymentResponse:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


def flow_run(flow_run_id: UUID) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run_id)


def runs_of(deployment_id: UUID) -> list[FlowRun]:
    """The runs of a deployment, the latest first."""
    with get_client(sync_client=True) as client:
        found: list[FlowRun] = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
        )
    return sorted(found, key=lambda run: run.created or datetime.min, reverse=True)


def ended(flow_run_id: UUID) -> FlowRun:
    """A flow run when it has come to its end."""

    def is_final() -> bool:
        state = flow_run(flow_run_id).state
        return state is not None and state.is_final()

    until(is_final, f"flow run {flow_run_id} ends", DEADLINE_S, PAUSE_S)
    return flow_run(flow_run_id)


def state_of(run: FlowRun) -> tuple[StateType, str]:
    assert run.state is not None
    return run.state.type, run.state.message or ""


def reports(flow_run_id: UUID) -> list[str]:
    """The reports of a flow run, one for each attempt, the latest last."""
    found = artifacts(flow_run_id, "markdown")
    return [str(one.data) for one in sorted(found, key=lambda one: one.created or datetime.min)]


def set_off(deployment_id: UUID, parameters: dict[str, Any]) -> FlowRun:
    """Give a deployment a schedule, and take it back when a run has begun by itself."""

    def begun() -> list[FlowRun]:
        # Neither those of the deployment's own schedule, nor those of an earlier test.
        return [
            run
            for run in runs_of(deployment_id)
            if run.auto_scheduled
            and run.state_type != StateType.SCHEDULED
            and run.parameters.get("root") == parameters["root"]
        ]

    first = datetime.now(UTC) + timedelta(seconds=3)
    schedule = {
        "schedule": {"interval": INTERVAL_S, "anchor_date": first.isoformat()},
        "max_scheduled_runs": 1,
        "parameters": parameters,
    }
    with get_client(sync_client=True) as client:
        # The client's own method takes no parameters.
        made = client.request(
            "POST",
            "/deployments/{id}/schedules",
            path_params={"id": deployment_id},
            json=[schedule],
        ).json()
        # Where the server is so busy that the first is past when it hears of it, it is the second.
        until(begun, "a scheduled run begins", INTERVAL_S + DEADLINE_S, PAUSE_S)
        client.delete_deployment_schedule(deployment_id, UUID(made[0]["id"]))
    (run,) = begun()
    return run


@pytest.fixture
def long_night(tmp_path: Path) -> Path:
    """A folder that keeps two workers busy for minutes: modules of Python, again and again.

    A server with SQLite that is writing what a flow does can answer 503 to who wants to make
    another run, and the client asks again for up to half a minute (2 + 4 + 8 + 16 s).
    """
    root = tmp_path / "long"
    for number in range(20):
        folder = root / str(number)
        folder.mkdir(parents=True)
        for module in Path(os.__file__).parent.glob("*.py"):
            (folder / module.name).symlink_to(module)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two files of Python, and one that is none yet."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "a.py").write_text("def a(x):\n    return x\n\n\ndef b(x):\n    return x\n")
    (root / "c.py").write_text("def c(x):\n    return x\n")
    (root / "torn.py").write_text("def d(x:\n")
    return root


def clean(scheduler: str) -> bool:
    """Whether nothing is left on a cluster."""

    def left(dask_scheduler: Any) -> list[str]:
        plugins = [name for name in dask_scheduler.plugins if name.startswith("evolve-")]
        return plugins + [str(key) for key in dask_scheduler.tasks]

    with Client(scheduler, set_as_default=False) as client:
        return not client.run_on_scheduler(left)


# -- what is deployed ----------------------------------------------------------------------------

OPTIONS_OF_AN_AUDIT = {"on_failure": "ignore", "batch": 100, "record": "sources"}
DEPLOYED: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "code-audit/nightly": ("code_audit", {"root": None}, {"nightly"}),
    "audit-changes/hourly": (
        "audit_changes",
        {"root": None, "options": {**OPTIONS_OF_AN_AUDIT, "journal": "audit-changes-hourly"}},
        {"incremental"},
    ),
    "audit-changes/on-cluster": (
        "audit_changes",
        {"root": None, "options": {**OPTIONS_OF_AN_AUDIT, "journal": "audit-changes-on-cluster"}},
        {"incremental"},
    ),
    "code-audit/local": ("code_audit", {"root": None}, set()),
    "evolving-files/local": ("evolving_files", {"strategy": "all"}, set()),
}
PARAMETERS = {
    "code_audit": {"root", "strategy", "json_file"},
    "audit_changes": {"root", "worst", "options"},
    "evolving_files": {"strategy", "files", "seed", "scale"},
}


def check(name: str, pool: str | None) -> None:
    """A deployment is as it should be."""
    function, parameters, tags = DEPLOYED[name]
    found = deployment(name)
    assert found.entrypoint == f"flows/{function}.py:{function}"
    assert found.work_pool_name == pool
    assert found.description
    assert found.parameters == parameters
    assert set(found.tags) == {"evolve-tasks", *tags}
    properties = found.parameter_openapi_schema["properties"]
    assert PARAMETERS[function] <= properties.keys()
    # What the form in the UI says of each parameter comes from the flow's docstring.
    assert all(properties[parameter]["description"] for parameter in PARAMETERS[function])


def check_schedules() -> None:
    """The schedules are there and active, and two runs never overlap."""
    (nightly,) = deployment("code-audit/nightly").schedules
    assert isinstance(nightly.schedule, CronSchedule)
    assert (nightly.schedule.cron, nightly.slug, nightly.active) == (
        "0 3 * * *",
        "every-night",
        True,
    )
    (hourly,) = deployment("audit-changes/hourly").schedules
    assert isinstance(hourly.schedule, IntervalSchedule)
    assert (hourly.schedule.interval, hourly.slug, hourly.active) == (
        timedelta(hours=1),
        "every-hour",
        True,
    )
    assert hourly.schedule.anchor_date == datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
    for name in ("code-audit/nightly", "audit-changes/hourly"):
        assert one_at_a_time(name) == ConcurrencyLimitStrategy.CANCEL_NEW


def one_at_a_time(name: str) -> ConcurrencyLimitStrategy:
    """What happens to a second run of a deployment that takes one."""
    found = deployment(name)
    assert found.global_concurrency_limit is not None
    assert found.global_concurrency_limit.limit == 1
    assert found.concurrency_options is not None
    return found.concurrency_options.collision_strategy


@pytest.mark.parametrize("name", DEPLOYED)
def test_flow_is_deployed(desk: Desk, name: str) -> None:
    check(name, POOL)


def test_nothing_else_is_deployed(desk: Desk) -> None:
    with get_client(sync_client=True) as client:
        assert len(client.read_deployments()) == len(DEPLOYED)


def test_the_schedules_are_active_and_their_runs_do_not_overlap(desk: Desk) -> None:
    check_schedules()
    assert one_at_a_time("audit-changes/on-cluster") == ConcurrencyLimitStrategy.ENQUEUE


# -- with a work pool ----------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
def test_a_run_that_starts_its_own_cluster(desk: Desk) -> None:
    desk.run(RUN)
    (run,) = runs_of(deployment("code-audit/local").id)
    state, message = state_of(run)
    assert state == StateType.COMPLETED
    assert "functions in" in message
    assert len(reports(run.id)) == 1


def test_the_second_run_on_a_cluster_does_only_what_is_new(desk: Desk, on_cluster: UUID) -> None:
    desk.run(RUN_ON_CLUSTER)
    (first,) = runs_of(on_cluster)
    with get_client(sync_client=True) as client:
        again = client.create_flow_run_from_deployment(on_cluster, parameters={"root": "flows"})
    second = ended(again.id)
    assert "functions in" in state_of(first)[1]
    assert state_of(second) == state_of(first)
    assert "resumed" not in reports(first.id)[-1]
    assert "resumed" in reports(second.id)[-1]
    assert clean(desk.scheduler)


def test_a_scheduled_run_begins_by_itself_and_its_retry_does_what_is_missing(
    desk: Desk, on_cluster: UUID, tree: Path
) -> None:
    begins_and_is_retried(desk, on_cluster, tree)


def begins_and_is_retried(desk: Desk, deployment_id: UUID, tree: Path) -> None:
    options = {"journal": True, "on_failure": "finish"}
    run = set_off(deployment_id, {"root": str(tree), "options": options})
    state, message = state_of(ended(run.id))
    assert state == StateType.FAILED
    assert "torn.py" in message
    (report,) = reports(run.id)
    assert report.startswith("# Failed after")
    assert "torn.py" in report
    (tree / "torn.py").write_text("def d(x):\n    return x\n")
    desk.run(RETRY, ID=str(run.id))
    until(lambda: flow_run(run.id).run_count == 2, "it is done again", DEADLINE_S, PAUSE_S)
    assert state_of(ended(run.id)) == (
        StateType.COMPLETED,
        "4 functions in 3 files audited",
    )
    assert "3 resumed" in reports(run.id)[-1]
    assert clean(desk.scheduler)


def test_two_nights_never_overlap_and_one_can_be_cancelled(
    desk: Desk, worker: None, long_night: Path
) -> None:
    desk.run(SEND_TO_CLUSTER, **{"root=flows": f"root={long_night}"})
    night = deployment("code-audit/nightly").id
    (first,) = runs_of(night)
    under_way(first.id)
    with get_client(sync_client=True) as client:
        second = client.create_flow_run_from_deployment(night)
    assert state_of(ended(second.id)) == (
        StateType.CANCELLED,
        "Deployment concurrency limit reached.",
    )
    is_cancelled(desk, first.id)


def under_way(flow_run_id: UUID) -> None:
    """Wait until a run has begun and is far from its end."""

    def percent() -> float:
        found = artifacts(flow_run_id, "progress")
        return float(found[0].data) if found else 0.0  # type: ignore[arg-type]

    until(lambda: percent() > 0, "the run is under way", DEADLINE_S, PAUSE_S)
    assert percent() < 60


def is_cancelled(desk: Desk, flow_run_id: UUID) -> None:
    """A run that is cancelled by the API ends, tells so, and leaves nothing on the cluster."""
    desk.run(CANCEL, ID=str(flow_run_id))
    assert state_of(ended(flow_run_id))[0] == StateType.CANCELLED
    until(lambda: clean(desk.scheduler), "nothing is left on the cluster")
    (report,) = reports(flow_run_id)
    assert report.startswith("# Cancelled after")


# -- without a work pool -------------------------------------------------------------------------


def test_what_is_served_is_what_is_deployed(desk: Desk, served: None) -> None:
    for name in DEPLOYED.keys() - {"audit-changes/on-cluster"}:
        check(name, None)
    check_schedules()


def test_a_scheduled_run_is_served_and_its_retry_does_what_is_missing(
    desk: Desk, served: None, tree: Path
) -> None:
    begins_and_is_retried(desk, deployment("audit-changes/hourly").id, tree)


def test_a_served_run_can_be_cancelled(desk: Desk, served: None, long_night: Path) -> None:
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(
            deployment("code-audit/local").id, parameters={"root": str(long_night)}
        )
    under_way(run.id)
    is_cancelled(desk, run.id)


# -- the automation ------------------------------------------------------------------------------

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


def test_the_automation_pauses_what_failed_beyond_its_policy(desk: Desk, tmp_path: Path) -> None:
    desk.run(AUTOMATE)
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(failing_night)
        deployment_id = client.create_deployment(flow_id, name="nightly")
        flow_run = client.create_flow_run_from_deployment(deployment_id)
        script = tmp_path / "failing.py"
        script.write_text(FAILING)
        failed = subprocess.run(
            [sys.executable, str(script), str(flow_run.id)],
            cwd=PROJECT,
            env=prefect_environment(tmp_path, desk.server.url) | {"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert "EvolveFailed" in failed.stderr
        until(lambda: client.read_deployment(deployment_id).paused, "the deployment is paused")


def test_every_command_of_the_readme_was_typed(desk: Desk, request: pytest.FixtureRequest) -> None:
    here = {item.originalname for item in request.session.items if item.path == Path(__file__)}
    if left_out := {name for name in globals() if name.startswith("test_")} - here:
        pytest.skip(f"these are not run, and type some of them: {', '.join(sorted(left_out))}")
    assert desk.typed == set(README)
