"""What the Prefect API knows of a flow run."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.client.schemas.sorting import TaskRunSort


def task_runs(flow_run_id: UUID) -> list[TaskRun]:
    """All task runs of a flow run, up to Prefect's limit for one page."""
    with get_client(sync_client=True) as client:
        return client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
            sort=TaskRunSort.ID_DESC,
            limit=200,
        )
