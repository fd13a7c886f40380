"""How far a run is, in words, for the progress artifact in the Prefect UI."""

from __future__ import annotations

from evolve_tasks.core.progress import Progress
from evolve_tasks.report.markdown import seconds

# Seconds before a rate is told: that of the first moment is the start-up's.
SETTLED_S = 2.0


def progress_text(
    progress: Progress, *, state: str, strategy: str, batch: float | None, duration_s: float
) -> str:
    """Tell how far a run is.

    Args:
        progress: where it stands.
        state: `"running"`, or how it ended.
        strategy: its strategy.
        batch: items in one Dask task, on average; `None` if nobody knows.
        duration_s: seconds since it began.

    Returns:
        One line of markdown.

    Example:
        >>> progress = Progress(sources=3, sources_ended=1, discovered=10, done=4)
        >>> progress_text(progress, state="running", strategy="async", batch=2.0, duration_s=8.0)
        '**4 of 10 items done** · 1 sources, more to come · 0.5 items/s · async, 2 items a task'
    """
    parts = [f"**{progress.done:,} of {progress.discovered:,} items done**"]
    for number, word in (
        (progress.failed, "failed"),
        (progress.resumed, "resumed"),
        (progress.not_run, "not run"),
    ):
        if number:
            parts.append(f"{number:,} {word}")
    if progress.sources_known is None:
        more = ", more to come" if state == "running" else ""
        parts.append(f"{progress.sources_ended:,} sources{more}")
    else:
        parts.append(f"{progress.sources_ended:,} of {progress.sources_known:,} sources")
    worked = progress.done + progress.failed
    if worked and duration_s >= SETTLED_S:
        rate = worked / duration_s
        parts.append(f"{rate:,.0f} items/s" if rate >= 10 else f"{rate:.2g} items/s")
        if state == "running" and progress.sources_known is not None and progress.left:
            parts.append(f"about {seconds(progress.left / rate)} left")
    sizes = "" if batch is None else f", {batch:.3g} item{'' if batch == 1 else 's'} a task"
    parts.append(f"{strategy}{sizes}")
    if state != "running":
        parts.append(f"{state} after {seconds(duration_s)}")
    return " · ".join(parts)
