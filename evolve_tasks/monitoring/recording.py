"""Wait until the API has recorded what ran: task runs reach it as events, some time later.

A server on SQLite records 30 to 40 task runs a second, with a backlog in its memory. One that
goes down with the flow takes the backlog along: of 1,000 quick task runs 45 were recorded.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import PrefectHTTPStatusError

ASKED = 1_000  # ids in one question for a number: 40 kB, and far below a database's limits
PAGE = 200  # ids in one question for task runs: Prefect's own limit for a page of them
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
# Without a single further task run recorded; then it is not coming. A worker whose connection
# broke may send again what was not confirmed only half a minute later.
NO_PROGRESS_S = 45.0
# Without an answer at all; a server that is started again takes half a minute.
AWAY_S = 60.0

# Filters of the API in its own words: Prefect's class for them leaves the operator out. To an end
# come also those that never began, as what they need has failed.
Ends = Mapping[str, Any]
ANY_END: Ends = {
    "operator": "or_",
    "type": {"any_": [state.value for state in TERMINAL_STATES]},
    "name": {"any_": ["NotReady"]},
}
FAILED: Ends = {"type": {"any_": [StateType.FAILED.value]}}


def wait_until_recorded(
    run_ids: Sequence[UUID],
    logger: logging.Logger | Any,
    no_progress_s: float = NO_PROGRESS_S,
    away_s: float = AWAY_S,
    ends: Ends = ANY_END,
) -> int:
    """Wait until the API knows the end of each of these task runs.

    Args:
        run_ids: ids of N >= 0 task runs that have ended.
        logger: gets a warning if some stay unknown, and one when the API does not answer.
        no_progress_s: seconds after which it gives up if not one more was recorded, while the
            API answers.
        away_s: seconds without an answer, in all, after which it gives up; also errors are none.
        ends: in which states they have ended.

    Returns:
        How many stayed unknown.

    Example:
        >>> wait_until_recorded([], logging.getLogger())
        0
    """
    if not run_ids:
        return 0  # asking for a client may start a server
    with get_client(sync_client=True) as client, asking_once():
        missing, unheard = _Waiting(client, run_ids, logger, no_progress_s, away_s, ends).wait()
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
    with get_client(sync_client=True) as client, asking_once():
        missing, _ = _Waiting(client, run_ids, logger, no_progress_s, AWAY_S, ANY_END).wait()
    return missing


@contextmanager
def asking_once() -> Iterator[None]:
    """Keep the client from asking again itself, for a minute or more, and nobody knows of it.

    Prefect's `temporary_settings` validates all settings anew, which takes 50 ms.
    """
    here = get_settings_context()
    client = here.settings.client.model_copy(update={"max_retries": 0})
    settings = here.settings.model_copy(update={"client": client})
    with SettingsContext(profile=here.profile, settings=settings):
        yield


@dataclass(slots=True)
class _Asked:
    """Task runs that are asked for together, and of how many the end was known at last."""

    run_ids: Sequence[UUID]
    known: int = 0


class _Waiting:
    """Asks until nothing is missing, or until that does not help any more."""

    def __init__(
        self,
        client: SyncPrefectClient,
        run_ids: Sequence[UUID],
        logger: logging.Logger | Any,
        no_progress_s: float,
        away_s: float,
        ends: Ends,
    ) -> None:
        self._client = client
        self._ends = ends
        once = list(dict.fromkeys(run_ids))  # the API counts each once
        self._open = deque(
            _Asked(once[start : start + ASKED]) for start in range(0, len(once), ASKED)
        )
        self._logger = logger
        self._no_progress_s = no_progress_s
        self._away_s = away_s  # what is left of it
        self._unheard: Exception | None = None  # why the last question had no answer
        self._pause_s = FIRST_PAUSE_S
        self._progress_at = time.monotonic()

    def wait(self) -> tuple[list[UUID], Exception | None]:
        """Give what is missing in the end, and why there was no answer, if that was it."""
        while self._open:
            asked, asked_at = self._open[0], time.monotonic()
            try:
                known = self._known_of(asked.run_ids)
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                # What ran is not undone by an API that is away; the run's outcome stands.
                self._note_away(error)
                self._pause()
                self._away_s -= time.monotonic() - asked_at
                if self._away_s <= 0:
                    break
                continue
            took_s = time.monotonic() - asked_at
            if self._unheard is not None:
                # Now the workers find it again, too, and send what they could not.
                self._logger.info("The Prefect API answers again")
                self._unheard = None
                self._note_progress()
            further, asked.known = known - asked.known, known
            if further > 0:
                self._note_progress()
            elif time.monotonic() - self._progress_at > self._no_progress_s:
                break
            # The order in which they are recorded is not that in which they ran.
            self._open.rotate(-1)
            if known == len(asked.run_ids):
                self._open.pop()
            else:
                # The server records with what we leave it.
                time.sleep(min(LONGEST_PAUSE_S, 2 * took_s))
                if further <= 0:
                    self._pause()
        return self._missing(), self._unheard

    def _missing(self) -> list[UUID]:
        ids = [run_id for asked in self._open for run_id in asked.run_ids]
        pages = [ids[start : start + PAGE] for start in range(0, len(ids), PAGE)]
        try:
            return [run_id for page in pages for run_id in self._unrecorded(page)]
        except (httpx.HTTPError, PrefectHTTPStatusError):
            return ids  # nobody there to say which of them

    def _known_of(self, run_ids: Sequence[UUID]) -> int:
        """How many of them the API knows the end of; a number costs it much less than a page."""
        wanted = {"task_runs": self._ended(run_ids)}
        return int(self._client.request("POST", "/task_runs/count", json=wanted).json())

    def _unrecorded(self, run_ids: Sequence[UUID]) -> list[UUID]:
        wanted = {"task_runs": self._ended(run_ids), "limit": PAGE}
        known = self._client.request("POST", "/task_runs/filter", json=wanted).json()
        ended = {UUID(task_run["id"]) for task_run in known}
        return [run_id for run_id in run_ids if run_id not in ended]

    def _ended(self, run_ids: Sequence[UUID]) -> dict[str, Any]:
        return {"id": {"any_": [str(run_id) for run_id in run_ids]}, "state": self._ends}

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
                sum(len(asked.run_ids) - asked.known for asked in self._open),
            )
        self._unheard = error

    def _pause(self) -> None:
        time.sleep(self._pause_s)
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
