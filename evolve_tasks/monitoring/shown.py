"""What the Prefect UI shows of a run beside its task runs: how far it is, and its report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext

from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.monitoring.facts import facts
from evolve_tasks.monitoring.progress_text import progress_text
from evolve_tasks.monitoring.publishing import (
    PROGRESS_S,
    REPORT_S,
    Artifact,
    Publisher,
    artifact_key,
)
from evolve_tasks.report import Report, as_it_is


class Shown:
    """The two artifacts of a run.

    Args:
        run: the run.
        strategy: its strategy.
        reason: why it was chosen.
        started: when it began, by `time.monotonic`.
        dashboard: address of Dask's dashboard; `None` if there is none.
        logger: told if the API does not take them.
        progress: whether how far it is is shown; the report always is.
    """

    def __init__(
        self,
        run: EvolvingRun,
        *,
        strategy: str,
        reason: str,
        started: float,
        dashboard: str | None,
        logger: Any,
        progress: bool,
    ) -> None:
        context, task_run = FlowRunContext.get(), TaskRunContext.get()
        assert context is not None, "it was checked before"
        assert context.flow_run is not None, "it was checked before"
        flow_name = "" if context.flow is None else context.flow.name
        self._run = run
        self._strategy = strategy
        self._reason = reason
        self._started = started
        self._dashboard = dashboard
        self.title = f"{flow_name} / {context.flow_run.name}"
        self._state = "running"
        self._duration_s: float | None = None
        self._percent = 0.0
        self._more: dict[str, Any] = {}
        names = flow_name, run.stages[0].name
        key = artifact_key(*names, "progress")
        self._progress = Artifact(key, "progress", self._progress_content, PROGRESS_S)
        key = artifact_key(*names, "report")
        self._report = Artifact(key, "markdown", self._report_content, REPORT_S)
        self._publisher = Publisher(
            [self._progress, self._report] if progress else [self._report],
            flow_run_id=context.flow_run.id,
            task_run_id=None if task_run is None else task_run.task_run.id,
            logger=logger,
        )
        self._shows_progress = progress

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it while the block runs; what is shown at its end stays."""
        with self._publisher.publishing():
            yield

    def ended(self, state: str) -> None:
        """Say how the run has ended; the report follows, when it is known what was recorded.

        Args:
            state: `"finished"`, `"failed"`, `"cancelled"` or `"ended early"`.
        """
        self._duration_s = time.monotonic() - self._started
        self._state = state
        if self._shows_progress:
            self._publisher.finish(self._progress)

    def told(self, **more: Any) -> None:
        """Add to the report."""
        self._more |= more

    @property
    def duration_s(self) -> float:
        """Seconds that the run took, or has taken."""
        return time.monotonic() - self._started if self._duration_s is None else self._duration_s

    def report(self) -> Report:
        """The report as it stands."""
        report = facts(
            self._run,
            state=self._state,
            title=self.title,
            strategy=self._strategy,
            reason="; ".join(filter(None, [self._reason, self._run.adapted])),
            duration_s=self.duration_s,
        )
        if self._dashboard is not None:
            report["dashboard"] = self._dashboard
        report.update(self._more)
        return report

    def line(self) -> str:
        """How far the run is, as a line of plain text."""
        return self._text().replace("**", "")

    def _progress_content(self) -> tuple[float, str]:
        progress = self._run.progress
        # An estimate of what is to come may fall back; what is seen to be done does not.
        self._percent = max(self._percent, progress.percent)
        return round(self._percent, 1), self._text()

    def _text(self) -> str:
        return progress_text(
            self._run.progress,
            state="paused" if self._state == "running" and self._run.core.paused else self._state,
            strategy=self._strategy,
            batch=self._run.story.batch,
            duration_s=self.duration_s,
        )

    def _report_content(self) -> tuple[str, str]:
        report = self.report()
        return report.markdown(), f"{as_it_is(self.title, 200)}: {self._state}"
