"""Wait until the API has recorded what ran: task runs reach it as events, some time later.

A server on SQLite records 30 to 40 task runs a second, with a backlog in its memory. One that
goes down with the flow takes the backlog along: of 1,000 quick task runs 45 were recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import PrefectHTTPStatusError

PAGE = 200  # ids in one question: Prefect's own limit for a page of task runs
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
# Without a single further task run recorded; then it is not coming. A worker whose connection
# broke may send again what was not confirmed only half a minute later.
NO_PROGRESS_S = 45.0
# Without an answer at all; a server that is started again takes half a minute.
AWAY_S = 60.0


def wait_until_recorded(
    run_ids: Sequence[UUID],
    logger: logging.Logger | Any,
    no_progress_s: float = NO_PROGRESS_S,
    away_s: float = AWAY_S,
) -> int:
    """Wait until the API knows the end of each of these task runs.

    Args:
        run_ids: ids of N >= 0 task runs that have ended.
        logger: gets a warning if some stay unknown, and one when the API does not answer.
        no_progress_s: seconds after which it gives up if not one more was recorded, while the
            API answers.
        away_s: seconds without an answer, in all, after which it gives up; also errors are none.

    Returns:
        How many stayed unknown.

    Example:
        >>> wait_until_recorded([], logging.getLogger())
        0
    """
    if not run_ids:
        return 0  # asking for a client may start a server
    with get_client(sync_client=True) as client, _asking_once():
        missing, unheard = _Waiting(client, run_ids, logger, no_progress_s, away_s).wait()
    if not missing:
        return 0
    reason = (
        f"it did not answer for {away_s:.0f} s (at last {type(unheard).__name__}: {unheard})"
        if unheard is not None
        else f"there was no progress for {no_progress_s:.0f} s"
    )
    logger.warning(
        "The end of %d of %d task runs is not recorded by the Prefect API: %s. They have ended, "
        "and nothing of their results is lost; lost may be their records, so that the UI shows "
        "them as running or not at all. See that the server is up and not overloaded; "
        "record='sources' asks less of it.",
        len(missing),
        len(run_ids),
        reason,
    )
    return len(missing)


def unrecorded_after(
    run_ids: Sequence[UUID], logger: logging.Logger | Any, no_progress_s: float
) -> list[UUID]:
    """Wait as `wait_until_recorded` does; give those that stayed unknown, and say nothing.

    Args:
        run_ids: ids of N >= 0 task runs that have ended.
        logger: told if the API does not answer.
        no_progress_s: seconds after which it gives up if not one more was recorded.
    """
    if not run_ids:
        return []
    with get_client(sync_client=True) as client, _asking_once():
        missing, _ = _Waiting(client, run_ids, logger, no_progress_s, AWAY_S).wait()
    return missing


@contextmanager
def _asking_once() -> Iterator[None]:
    """Keep the client from asking again itself, for a minute or more, and nobody knows of it.

    Prefect's `temporary_settings` validates all settings anew, which takes 50 ms.
    """
    here = get_settings_context()
    client = here.settings.client.model_copy(update={"max_retries": 0})
    settings = here.settings.model_copy(update={"client": client})
    with SettingsContext(profile=here.profile, settings=settings):
        yield


class _Waiting:
    """Asks until nothing is missing, or until that does not help any more."""

    def __init__(
        self,
        client: Any,
        run_ids: Sequence[UUID],
        logger: logging.Logger | Any,
        no_progress_s: float,
        away_s: float,
    ) -> None:
        self._client = client
        self._missing = list(run_ids)
        self._logger = logger
        self._no_progress_s = no_progress_s
        self._away_s = away_s  # what is left of it
        self._unheard: Exception | None = None  # why the last question had no answer
        self._pause_s = FIRST_PAUSE_S
        self._progress_at = time.monotonic()

    def wait(self) -> tuple[list[UUID], Exception | None]:
        """Give what is missing in the end, and why there was no answer, if that was it."""
        while self._missing:
            asked_at = time.monotonic()
            page, rest = self._missing[:PAGE], self._missing[PAGE:]
            try:
                unknown = _unrecorded(self._client, page)
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                # What ran is not undone by an API that is away; the run's outcome stands.
                self._note_away(error)
                self._pause()
                self._away_s -= time.monotonic() - asked_at
                if self._away_s <= 0:
                    break
                continue
            if self._unheard is not None:
                # Now the workers find it again, too, and send what they could not.
                self._logger.info("The Prefect API answers again")
                self._unheard = None
                self._note_progress()
            if len(unknown) < len(page):
                self._note_progress()
            elif time.monotonic() - self._progress_at > self._no_progress_s:
                break
            # Those that are not there yet go to the end: the order in which they come is not
            # that in which they ran.
            self._missing = rest + unknown
            if unknown:
                # The server records with what we leave it: an answer costs it as much as a run.
                took_s = time.monotonic() - asked_at
                time.sleep(min(LONGEST_PAUSE_S, 2 * took_s))
            if len(unknown) == len(page):
                self._pause()
        return self._missing, self._unheard

    def _note_progress(self) -> None:
        self._progress_at, self._pause_s = time.monotonic(), FIRST_PAUSE_S

    def _note_away(self, error: Exception) -> None:
        if self._unheard is None:
            self._pause_s = FIRST_PAUSE_S
            self._logger.warning(
                "The Prefect API does not answer (%s: %s); asking on for %.0f s whether it has "
                "recorded the end of %d task runs",
                type(error).__name__,
                error,
                self._away_s,
                len(self._missing),
            )
        self._unheard = error

    def _pause(self) -> None:
        time.sleep(self._pause_s)
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)


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
