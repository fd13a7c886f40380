"""Wait until the API has recorded what ran: task runs reach it as events, some time later.

A server on SQLite records 30 to 40 task runs a second, with a backlog in its memory. One that
goes down with the flow takes the backlog along: of 1,000 quick task runs 45 were recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    TaskRunFilter,
    TaskRunFilterId,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.client.schemas.sorting import TaskRunSort
from prefect.exceptions import PrefectHTTPStatusError

PAGE = 200  # ids in one question: Prefect's own limit for a page of task runs
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
NO_PROGRESS_S = 30.0  # without a single further task run recorded; then it is not coming


def wait_until_recorded(
    run_ids: Sequence[UUID], logger: logging.Logger | Any, no_progress_s: float = NO_PROGRESS_S
) -> int:
    """Wait until the API knows the end of each of these task runs.

    Args:
        run_ids: ids of N >= 0 task runs that have ended.
        logger: gets a warning if some stay unknown.
        no_progress_s: seconds after which it gives up if not one more was recorded.

    Returns:
        How many stayed unknown.

    Example:
        >>> wait_until_recorded([], logging.getLogger())
        0
    """
    missing = list(run_ids)
    if not missing:
        return 0  # asking for a client may start a server
    pause_s = FIRST_PAUSE_S
    progress_at = time.monotonic()
    with get_client(sync_client=True) as client:
        while missing:
            page, rest = missing[:PAGE], missing[PAGE:]
            try:
                unknown = _unrecorded(client, page)
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                # What ran is not undone by an API that is away; the run's outcome stands.
                logger.warning(
                    "The Prefect API does not answer (%s: %s), so nobody knows whether %d of %d "
                    "task runs were recorded: they ran, but the UI may not show them.",
                    type(error).__name__,
                    error,
                    len(missing),
                    len(run_ids),
                )
                return len(missing)
            if len(unknown) < len(page):
                progress_at, pause_s = time.monotonic(), FIRST_PAUSE_S
            elif time.monotonic() - progress_at > no_progress_s:
                logger.warning(
                    "%d of %d task runs are not recorded by the Prefect API after %.0f s without "
                    "progress: they ran, but the UI may not show them. See that the server is up "
                    "and not overloaded; record='sources' asks less of it.",
                    len(missing),
                    len(run_ids),
                    no_progress_s,
                )
                return len(missing)
            # Those that are not there yet go to the end: the order in which they come is not
            # that in which they ran.
            missing = rest + unknown
            if len(unknown) == len(page):
                time.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
    return 0


def _unrecorded(client: Any, run_ids: list[UUID]) -> list[UUID]:
    known = client.read_task_runs(
        task_run_filter=TaskRunFilter(
            id=TaskRunFilterId(any_=run_ids),
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=list(TERMINAL_STATES))),
        ),
        sort=TaskRunSort.ID_DESC,
        limit=PAGE,
    )
    ended = {task_run.id for task_run in known}
    return [run_id for run_id in run_ids if run_id not in ended]
