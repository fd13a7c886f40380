"""What the Prefect API knows of a flow run."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import Artifact, TaskRun
from prefect.client.schemas.sorting import TaskRunSort

PAGE = 200  # the server's limit


def task_runs(flow_run_id: UUID) -> list[TaskRun]:
    """All task runs of a flow run."""
    found: list[TaskRun] = []
    with get_client(sync_client=True) as client:
        while page := client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
            sort=TaskRunSort.ID_DESC,
            offset=len(found),
            limit=PAGE,
        ):
            found += page
            if len(page) < PAGE:
                break
    return found


def artifacts(flow_run_id: UUID, kind: str) -> list[Artifact]:
    """The artifacts of a kind (`"progress"`, `"markdown"`) of a flow run."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]),
                type=ArtifactFilterType(any_=[kind]),
            )
        )


def progress_of(flow_run_id: UUID) -> tuple[float, str]:
    """The progress artifact of a flow run that has one: percent, and what it says."""
    (artifact,) = artifacts(flow_run_id, "progress")
    assert isinstance(artifact.data, int | float)
    return float(artifact.data), artifact.description or ""


def report_of(flow_run_id: UUID) -> str:
    """The report of a flow run that has one."""
    (artifact,) = artifacts(flow_run_id, "markdown")
    assert isinstance(artifact.data, str)
    return artifact.data
