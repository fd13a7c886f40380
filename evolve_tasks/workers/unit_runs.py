"""Task runs that stand for several sources or items at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextvars import Context
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRunPolicy
from prefect.context import TaskRunContext
from prefect.results import should_persist_result

from evolve_tasks.workers.engines import run_recorded
from evolve_tasks.workers.task_runs import new_task_run

R = TypeVar("R")


def run_as_unit(
    task: Task[..., Any],
    *,
    run_id: UUID,
    name: str,
    upstream: UUID | None,
    body: Callable[[], R],
    free_tags: Collection[str],
) -> R:
    """Run something as one task run under a task's name, with its tags and nothing else of it.

    Tags that are limits on concurrency it has not: its items take their places themselves.
    """
    results: list[R] = []
    persists = should_persist_result()
    unit = Task(
        fn=lambda: results.append(_persisting(persists, body)),
        name=task.name,
        version=task.version,
        retries=0,
        log_prints=task.log_prints,
        persist_result=False,
        cache_policy=NO_CACHE,
    )
    task_run = new_task_run(task, run_id=run_id, name=name, upstream=upstream)
    task_run.empirical_policy = TaskRunPolicy(retries=0)
    run_recorded(unit, task_run, free_tags)
    return results[0]


def _persisting(persists: bool, body: Callable[[], R]) -> R:
    """Run the body of a unit where what its items give is stored as it would be without the unit.

    What the unit itself gives is nobody's, and is not stored.
    """
    context = TaskRunContext.get()
    assert context is not None, "it runs as a task run"
    with context.model_copy(update={"persist_result": persists}):
        return body()


class OpenRun:
    """A task run that lasts until it is closed, whatever is done meanwhile.

    Prefect's engine runs it in a thread of its own, where it waits.

    Args:
        task: the task under whose name it stands.
        stage: name of its stage.
        label: what its name has in brackets.
        context: context variables of the flow run; not used by anybody else.
        free_tags: tags that are no limits on concurrency.
    """

    def __init__(
        self,
        task: Task[..., Any],
        stage: str,
        label: str,
        context: Context,
        free_tags: Collection[str],
    ) -> None:
        self.run_id = uuid4()
        self.label = label
        name = f"{stage}[{label}]"
        self._over = threading.Event()
        run = partial(
            run_as_unit,
            task,
            run_id=self.run_id,
            name=name,
            upstream=None,
            body=self._over.wait,
            free_tags=free_tags,
        )
        self._thread = threading.Thread(target=context.run, args=(run,), name=f"evolve-{name}")
        self._thread.start()

    def close(self) -> None:
        """End it; it is completed when this returns."""
        self._over.set()
        self._thread.join()
