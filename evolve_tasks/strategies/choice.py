"""Which strategy runs, and why."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from evolve_tasks.errors import NotInFlow
from evolve_tasks.options import StrategyName
from evolve_tasks.stages import Stage, called


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy and the reason for it."""

    strategy: StrategyName
    reason: str
    warn: bool = False
    adapts: bool = False  # it may change on the way


def choose(
    wanted: StrategyName, stages: Sequence[Stage], *, has_dask: bool, on_worker: bool
) -> Choice:
    """Choose a strategy.

    Args:
        wanted: what the options say.
        stages: the stages.
        has_dask: the flow's task runner has a Dask cluster, or we are on a worker of one.
        on_worker: the call comes from a task on a Dask worker.

    Returns:
        The strategy to run and the reason for it.

    Raises:
        NotInFlow: a strategy was asked for that needs Dask where there is none.

    Example:
        >>> choose("auto", (), has_dask=True, on_worker=False).strategy
        'as_completed'
    """
    if wanted == "sequential":
        return Choice("sequential", "it was asked for")
    if wanted != "auto":
        if not has_dask:
            raise NotInFlow(
                f"strategy {wanted!r} needs Dask, and this flow's task runner has none: use "
                "@flow(task_runner=EvolveTaskRunner()) or DaskTaskRunner, or "
                'strategy="sequential"'
            )
        return Choice(wanted, "it was asked for")
    if not has_dask:
        return Choice(
            "sequential",
            "the flow's task runner has no Dask; use @flow(task_runner=EvolveTaskRunner()) to run "
            "in parallel",
            warn=True,
        )
    if on_worker:
        return Choice("nested", "it was called inside a task on a Dask worker")
    if any(generates(stage) for stage in stages[:-1]):
        return Choice("nested", "an expanding stage is a generator")
    return Choice("as_completed", "the flow runs on Dask", adapts=True)


def generates(stage: Stage) -> bool:
    """Whether a stage is a generator, so that it may give items before all are there."""
    function = called(stage.function)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
