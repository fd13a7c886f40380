"""Events of a run, for automations; `docs/events.md` says what they have."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.events import emit_event

from evolve_tasks.naming import LINE, one_line

STARTED = "evolve.run.started"
EXPANDED = "evolve.source.expanded"
DEGRADED = "evolve.run.degraded"
EXCEEDED = "evolve.failures.exceeded"
FINISHED = "evolve.run.finished"

# Sources that are told of one by one; after them those whose number is a power of two. A run of
# a million sources tells of 36.
FIRST_SOURCES = 20


class RunEvents:
    """Emits the events of a run; all of them are related to its flow run.

    Args:
        run: unique name of the run.
        name: what a person calls it.
        flow_run_id: its flow run.
    """

    def __init__(self, run: str, name: str, flow_run_id: UUID) -> None:
        self._resource = {
            "prefect.resource.id": f"evolve.run.{run}",
            "prefect.resource.name": name,
        }
        self._related = [
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run_id}",
                "prefect.resource.role": "flow-run",
            }
        ]
        self._expanded = 0

    def started(self, **payload: Any) -> None:
        """Say that it begins."""
        self._emit(STARTED, payload)

    def expanded(self, source: str, items: int) -> None:
        """Say that a source was expanded, if it is one of those that are told of."""
        self._expanded += 1
        number = self._expanded
        if number <= FIRST_SOURCES or number & (number - 1) == 0:
            self._emit(EXPANDED, {"source": source, "items": items, "number": number})

    def degraded(self, reason: str, task_runs: int) -> None:
        """Say that items are no task runs of their own any more."""
        self._emit(DEGRADED, {"to": "batches", "reason": reason, "task_runs": task_runs})

    def exceeded(self, reason: str | None, counts: dict[str, Any]) -> None:
        """Say that there are more failures than the policy accepts."""
        told = None if reason is None else one_line(reason, LINE)
        self._emit(EXCEEDED, {"reason": told, "counts": counts})

    def finished(self, **payload: Any) -> None:
        """Say that it is over, however it ended."""
        self._emit(FINISHED, payload)

    def _emit(self, event: str, payload: dict[str, Any]) -> None:
        emit_event(event, resource=self._resource, related=self._related, payload=payload)
