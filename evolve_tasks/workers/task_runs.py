"""Run a user's task on one item: as a Prefect task run, or with its semantics but unrecorded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import Context, copy_context
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import anyio.from_thread
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State, StateDetails, TaskRunPolicy, TaskRunResult
from prefect.context import FlowRunContext, TagsContext, TaskRunContext
from prefect.results import ResultRecord  # type: ignore[attr-defined]
from prefect.settings.context import get_current_settings
from prefect.states import Pending
from prefect.task_engine import AsyncTaskRunEngine, SyncTaskRunEngine, run_task_sync
from prefect.tasks import MaterializingTask
from prefect.transactions import AsyncTransaction, Transaction
from prefect.utilities.annotations import quote
from prefect.utilities.callables import call_with_parameters, get_call_parameters

from evolve_tasks.workers.failing import made_speakable
from evolve_tasks.workers.timed import TimedThreads

R = TypeVar("R")


def call_parameters(task: Task[..., Any], item: Any) -> dict[str, Any]:
    """Bind an item to the task's first parameter, untouched by Prefect.

    `quote` keeps Prefect from walking through the item in search of futures and states.
    """
    return get_call_parameters(task.fn, (quote(item),), {})


def first_parameter(task: Task[..., Any]) -> str:
    """Name of the parameter that takes the item."""
    return next(iter(get_call_parameters(task.fn, (None,), {})))


def new_task_run(
    task: Task[..., Any],
    *,
    run_id: UUID,
    name: str,
    upstream: UUID | None = None,
) -> TaskRun:
    """Make the record of a task run in the current flow run.

    Args:
        task: the task.
        run_id: its id.
        name: its name in the UI; a `task_run_name` of the user's own wins.
        upstream: the task run that gave its input.

    Returns:
        A pending task run. It is not sent: its first event is that it runs, which spares the
        API one of three events for each.
    """
    flow_context = FlowRunContext.get()
    flow_run = flow_context.flow_run if flow_context else None
    flow_run_id = flow_run.id if flow_run else None
    inputs: dict[str, Any] = {
        parameter: [] for parameter in get_call_parameters(task.fn, (None,), {})
    }
    if upstream is not None:
        inputs[first_parameter(task)] = [TaskRunResult(id=upstream)]
    parent = TaskRunContext.get()
    if parent is not None and parent.task_run.flow_run_id == flow_run_id:
        inputs["__parents__"] = [TaskRunResult(id=parent.task_run.id)]
    tags_context = TagsContext.get()
    state: State[Any] = Pending(
        state_details=StateDetails(task_run_id=run_id, flow_run_id=flow_run_id)
    )
    now: Any = state.timestamp  # Prefect has two names for one type
    return TaskRun(
        id=run_id,
        name=name,
        flow_run_id=flow_run_id,
        task_key=task.task_key,
        dynamic_key=str(run_id),
        task_version=task.version,
        empirical_policy=TaskRunPolicy(
            retries=task.retries,
            retry_delay=task.retry_delay_seconds,
            retry_jitter_factor=task.retry_jitter_factor,
        ),
        tags=sorted(set(task.tags) | set(tags_context.current_tags if tags_context else ())),
        task_inputs=inputs,
        expected_start_time=now,
        state_id=state.id,
        state_type=state.type,
        state_name=state.name,
        state=state,
        created=now,
        updated=now,
    )


Check = Callable[[Any], Any]


def run_task(
    task: Task[..., Any],
    item: Any,
    task_run: TaskRun,
    *,
    check: Check,
    recorded: bool,
    threads: TimedThreads,
) -> Any:
    """Run a task on an item, with everything that the task asks for.

    A delay between two attempts is slept through where the item runs: the rest of its batch
    waits, and so does the thread of the worker.

    Args:
        task: the task.
        item: the item.
        task_run: the task run that it is; where it is not recorded, the one whose page gets
            the logs.
        check: looks at what the task returns, and may replace or refuse it. It is called by
            the engine, so that a task run whose value is refused is Failed in the UI too;
            wrapping the task's function instead would change its cache key.
        recorded: whether the API is told.
        threads: where an attempt runs that has a time limit, if the task is sync.

    Returns:
        What the task returned, checked.

    Raises:
        Exception: what the task raised when its retries were used up.
    """
    parameters = call_parameters(task, item)
    if task.isasync:
        kind = _AsyncEngine if recorded else _QuietAsyncEngine
        engine = kind(task=task, parameters=parameters, task_run=task_run)
        engine.check = check
        value = run_coroutine(_run_async(engine))
    else:
        kind_sync = _SyncEngine if recorded else _QuietSyncEngine
        engine_sync = kind_sync(task=task, parameters=parameters, task_run=task_run)
        engine_sync.check = check
        engine_sync.threads = threads
        _run_sync(engine_sync)
        value = engine_sync.result()
    return check(unwrapped(value)) if isinstance(value, State) else value


def run_in_time(
    task: Task[..., Any],
    task_run: TaskRun,
    parameters: dict[str, Any],
    wait_for: Any,
    threads: TimedThreads,
) -> State[Any]:
    """Run a sync task that was submitted and has a time limit, which holds for blocking code too.

    Args:
        task: the task.
        task_run: its task run.
        parameters: what it is called with.
        wait_for: what it waits for before.
        threads: where its attempts run.

    Returns:
        The final state.
    """
    engine = _SyncEngine(task=task, parameters=parameters, task_run=task_run, wait_for=wait_for)
    # Whoever consumed a generator later would do so without a limit. Prefect makes it a list.
    engine.check = lambda value: list(value) if isinstance(value, Generator) else value
    engine.threads = threads
    _run_sync(engine)
    return engine.state


def _run_sync(engine: SyncTaskRunEngine[Any, Any]) -> None:
    """Do what Prefect's `run_task_sync` does, with an engine of ours."""
    with engine.start():
        while engine.is_running():
            engine.wait_until_ready()
            with (
                engine.asset_context(),
                engine.run_context(),
                engine.transaction_context() as transaction,
            ):
                engine.call_task_fn(transaction)


async def _run_async(engine: AsyncTaskRunEngine[Any, Any]) -> Any:
    async with engine.start():
        while engine.is_running():
            await engine.wait_until_ready()
            async with (
                engine.asset_context(),
                engine.run_context(),
                engine.transaction_context() as transaction,
            ):
                await engine.call_task_fn(transaction)
    return await engine.result()


def run_as_unit(
    task: Task[..., Any],
    *,
    run_id: UUID,
    name: str,
    upstream: UUID | None,
    body: Callable[[], R],
) -> R:
    """Run something as one task run under a task's name, with nothing else of the task.

    It has no tags: they are limits on concurrency, which its items take themselves.
    """
    results: list[R] = []
    unit = Task(
        fn=lambda: results.append(body()),
        name=task.name,
        version=task.version,
        retries=0,
        log_prints=task.log_prints,
        persist_result=False,
        cache_policy=NO_CACHE,
    )
    task_run = new_task_run(task, run_id=run_id, name=name, upstream=upstream)
    task_run.tags = []
    task_run.empirical_policy = TaskRunPolicy(retries=0)
    run_task_sync(unit, task_run=task_run, parameters={})
    return results[0]


class OpenRun:
    """A task run that lasts until it is closed, whatever is done meanwhile.

    Prefect's engine runs it in a thread of its own, where it waits.

    Args:
        task: the task under whose name it stands.
        stage: name of its stage.
        label: what its name has in brackets.
        context: context variables of the flow run; not used by anybody else.
    """

    def __init__(self, task: Task[..., Any], stage: str, label: str, context: Context) -> None:
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
        )
        self._thread = threading.Thread(target=context.run, args=(run,), name=f"evolve-{name}")
        self._thread.start()

    def close(self) -> None:
        """End it; it is completed when this returns."""
        self._over.set()
        self._thread.join()


def needs_engine(task: Task[..., Any]) -> bool:
    """Whether a task has anything that calling its function alone would leave out."""
    flow_context = FlowRunContext.get()
    persists = task.persist_result
    if persists is None:
        persists = get_current_settings().tasks.default_persist_result
    if persists is None and flow_context is not None:
        persists = flow_context.persist_result
    tags_context = TagsContext.get()
    return bool(
        task.retries
        or task.timeout_seconds
        or persists
        or task.cache_key_fn
        or task.result_storage_key
        or task.on_completion_hooks
        or task.on_failure_hooks
        or task.on_running_hooks
        or task.on_rollback_hooks
        or task.on_commit_hooks
        or task.tags
        or (tags_context is not None and tags_context.current_tags)
        or task.asset_deps
        or isinstance(task, MaterializingTask)
    )


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Wait for a coroutine in a thread that may or may not have a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # A sync flow function called from an async flow: its thread's loop is busy with us.
    context = copy_context()

    async def in_our_context() -> Any:
        return await asyncio.get_running_loop().create_task(coroutine, context=context)

    with anyio.from_thread.start_blocking_portal() as portal:
        return portal.call(in_our_context)


def unwrapped(value: Any) -> Any:
    """A state that a task returned stands for its result, as everywhere in Prefect."""
    if not isinstance(value, State):
        return value
    result = value.result(raise_on_failure=True, _sync=True)  # type: ignore[call-overload]
    return result


def enter_state(task_run: TaskRun, last: State[Any], new: State[Any]) -> None:
    """What Prefect's engines note on a task run when its state changes."""
    if last.timestamp == new.timestamp:
        new.timestamp += timedelta(microseconds=1)
    new.state_details.task_run_id = task_run.id
    new.state_details.flow_run_id = task_run.flow_run_id
    task_run.state = new
    task_run.state_id = new.id
    task_run.state_type = new.type
    task_run.state_name = new.name
    if last.is_running():
        task_run.total_run_time += new.timestamp - last.timestamp
    if new.is_running():
        task_run.run_count += 1
    if new.is_final() and task_run.start_time and not task_run.end_time:
        task_run.end_time = cast(Any, new.timestamp)


def _checked(check: Check, result: Any) -> Any:
    if isinstance(result, State):
        return result  # the engine decides what it means; its value is checked afterwards
    if isinstance(result, ResultRecord):
        check(result.result)  # from Prefect's cache
        return result
    return check(result)


class _SyncEngine(SyncTaskRunEngine[Any, Any]):
    """Prefect's engine, which also checks what the task returns and ends it in time.

    Prefect's own way to end a sync task (see `timed`) does not interrupt a blocking call, and
    from time to time it interrupts the engine. So a task with a time limit runs in another
    thread everywhere, on the main thread as well: the same task fails in the same way with
    every strategy.
    """

    check: Check
    threads: TimedThreads

    @contextmanager
    def run_context(self) -> Generator[Any, None, None]:
        """What Prefect does around an attempt, without its own time limit.

        With it goes its warning, for each attempt, that a worker thread is not interrupted.
        """
        if self.task.timeout_seconds is None:
            with super().run_context() as engine:
                yield engine
            return
        with self.setup_run_context():
            try:
                yield self
            except TimeoutError as error:
                self.handle_timeout(error)
            except Exception as error:
                self.handle_exception(error)

    def call_task_fn(self, transaction: Transaction) -> Any:
        """What Prefect does for an attempt; a generator is consumed within the limit, too."""
        if transaction.is_committed():
            result = _checked(self.check, transaction.read())
        elif self.task.timeout_seconds is None:
            result = self._call()
        else:
            result = self.threads.call(
                self._call, self.task.timeout_seconds, name=self.task.name, logger=self.logger
            )
        self.handle_success(result, transaction=transaction)
        return result

    def handle_exception(self, exc: Exception) -> None:
        made_speakable(exc)
        super().handle_exception(exc)

    def _call(self) -> Any:
        return _checked(self.check, call_with_parameters(self.task.fn, self.parameters or {}))


class _AsyncEngine(AsyncTaskRunEngine[Any, Any]):
    """The same for async tasks."""

    check: Check

    async def handle_exception(self, exc: Exception) -> None:
        made_speakable(exc)
        await super().handle_exception(exc)

    async def handle_success(self, result: Any, transaction: AsyncTransaction) -> Any:
        return await super().handle_success(_checked(self.check, result), transaction)


class _QuietSyncEngine(_SyncEngine):
    """Prefect's engine, with everything but the events: nobody is told of the states."""

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        assert self.task_run is not None
        enter_state(self.task_run, self.state, state)
        return state

    def log_finished_message(self) -> None:
        """A line for each item would bury the log of the source."""


class _QuietAsyncEngine(_AsyncEngine):
    """The same for async tasks."""

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        assert self.task_run is not None
        enter_state(self.task_run, self.state, state)
        return state

    def log_finished_message(self) -> None:
        """A line for each item would bury the log of the source."""


def record_failure(
    task: Task[..., Any], *, run_id: UUID, name: str, upstream: UUID | None, error: BaseException
) -> None:
    """Give an item that failed unrecorded a failed task run of its own."""

    def failed_before(*_: Any, **__: Any) -> None:
        raise error

    stand_in = Task(
        fn=failed_before,
        name=task.name,
        tags=task.tags,
        version=task.version,
        retries=0,
        # Prefect says it in the state of a task run whose time was over.
        timeout_seconds=task.timeout_seconds,
        persist_result=False,
    )
    stand_in.task_key = task.task_key
    task_run = new_task_run(task, run_id=run_id, name=name, upstream=upstream)
    threads = TimedThreads()
    engine = _SyncEngine(task=stand_in, parameters={}, task_run=task_run)
    engine.check = lambda value: value
    engine.threads = threads
    try:
        _run_sync(engine)
    except BaseException as raised:
        # As SystemExit does, which Prefect takes for a crash and raises again.
        if raised is not error:
            raise
    finally:
        threads.close()
