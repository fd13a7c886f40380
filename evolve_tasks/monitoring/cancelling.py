"""Hear that a flow run was cancelled, in the UI or by the API, also where nobody kills the process.

A runner or a worker of Prefect ends the process of a cancelled flow run. A flow that was called as
a function has no such thing around it, and would work on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled

from evolve_tasks.monitoring.recording import asking_once

# How often the API is asked: seen within a few seconds, twenty calls a minute.
POLL_S = 3.0

# How long the answer may take at the end of a run; who ended it may not wait much longer.
ANSWER_S = 5.0

CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)


@contextmanager
def heeding_cancellation(
    flow_run_id: UUID,
    cancel: Callable[[], None],
    deleted: Callable[[], None],
    logger: logging.Logger | Any,
) -> Iterator[None]:
    """Call `cancel` once if the flow run is cancelled meanwhile, or `deleted` if it is deleted.

    Args:
        flow_run_id: the flow run.
        cancel: what to do; called in a thread of its own.
        deleted: likewise.
        logger: is told that it happened.
    """
    over = threading.Event()

    def watch() -> None:
        if over.wait(POLL_S):
            return  # most runs are short, and a client takes a while to make
        with get_client(sync_client=True) as client:
            while True:
                try:
                    state = client.read_flow_run(flow_run_id).state
                except ObjectNotFound:
                    logger.warning(
                        "Somebody deleted the flow run: nobody can see it any more, or cancel it"
                    )
                    deleted()
                    return
                except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                    # Work goes on while the API is away; it is asked again.
                    logger.debug("The API does not say whether the run is cancelled: %s", error)
                    state = None
                if state is not None and state.type in CANCELLED:
                    logger.warning("The flow run was cancelled: nothing more is begun")
                    cancel()
                    return
                if over.wait(POLL_S):
                    return

    thread = threading.Thread(
        target=copy_context().run, args=(watch,), name="evolve-cancelling", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(POLL_S)  # it may be in the middle of a question


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
