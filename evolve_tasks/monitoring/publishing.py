"""Artifacts of a run in the Prefect UI: how far it is, and its report; at a pace of their own."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import PrefectHTTPStatusError

from evolve_tasks.monitoring.recording import asking_once

# A run that is over sooner gets its artifacts at its end only.
FIRST_S = 1.0
# Between two updates, at first; later a share of the time that the run has taken, so that a run
# of an hour has cost two hundred calls and one of ten hours not ten times as many.
PROGRESS_S = 3.0
REPORT_S = 15.0
SLOWER = 1 / 20
SLOWEST_S = 60.0
# How long the last update is tried if the API does not answer.
AWAY_S = 10.0
PAUSE_S = 1.0
ANSWER_S = 5.0  # how long one answer may take: these calls are small
# Beyond it the flow does not wait for a thread that hangs all the same.
END_S = 40.0

# By so much the clock of the server may be behind ours.
SKEW_S = 2.0

LONGEST_KEY = 80


def artifact_key(*words: str) -> str:
    """Make a key of names: lower case letters, digits and dashes, as Prefect wants it.

    Example:
        >>> artifact_key("Index files!", "parse_file", "progress")
        'index-files-parse-file-progress'
    """
    *names, kind = (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)
    name = "-".join(filter(None, names))[:LONGEST_KEY].strip("-")
    return "-".join(filter(None, [name, kind]))


@dataclass(slots=True)
class Artifact:
    """One artifact: created with its first content, updated with each other.

    Args:
        key: its key.
        type: `"progress"` or `"markdown"`.
        content: makes what it shows, and its description.
        every_s: seconds between two updates, at first.
    """

    key: str
    type: str
    content: Callable[[], tuple[Any, str]]
    every_s: float
    id: UUID | None = None
    unclear: bool = False  # it may have been created: the answer did not come
    due: float = 0.0


@dataclass
class Publisher:
    """Posts artifacts from a thread of its own, so that the run never waits for the API.

    Args:
        artifacts: what to post.
        flow_run_id: whose they are.
        task_run_id: likewise, where the run is in a task.
        logger: told if the API does not take the last update.
    """

    artifacts: list[Artifact]
    flow_run_id: UUID
    task_run_id: UUID | None
    logger: logging.Logger | Any
    _began: float = field(default_factory=time.time)
    _asked: list[Artifact] = field(default_factory=list)  # to be posted now, for the last time
    _over: bool = False
    _changed: Condition = field(default_factory=Condition)

    def finish(self, *artifacts: Artifact) -> None:
        """Have artifacts posted once more, now, and never again."""
        with self._changed:
            self._asked += artifacts
            self._changed.notify()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Post while the block runs; at its end what was not finished yet is finished."""
        thread = Thread(
            target=copy_context().run, args=(self._run,), name="evolve-publishing", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._over = True
                self._changed.notify()
            thread.join(END_S)
            if thread.is_alive():
                self.logger.warning(
                    "The Prefect API hangs; the artifacts of this run are not whole"
                )

    def _run(self) -> None:
        began = time.monotonic()
        for artifact in self.artifacts:
            artifact.due = began + max(FIRST_S, artifact.every_s / 2)
        last = self._next()
        with get_client(sync_client=True, httpx_settings={"timeout": ANSWER_S}) as client:
            while last is not None:
                artifact, final = last
                try:
                    with asking_once():
                        self._post(client, artifact, final)
                except Exception:
                    # The run's outcome does not hang on its pictures; but nobody should miss one
                    # and not be told.
                    self.logger.exception("Artifact %s could not be made", artifact.key)
                now = time.monotonic()
                pace_s = max(artifact.every_s, min(SLOWEST_S, (now - began) * SLOWER))
                artifact.due = now + pace_s
                last = self._next()

    def _next(self) -> tuple[Artifact, bool] | None:
        """Wait until an artifact is due; `None` when all were posted for the last time."""
        with self._changed:
            while True:
                if self._asked:
                    artifact = self._asked.pop(0)
                    self.artifacts = [one for one in self.artifacts if one is not artifact]
                    return artifact, True
                if self._over and self.artifacts:
                    return self.artifacts.pop(0), True
                if self._over:
                    return None
                now = time.monotonic()
                due = min(self.artifacts, key=lambda artifact: artifact.due, default=None)
                if due is not None and due.due <= now:
                    return due, False
                self._changed.wait(None if due is None else due.due - now)

    def _post(self, client: SyncPrefectClient, artifact: Artifact, final: bool) -> None:
        give_up = time.monotonic() + AWAY_S
        while True:
            try:
                self._send(client, artifact)
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                if not final:
                    # Work goes on while the API is away, and the next update says it all.
                    self.logger.debug("Artifact %s was not updated: %s", artifact.key, error)
                    return
                if not _passing(error) or time.monotonic() >= give_up:
                    self.logger.warning(
                        "The Prefect API does not take the artifact %s (%s: %s); what the UI shows "
                        "of this run is not its end, its outcome.report is",
                        artifact.key,
                        type(error).__name__,
                        error,
                    )
                    return
                time.sleep(PAUSE_S)
            else:
                return

    def _send(self, client: SyncPrefectClient, artifact: Artifact) -> None:
        shown, description = artifact.content()
        if artifact.id is None and artifact.unclear:
            artifact.id = self._found(client, artifact)
        if artifact.id is not None:
            changed = ArtifactUpdate(data=shown, description=description)
            # Not `update_artifact`, which also emits an event with all of the data in it.
            client.request(
                "PATCH",
                "/artifacts/{id}",
                path_params={"id": artifact.id},
                json=changed.model_dump(mode="json", exclude_unset=True),
            )
            return
        artifact.unclear = True
        artifact.id = client.create_artifact(
            ArtifactCreate(
                key=artifact.key,
                type=artifact.type,
                description=description,
                data=shown,
                flow_run_id=self.flow_run_id,
                task_run_id=self.task_run_id,
            )
        ).id

    def _found(self, client: SyncPrefectClient, artifact: Artifact) -> UUID | None:
        """The artifact, if the API created it and its answer was lost."""
        others = {other.id for other in self.artifacts}
        for one in client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[self.flow_run_id]),
                key=ArtifactFilterKey(any_=[artifact.key]),
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        ):
            # That of an earlier call in the same flow run is not ours.
            ours = one.created is None or one.created.timestamp() > self._began - SKEW_S
            if one.id not in others and ours:
                return one.id
        return None


def _passing(error: httpx.HTTPError | PrefectHTTPStatusError) -> bool:
    """Whether it may be better in a moment."""
    if not isinstance(error, PrefectHTTPStatusError):
        return True
    return error.response.status_code >= 500 or error.response.status_code == 429
