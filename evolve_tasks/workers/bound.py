"""A stage made ready to be called in this process, and what surrounds the items of one unit."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager
from contextvars import Token, copy_context
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas import TaskRun
from prefect.context import TaskRunContext
from prefect.exceptions import ExternalSignal, PrefectSignal
from prefect.results import get_result_store
from prefect.utilities.engine import should_log_prints

from evolve_tasks.more import More
from evolve_tasks.stages import Stage, as_items, called
from evolve_tasks.workers.calls import Recording
from evolve_tasks.workers.engines import (
    needs_engine,
    run_coroutine,
    run_task,
    tell_unbegun,
    unwrapped,
)
from evolve_tasks.workers.gathering import Kept, gather, gather_async
from evolve_tasks.workers.prints import prints_heard
from evolve_tasks.workers.salvaging import Unreadable
from evolve_tasks.workers.task_runs import Parameters, new_task_run
from evolve_tasks.workers.timed import TimedThreads
from evolve_tasks.workers.transport import (
    PLAIN,
    Unpicklable,
    came_unreadable,
    require_picklable,
)

# What user code raises is the failure of its item, whatever it is: a parser that calls
# sys.exit() must not end a worker, and Dask waits for ever for a task that raised something
# beyond Exception. Only what is meant for the process itself goes through, where the process
# is the flow's own; a worker runs tasks in threads, which get no signals.
SIGNALS: tuple[type[BaseException], ...] = (KeyboardInterrupt, PrefectSignal, ExternalSignal)


@dataclass(slots=True)
class Ran:
    """How one item ended.

    Args:
        value: what came of it; if it failed, what it had given before.
        error: why it failed, if it did.
        attempts: how often it was tried.
        began: when, in seconds since the epoch.
        ended: when it had failed for good; `None` if it did not, or only what it gave is refused.
        refused: what it gave is refused, and the API has been told that it is done.
    """

    value: Any = None
    error: BaseException | None = None
    attempts: int = 1
    began: float = 0.0
    ended: float | None = None
    refused: bool = False


class BoundStage:
    """A stage made ready to be called.

    Args:
        stage: the stage.
        signals: exceptions that are not caught.
        threads: where a task with a time limit runs.
        most_items: items that are wanted of an expanding stage; `None` for all.
        spread: it is called with several arguments, which come as one tuple.
        free_tags: tags that are no limits on concurrency.
    """

    def __init__(
        self,
        stage: Stage,
        signals: tuple[type[BaseException], ...],
        threads: TimedThreads,
        most_items: int | None = None,
        *,
        spread: bool = False,
        free_tags: Collection[str] = (),
    ) -> None:
        self.stage = stage
        self._spread = spread
        self._gather = partial(gather, most=most_items)
        self.task = stage.task
        self._signals = signals
        self._threads = threads
        self._free_tags = free_tags
        most = None if stage.last else most_items  # what the last one gives is one result
        self.function = _collecting(called(stage.function), most)
        self.quick = False  # calling the function alone leaves nothing out
        self._parameters: Parameters | None = None
        if stage.task is not None:
            self.quick = not needs_engine(stage.task, free_tags)
            self._parameters = Parameters(stage.task)
            if stage.task.isgenerator:
                self.task = copy(stage.task)
                self.task.isgenerator = False
                self.task.fn = _collecting(stage.task.fn, most)

    def check(self, value: Any) -> Any:
        """Refuse what the stage must not return; a State stands for its result."""
        if type(value) in PLAIN and self.stage.last:
            return value
        value = unwrapped(value)
        if not self.stage.last:
            value = as_items(self.stage.name, value, self._gather)
        elif isinstance(value, More):
            value = self._further(value)
        elif isinstance(value, Generator):
            value = list(value)
        return value

    def _further(self, more: More) -> More:
        """Check what a result leads to."""
        name, last = self.stage.name, self.stage.position
        if not isinstance(more.stage, int) or not 0 <= more.stage <= last:
            raise ValueError(
                f"{name} returned More(…, stage={more.stage!r}): the stages of this run are 0 to "
                f"{last}"
            )
        return More(more.value, as_items(f"{name}, in More,", more.items, self._gather), more.stage)

    def check_alone(self, value: Any) -> Any:
        """The same, and whether it can travel: for a value that is a task run of its own."""
        value = self.check(value)
        require_picklable(self.stage.name, value)
        return value

    def call(self, item: Any) -> Ran:
        """Call the function alone."""
        with Kept() as here:
            try:
                value = self.function(*self.arguments(item))
                if inspect.iscoroutine(value):
                    value = run_coroutine(value)
                value = self.check(value)
                if not self.stage.last:
                    require_picklable(self.stage.name, value)
            except self._signals:
                raise
            except BaseException as error:
                return Ran(self._before(here), error=error)
        return Ran(value=value)

    def arguments(self, item: Any) -> tuple[Any, ...]:
        """What the function is called with for an item."""
        return item if self._spread else (item,)

    def parameters(self, item: Any) -> dict[str, Any]:
        """The same as the parameters of the task's function."""
        assert self._parameters is not None, "only a task has parameters that anybody asks for"
        return self._parameters.of(self.arguments(item))

    def _before(self, here: Kept) -> list[Any]:
        """What an expanding stage had given before it failed, if it can travel."""
        items = list(here.items)
        try:
            require_picklable(self.stage.name, items)
        except Unpicklable:
            return []
        return items

    def run(self, item: Any, task_run: TaskRun, *, recorded: bool) -> Ran:
        """Run the task through Prefect's engine."""
        assert self.task is not None
        run = partial(
            run_task,
            check=self.check_alone,
            recorded=recorded,
            plain=self.quick,
            threads=self._threads,
            free_tags=self._free_tags,
        )
        with Kept() as here:
            try:
                # The engines leave context variables behind in async runs; a copy takes them along.
                value = copy_context().run(run, self.task, self.arguments(item), task_run)
            except self._signals:
                raise
            except BaseException as error:
                begun = task_run.run_count > 0 or (task_run.state and task_run.state.is_final())
                if recorded and not begun:
                    tell_unbegun(task_run, error)
                # As where it returned a state of its own making.
                refused = task_run.state is not None and task_run.state.is_completed()
                before, attempts = self._before(here), task_run.run_count
                return Ran(before, error=error, attempts=attempts, refused=refused)
        return Ran(value=value, attempts=task_run.run_count)


def _collecting(function: Callable[..., Any], most: int | None) -> Callable[..., Any]:
    """A function that gives a list where it was an async generator, which nobody can await."""
    inner = function
    while isinstance(inner, partial):
        inner = inner.func
    inner = inner if inspect.isroutine(inner) else type(inner).__call__
    if not inspect.isasyncgenfunction(inner):
        return function

    # With what Prefect has noted on a method.
    @functools.wraps(function, updated=("__dict__",) if inspect.isfunction(function) else ())
    async def collected(*args: Any, **kwargs: Any) -> list[Any]:
        return await gather_async(function(*args, **kwargs), most)

    return collected


class UnitContext:
    """What surrounds the items of one unit: the run that gets their logs, patched prints.

    It may be entered again when it has been left.
    """

    def __init__(
        self, bound: BoundStage, recording: Recording, log_run_id: UUID, name: str
    ) -> None:
        self._bound = bound
        self._recording = recording
        self._log_run_id = recording.unit or recording.within or log_run_id
        self._name = name
        self._around: TaskRunContext | None = None
        self._token: Token[TaskRunContext] | None = None
        self._prints: AbstractContextManager[None] | None = None

    # Without Prefect's way to enter a context, which takes longer than many an item.
    def __enter__(self) -> UnitContext:
        task = self._bound.task
        if task is None or self._recording.each or not self._bound.quick:
            return self
        if self._around is None:
            self._around = self._made(task)
        self._token = TaskRunContext.__var__.set(self._around)
        if should_log_prints(task):
            self._prints = prints_heard()
            self._prints.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._prints is not None:
            self._prints.__exit__(None, None, None)
            self._prints = None
        if self._token is not None:
            TaskRunContext.__var__.reset(self._token)
            self._token = None

    def _made(self, task: Task[..., Any]) -> TaskRunContext:
        # The user's code may ask for its run: it is told of the one that gets its logs.
        context = TaskRunContext.get()
        whole = self._recording.unit or self._recording.within
        if context is not None and context.task_run.id == whole:
            # What such a task calls stores results only where it does so itself, as anywhere.
            return context.model_copy(update={"persist_result": False})
        return TaskRunContext(
            task=task,
            task_run=new_task_run(task, run_id=self._log_run_id, name=self._name),
            parameters={},
            client=get_client(sync_client=True),
            log_prints=should_log_prints(task),
            result_store=get_result_store(),
            persist_result=False,
        )

    @property
    def named(self) -> bool:
        """Whether what runs here has a name that somebody sees: its stage's task runs as one."""
        bound = self._bound
        return bound.task is not None and (self._recording.each or not bound.quick)

    @property
    def each(self) -> bool:
        """Whether everything that runs here is a task run of its own."""
        return self._bound.task is not None and self._recording.each

    def run(self, item: Any, run_id: UUID | None, name: str) -> Ran:
        """Run the stage on one source or item; its id is asked for if it is a task run."""
        began = time.time()
        ran = self._run(item, run_id, name)
        ran.began = began
        if ran.error is not None and not ran.refused:
            ran.ended = time.time()
        return ran

    def _run(self, item: Any, run_id: UUID | None, name: str) -> Ran:
        bound, recording = self._bound, self._recording
        if type(item) is Unreadable:
            return self._not_begun(item, run_id, name)
        if not self.named:
            if self._around is not None:
                # As pydantic does, which takes longer than many an item.
                vars(self._around)["parameters"] = bound.parameters(item)
            # What one item sets in context variables is no business of the next one.
            return copy_context().run(bound.call, item)
        assert bound.task is not None
        if recording.each:
            assert run_id is not None, "it is a task run"
            task_run = new_task_run(
                bound.task, run_id=run_id, name=name, upstream=recording.upstream
            )
        else:
            task_run = new_task_run(bound.task, run_id=self._log_run_id, name=name)
        return bound.run(item, task_run, recorded=recording.each)

    def _not_begun(self, item: Unreadable, run_id: UUID | None, name: str) -> Ran:
        bound, recording = self._bound, self._recording
        error = Unpicklable(f"it {came_unreadable(item.error)}")
        if self.each:
            assert bound.task is not None
            assert run_id is not None
            task_run = new_task_run(
                bound.task, run_id=run_id, name=name, upstream=recording.upstream
            )
            tell_unbegun(task_run, error)
        return Ran(None if bound.stage.last else [], error=error)


def contexts(bound: BoundStage, recording: Recording) -> Callable[[UUID, str], UnitContext]:
    """What surrounds each of several sources, by id and name of its task run.

    Where all of them are one task run, which is around the caller, or none, that is the same for
    all: to make it takes longer than many a source.
    """
    around = TaskRunContext.get()
    as_one = around is not None and around.task_run.id == recording.unit
    if bound.task is not None and not as_one:
        return partial(UnitContext, bound, recording)
    shared: list[UnitContext] = []

    def of(run_id: UUID, name: str) -> UnitContext:
        if not shared:
            shared.append(UnitContext(bound, recording, run_id, name))
        return shared[0]

    return of
