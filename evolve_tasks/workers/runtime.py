"""Run expansions and batches where they are sent to, with the flow's context around them."""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import Context, copy_context
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.loggers import patch_print
from prefect.results import get_result_store
from prefect.utilities.engine import should_log_prints

from evolve_tasks.outcome import Failure
from evolve_tasks.stages import Stage, as_items
from evolve_tasks.workers.calls import (
    BatchResult,
    ExpandCall,
    Expansion,
    ProcessCall,
    RunSpec,
    Span,
    item_run_id,
)
from evolve_tasks.workers.failing import failure_from
from evolve_tasks.workers.task_runs import (
    needs_engine,
    new_task_run,
    record_failure,
    run_coroutine,
    run_recorded,
    run_unrecorded,
)
from evolve_tasks.workers.transport import Packed, Unpicklable, require_picklable

P = ParamSpec("P")
R = TypeVar("R")

# What user code may raise and we take as the failure of an item. SystemExit is among it: a
# parser that calls sys.exit() must not end a worker. KeyboardInterrupt and Prefect's signals
# are meant for the process.
CAUGHT = (Exception, SystemExit)


@dataclass(slots=True)
class _Ran:
    """How one item ended."""

    value: Any = None
    error: BaseException | None = None
    attempts: int = 1


class Runtime:
    """The user's stages, ready to run, in one worker process (or in the flow's own).

    Args:
        spec: the run.
        template: the context variables of the flow run. Each unit runs in a copy of it, so
            that nothing is entered in one task and left in another.
        stopped: whether the run has been stopped, asked before each item.
        place: name of the worker, for the record of where things ran.
    """

    def __init__(
        self,
        spec: RunSpec,
        template: Context,
        stopped: Callable[[], bool],
        place: str,
    ) -> None:
        self.spec = spec
        self.stopped = stopped
        self._template = template
        self._place = place
        self._bound = [_Bound(stage) for stage in spec.stages]

    def expand(self, call: ExpandCall) -> Expansion:
        """Run an expanding stage on one source."""
        return self._in_context(self._expand, call)

    def process(self, call: ProcessCall, items: Sequence[Any]) -> BatchResult:
        """Run the last stage on each of some items."""
        return self._in_context(self._process, call, items)

    def _in_context(self, function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
        return self._template.copy().run(
            partial(_with_own_tracking, function, *arguments, **keywords)
        )

    def _expand(self, call: ExpandCall) -> Expansion:
        if self.stopped():
            return Expansion(not_run=True)
        bound = self._bound[call.stage]
        span = self._begin()
        ran = _Ran()
        item: Any = None
        try:
            item = call.item.value()
            if bound.task is not None:
                name = f"{bound.stage.name}[{call.label}]"
                ran = _run(run_recorded, bound.task, item, run_id=call.run_id, name=name)
            else:
                ran = _call(bound.function, item)
        except CAUGHT as error:
            ran = _Ran(error=error)
        span.ended = time.time()
        recorded = bound.task is not None
        if ran.error is not None:
            failure = failure_from(
                ran.error,
                stage=bound.stage.name,
                index=call.index,
                item=item,
                attempts=ran.attempts,
            )
            return Expansion(failure=failure, recorded=recorded, span=span)
        return Expansion(items=ran.value, recorded=recorded, span=span)

    def _process(self, call: ProcessCall, items: Sequence[Any]) -> BatchResult:
        bound = self._bound[call.stage]
        span = self._begin()
        ended: list[_Ran] = []
        with _UnitContext(bound, call) as unit:
            for position, item in enumerate(items, call.start):
                if self.stopped():
                    break
                ended.append(unit.run(item, position))
        span.ended = time.time()
        values = _pack(bound.stage.name, ended)
        failures: list[Failure] = []
        recorded: list[int] = []
        for position, (ran, item) in enumerate(zip(ended, items, strict=False), call.start):
            if ran.error is not None:
                failures.append(
                    failure_from(
                        ran.error,
                        stage=bound.stage.name,
                        index=(*call.parent, position),
                        item=item,
                        attempts=ran.attempts,
                    )
                )
            if bound.task is not None:
                if call.recorded:
                    recorded.append(position)
                elif ran.error is not None and self.spec.failures_recorded:
                    record_failure(
                        bound.task,
                        run_id=item_run_id(call.parent_run_id, position),
                        name=item_name(bound.stage, call, position),
                        upstream=call.parent_run_id,
                        error=ran.error,
                    )
                    recorded.append(position)
        return BatchResult(values, failures, len(items) - len(ended), recorded, span)

    def _begin(self) -> Span:
        return Span(started=time.time(), worker=self._place, thread=threading.get_ident())


def _with_own_tracking(function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    # Prefect notes each result in the flow run context, to know dependencies. The context
    # lives as long as the run; a copy for each unit keeps the notes from piling up.
    flow_context = FlowRunContext.get()
    if flow_context is None:
        return function(*arguments, **keywords)
    with flow_context.model_copy(update={"run_results": {}, "task_run_assets": {}}):
        return function(*arguments, **keywords)


def item_name(stage: Stage, call: ProcessCall, position: int) -> str:
    """Name of an item's task run in the UI."""
    return f"{stage.name}[{call.label} {position}]"


class _Bound:
    """A stage whose function also checks what it returns.

    The check is inside the task, so that a task run whose value is refused is Failed in the
    UI too. Where a task's function is called alone, the batch is checked as a whole.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.task: Task[..., Any] | None = None
        self.quick = False  # calling the function alone leaves nothing out
        if stage.task is None:
            function = _plain(stage.function)
            self.function = function if stage.last else _with_check(function, stage)
            return
        task = copy(stage.task)
        self.quick = stage.last and not needs_engine(task)
        self.function = _plain(task.fn)
        task.fn = _with_check(_plain(task.fn), stage)
        task.isasync = inspect.iscoroutinefunction(task.fn)
        task.isgenerator = False
        self.task = task


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns its items, whether it returned or yielded them before."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def collected(*args: Any, **kwargs: Any) -> list[Any]:
            return [item async for item in function(*args, **kwargs)]

        return collected
    return function


def _with_check(function: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
    def check(value: Any) -> Any:
        if not stage.last:
            value = as_items(stage.name, value)
        require_picklable(stage.name, value)
        return value

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def checked_async(*args: Any, **kwargs: Any) -> Any:
            return check(await function(*args, **kwargs))

        return checked_async

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        return check(function(*args, **kwargs))

    return checked


class _UnitContext:
    """What surrounds the items of one batch: the run that gets their logs, patched prints."""

    def __init__(self, bound: _Bound, call: ProcessCall) -> None:
        self._bound = bound
        self._call = call
        self._stack = ExitStack()

    def __enter__(self) -> _UnitContext:
        task = self._bound.task
        if task is not None and not self._call.recorded and self._bound.quick:
            # The user's code may ask for its run: logs go to the run that gave the items.
            self._stack.enter_context(
                TaskRunContext(
                    task=task,
                    task_run=self._log_target(task),
                    parameters={},
                    client=get_client(sync_client=True),
                    log_prints=should_log_prints(task),
                    result_store=get_result_store(),
                    persist_result=False,
                )
            )
            if should_log_prints(task):
                self._stack.enter_context(patch_print())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, item: Any, position: int) -> _Ran:
        """Run the stage on one item."""
        task, call = self._bound.task, self._call
        if task is None:
            return _call(self._bound.function, item)
        if call.recorded:
            return _run(
                run_recorded,
                task,
                item,
                run_id=item_run_id(call.parent_run_id, position),
                name=item_name(self._bound.stage, call, position),
                upstream=call.parent_run_id,
            )
        if self._bound.quick:
            return _call(self._bound.function, item)
        return _run(run_unrecorded, task, item, run_id=call.parent_run_id, name=call.label)

    def _log_target(self, task: Task[..., Any]) -> Any:
        return new_task_run(
            task,
            run_id=self._call.parent_run_id,
            name=f"{self._bound.stage.name}[{self._call.label}]",
        )


def _run(
    runner: Callable[..., Any],
    task: Task[..., Any],
    item: Any,
    *,
    run_id: UUID,
    name: str,
    upstream: UUID | None = None,
) -> _Ran:
    task_run = new_task_run(task, run_id=run_id, name=name, upstream=upstream)
    try:
        # The engines leave context variables behind in async runs; a copy takes them along.
        value = copy_context().run(runner, task, item, task_run)
    except CAUGHT as error:
        return _Ran(error=error, attempts=task_run.run_count)
    return _Ran(value=value, attempts=task_run.run_count)


def _call(function: Callable[..., Any], item: Any) -> _Ran:
    try:
        value = function(item)
        if inspect.iscoroutine(value):
            value = run_coroutine(value)
    except CAUGHT as error:
        return _Ran(error=error)
    return _Ran(value=value)


def _pack(stage: str, ended: list[_Ran]) -> Packed:
    """Pack the values of the items that succeeded; one that cannot travel becomes a failure."""
    try:
        return Packed.of([ran.value for ran in ended if ran.error is None])
    except Exception:
        # One of them is at fault; the way to find out which is to try each.
        for ran in ended:
            if ran.error is None:
                try:
                    require_picklable(stage, ran.value)
                except Unpicklable as error:
                    ran.error = error
        return Packed.of([ran.value for ran in ended if ran.error is None])
