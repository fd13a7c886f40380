"""The facts of a run's report, as they stand."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from uuid import UUID

from prefect.utilities.urls import url_for

from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.naming import LINE, error_text, one_line
from evolve_tasks.report import Report

PACKAGES = ("evolve-tasks", "prefect", "prefect-dask", "distributed")

_NOBODY = UUID(int=0)


def facts(
    run: EvolvingRun, *, state: str, title: str, strategy: str, reason: str, duration_s: float
) -> Report:
    """Tell how a run stands; may be asked for by another thread than the run's own.

    Args:
        run: the run.
        state: `"running"`, `"finished"`, `"failed"`, `"cancelled"` or `"ended early"`.
        title: what the report is of.
        strategy: its strategy.
        reason: why it was chosen.
        duration_s: seconds since it began.
    """
    address = url_for("task-run", _NOBODY)
    error = run.source_error
    counts, progress = asdict(run.counts()), run.progress
    if not progress.finished:
        # With what nested sources have told of themselves.
        counts |= {name: getattr(progress, name) for name in ("discovered", "done", "failed")}
    return Report(
        title=title,
        state=state,
        strategy=strategy,
        reason=reason,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.story.began)),
        duration_s=duration_s,
        stopped=run.core.left_out,
        error=None if error is None else one_line(error_text(error), LINE),
        counts=counts,
        **run.story.facts(),
        task_run_url=None if address is None else address.replace(str(_NOBODY), "{}"),
        versions=versions(),
    )


@cache
def versions() -> dict[str, str]:
    """Versions of what a run is made of; a package that was copied has none."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
