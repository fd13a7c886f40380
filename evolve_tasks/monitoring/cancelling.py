"""Whether a flow run was cancelled, and how it is told that it is."""

from __future__ import annotations

from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled

from evolve_tasks.monitoring.recording import asking_once

# How long the answer may take at the end of a run; who ended it may not wait much longer.
ANSWER_S = 5.0

CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)


def is_cancelled(flow_run_id: UUID) -> bool:
    """Whether the API says that a flow run is cancelled, or being so; if it says nothing, not."""
    try:
        with (
            get_client(sync_client=True, httpx_settings={"timeout": ANSWER_S}) as client,
            asking_once(),
        ):
            state = client.read_flow_run(flow_run_id).state
    except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound):
        return False
    return state is not None and state.type in CANCELLED


def acknowledge(flow_run_id: UUID, message: str) -> None:
    """Say that a flow run which was to be cancelled is; a runner around it does the same."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Cancelled(message=message), force=True)
