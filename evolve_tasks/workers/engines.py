"""Run a user's task in Prefect's engine, or an engine of ours that adds to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import anyio.from_thread
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State
from prefect.concurrency.context import ConcurrencyContext
from prefect.context import TagsContext, TaskRunContext
from prefect.logging.loggers import task_run_logger
from prefect.results import (  # type: ignore[attr-defined]
    ResultRecord,
    get_result_store,
    should_persist_result,
)
from prefect.settings.context import get_current_settings
from prefect.states import Completed, Failed
from prefect.task_engine import AsyncTaskRunEngine, SyncTaskRunEngine
from prefect.tasks import MaterializingTask
from prefect.transactions import AsyncTransaction, Transaction, transaction
from prefect.utilities.callables import call_with_parameters, get_call_parameters
from prefect.utilities.engine import should_log_prints

from evolve_tasks.naming import error_text
from evolve_tasks.workers.announcing import Announcement, afterwards, announcer, emit
from evolve_tasks.workers.failing import made_speakable
from evolve_tasks.workers.gathering import was_cut
from evolve_tasks.workers.prints import prints_heard
from evolve_tasks.workers.task_runs import enter_state
from evolve_tasks.workers.timed import TimedThreads

R = TypeVar("R")
Check = Callable[[Any], Any]


def call_parameters(task: Task[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Bind arguments to the task's first parameters."""
    return get_call_parameters(task.fn, arguments, {})


def run_task(
    task: Task[..., Any],
    arguments: tuple[Any, ...],
    task_run: TaskRun,
    *,
    check: Check,
    recorded: bool,
    plain: bool,
    threads: TimedThreads,
    free_tags: Collection[str] = (),
) -> Any:
    """Run a task, with everything that the task asks for.

    A delay between two attempts is slept through where the item runs: the rest of its batch
    waits, and so does the thread of the worker.

    Args:
        task: the task.
        arguments: what it is called with: an item, as a rule.
        task_run: the task run that it is; where it is not recorded, the one whose page gets
            the logs.
        check: looks at what the task returns, and may replace or refuse it. It is called by
            the engine, so that a task run whose value is refused is Failed in the UI too;
            wrapping the task's function instead would change its cache key.
        recorded: whether the API is told.
        plain: whether the task has nothing that calling its function alone would leave out.
        threads: where an attempt runs that has a time limit, if the task is sync.
        free_tags: tags that are no limits on concurrency.

    Returns:
        What the task returned, checked.

    Raises:
        Exception: what the task raised when its retries were used up.
    """
    parameters = call_parameters(task, arguments)
    if task.isasync:
        kind = _BriefAsyncEngine if recorded else _QuietAsyncEngine
        engine = kind(task=task, parameters=parameters, task_run=task_run)
        engine._parameters_resolved = True
        engine.check = check
        with _held_back(engine, task_run, free_tags):
            value = run_coroutine(_run_async(engine))
    else:
        kind_sync: type[_SyncEngine] = _QuietSyncEngine
        if recorded:
            kind_sync = _PlainSyncEngine if plain else _BriefSyncEngine
        engine_sync = kind_sync(task=task, parameters=parameters, task_run=task_run)
        engine_sync._parameters_resolved = True
        engine_sync.check = check
        engine_sync.threads = threads
        with _held_back(engine_sync, task_run, free_tags):
            _run_sync(engine_sync)
        value = engine_sync.result()
    return check(unwrapped(value)) if isinstance(value, State) else value


def tell_unbegun(task_run: TaskRun, error: BaseException) -> None:
    """Let a task run fail that Prefect could not begin: it tells nobody.

    A function that makes its name may have raised, or the storage for its result is not there.
    """
    before = task_run.state
    assert before is not None, "every task run has a state"
    state: State[Any] = Failed(message=f"Task run could not begin: {error_text(error)}")
    task_run.start_time = task_run.start_time or cast(Any, before.timestamp)
    enter_state(task_run, before, state)
    afterwards.tell(task_run, before, state, None)


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


def run_plainly(
    task: Task[..., Any], task_run: TaskRun, parameters: dict[str, Any], wait_for: Any
) -> State[Any]:
    """Run a sync task that was submitted and asks for nothing special.

    Args:
        task: the task.
        task_run: its task run.
        parameters: what it is called with.
        wait_for: what it waits for before.

    Returns:
        The final state.
    """
    engine = _PlainSurroundings(
        task=task, parameters=parameters, task_run=task_run, wait_for=wait_for
    )
    engine.check = lambda value: value
    _run_sync(engine)
    return engine.state


@contextmanager
def _held_back(
    engine: _SyncEngine | _AsyncEngine, task_run: TaskRun, free_tags: Collection[str]
) -> Iterator[None]:
    """Take the tags from a task run until it runs, where Prefect would ask for each in vain."""
    if set(task_run.tags).issubset(free_tags):
        engine.tags, task_run.tags = task_run.tags, []
    try:
        yield
    finally:
        _given_back(engine)  # also to one that has not come to run


def _given_back(engine: _SyncEngine | _AsyncEngine) -> None:
    if engine.tags is not None:
        assert engine.task_run is not None
        engine.task_run.tags, engine.tags = engine.tags, None


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


def keeps_results(task: Task[..., Any]) -> bool:
    """Whether Prefect stores what a task returns, for a later call or for whoever asks."""
    persists = task.persist_result
    if persists is None:
        persists = get_current_settings().tasks.default_persist_result
    if persists is None:
        persists = should_persist_result()  # as what is around it does, a task or the flow
    return bool(persists or task.cache_key_fn or task.result_storage_key)


def needs_engine(task: Task[..., Any], free_tags: Collection[str] = ()) -> bool:
    """Whether a task has anything that calling its function alone would leave out.

    Args:
        task: the task.
        free_tags: tags that are no limits on concurrency.
    """
    tags_context = TagsContext.get()
    tags = task.tags if tags_context is None else task.tags | tags_context.current_tags
    return bool(
        task.retries
        or task.timeout_seconds
        or keeps_results(task)
        or task.on_completion_hooks
        or task.on_failure_hooks
        or task.on_running_hooks
        or task.on_rollback_hooks
        or task.on_commit_hooks
        or tags.difference(free_tags)
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
    if value.is_completed() and value.data is None:
        return None  # Prefect would look for its result
    result = value.result(raise_on_failure=True, _sync=True)  # type: ignore[call-overload]
    return result


def _checked(check: Check, result: Any) -> Any:
    if isinstance(result, State):
        return result  # the engine decides what it means; its value is checked afterwards
    if isinstance(result, ResultRecord):
        # From Prefect's cache, where another run may have left what was not checked.
        return result.model_copy(update={"result": check(result.result)})
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
    tags: list[str] | None = None  # what its task run gets as soon as it runs
    _parameters_resolved = False  # Prefect walks through them in search of futures and states

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
        if was_cut():
            transaction.write_on_commit = False  # another run may want all of it
        self.handle_success(result, transaction=transaction)
        return result

    def handle_exception(self, exc: Exception) -> None:
        made_speakable(exc)
        super().handle_exception(exc)

    def _call(self) -> Any:
        return _checked(self.check, call_with_parameters(self.task.fn, self.parameters or {}))


class _PlainSurroundings(_SyncEngine):
    """Prefect's engine for a task that asks for nothing special (`needs_engine`): 2 ms less.

    Prefect prepares a result store and a transaction with a record for each task run, the first
    of them twice, and looks for assets. A task that keeps no results and has no assets has no use
    for them.
    """

    _entered = False

    @contextmanager
    def setup_run_context(
        self, client: SyncPrefectClient | None = None
    ) -> Generator[None, None, None]:
        """What user code may ask for; Prefect enters it once more for each attempt."""
        if self._entered:
            yield
            return
        self._entered = True
        assert self.task_run is not None
        log_prints = should_log_prints(self.task)
        with (
            prints_heard() if log_prints else nullcontext(),
            TaskRunContext(
                task=self.task,
                log_prints=log_prints,
                task_run=self.task_run,
                parameters=self.parameters or {},
                result_store=get_result_store(),
                client=self.client if client is None else client,
                persist_result=False,
            ),
            ConcurrencyContext(),
        ):
            # Prefect annotates the logger, and sets an adapter of it, too.
            self.logger = cast(Any, task_run_logger(task_run=self.task_run, task=self.task))
            yield

    def _resolve_parameters(self) -> None:
        super()._resolve_parameters()  # type: ignore[no-untyped-call]
        context = TaskRunContext.get()
        assert context is not None, "it was entered before"
        context.parameters = self.parameters or {}

    @contextmanager
    def asset_context(self) -> Generator[None, None, None]:
        yield

    @contextmanager
    def transaction_context(self) -> Generator[Transaction, None, None]:
        with transaction(write_on_commit=False, logger=self.logger) as kept_nowhere:
            yield kept_nowhere


class _AsyncEngine(AsyncTaskRunEngine[Any, Any]):
    """The same for async tasks."""

    check: Check
    tags: list[str] | None = None
    _parameters_resolved = False

    async def handle_exception(self, exc: Exception) -> None:
        made_speakable(exc)
        await super().handle_exception(exc)

    async def handle_success(self, result: Any, transaction: AsyncTransaction) -> Any:
        value = _checked(self.check, result)
        if was_cut():
            transaction.write_on_commit = False
        return await super().handle_success(value, transaction)


class _BriefSyncEngine(_SyncEngine):
    """Prefect's engine, which tells of short task runs once."""

    announced: Announcement | None = None

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        return _enter_briefly(self, state)

    def log_finished_message(self) -> None:
        """A line for each item that is done would bury those that say something."""
        if not self.state.is_completed():
            super().log_finished_message()


class _BriefAsyncEngine(_AsyncEngine):
    """The same for async tasks."""

    announced: Announcement | None = None

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        return _enter_briefly(self, state)

    def log_finished_message(self) -> None:
        if not self.state.is_completed():
            super().log_finished_message()


class _PlainSyncEngine(_PlainSurroundings, _BriefSyncEngine):
    """The same for a task that asks for nothing special; its value goes to who runs it alone."""

    def handle_success(self, result: Any, transaction: Transaction) -> Any:
        if isinstance(result, State):
            return super().handle_success(result, transaction=transaction)
        # An attempt of a task that it called may have failed, and taken this transaction back.
        transaction.stage(None)
        self._return_value = result
        return self.set_state(Completed())


def _enter_briefly(engine: _BriefSyncEngine | _BriefAsyncEngine, state: State[Any]) -> State[Any]:
    """Enter a state; that it runs is told if it does so for a moment."""
    task_run, before, follows = engine.task_run, engine.state, None
    assert task_run is not None
    _given_back(engine)
    enter_state(task_run, before, state)
    if engine.announced is not None:
        follows, engine.announced = engine.announced.settle(), None
    if state.is_running():
        engine.announced = Announcement(task_run, before, state)
        announcer.later(engine.announced)
    elif state.is_final():
        afterwards.tell(task_run, before, state, follows)
    else:
        emit(task_run, before, state, follows)
    return state


class _UnitEngine(_PlainSyncEngine):
    """The same for a task run that stands for several items, each with a transaction of its own.

    One around them would be the parent of theirs: nothing of theirs would be committed before all
    have ended, and the first one that fails would take back what the others have done.
    """

    @contextmanager
    def transaction_context(self) -> Generator[Transaction, None, None]:
        yield Transaction(write_on_commit=False, logger=self.logger)  # not entered


def run_recorded(task: Task[..., Any], task_run: TaskRun, free_tags: Collection[str] = ()) -> None:
    """Run a task without parameters, whose value nobody asks for, as a task run.

    Args:
        task: the task.
        task_run: its task run, which has those of its tags that are no limits: in limits each of
            what it stands for has its own place.
        free_tags: tags that are no limits on concurrency.

    Raises:
        Exception: what the task raised.
    """
    task_run.tags = [tag for tag in task_run.tags if tag in free_tags]
    engine = _UnitEngine(task=task, parameters={}, task_run=task_run)
    engine.check = lambda value: value
    with _held_back(engine, task_run, free_tags):
        _run_sync(engine)
    engine.result()


class _QuietSyncEngine(_SyncEngine):
    """Prefect's engine, with everything but the events: nobody is told of the states."""

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        assert self.task_run is not None
        _given_back(self)
        enter_state(self.task_run, self.state, state)
        return state

    def log_finished_message(self) -> None:
        """A line for each item would bury the log of the source."""


class _QuietAsyncEngine(_AsyncEngine):
    """The same for async tasks."""

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        assert self.task_run is not None
        _given_back(self)
        enter_state(self.task_run, self.state, state)
        return state

    def log_finished_message(self) -> None:
        """A line for each item would bury the log of the source."""


class _RetellingEngine(_BriefSyncEngine):
    """Prefect's engine for what has failed already: it only says so, with the times of then."""

    error: BaseException
    began: datetime
    ended: datetime

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        assert self.task_run is not None
        if state.is_running():
            state.timestamp = self.began
            self.task_run.start_time = cast(Any, self.began)
        elif state.is_final():
            state.timestamp = self.ended
        return super().set_state(state, force)

    def _set_custom_task_run_name(self) -> None:
        # Whatever a function that makes names raises: there is a name already.
        with suppress(Exception):
            super()._set_custom_task_run_name()  # type: ignore[no-untyped-call]

    def call_task_fn(self, transaction: Transaction) -> Any:
        raise self.error


def record_failure(
    task: Task[..., Any],
    arguments: tuple[Any, ...],
    task_run: TaskRun,
    error: BaseException,
    *,
    attempts: int,
    began: float,
    ended: float,
) -> None:
    """Give an item that failed unrecorded a failed task run of its own.

    Args:
        task: the task.
        arguments: what it was called with, which its name may be made of.
        task_run: its task run.
        error: why it failed.
        attempts: how often it was tried.
        began: when, in seconds since the epoch.
        ended: when it had failed for good.
    """
    # What there was to run and to do for it has been run and done.
    stand_in = Task(
        fn=task.fn,
        name=task.name,
        version=task.version,
        retries=0,
        task_run_name=task.task_run_name,
        # Prefect says it in the state of a task run whose time was over.
        timeout_seconds=task.timeout_seconds,
        persist_result=False,
        cache_policy=NO_CACHE,
    )
    stand_in.task_key = task.task_key
    engine = _RetellingEngine(
        task=stand_in, parameters=call_parameters(task, arguments), task_run=task_run
    )
    engine._parameters_resolved = True
    engine.error = error
    engine.began = datetime.fromtimestamp(began, UTC)
    engine.ended = datetime.fromtimestamp(max(began, ended), UTC)
    assert task_run.state is not None
    task_run.state.timestamp = engine.began
    task_run.expected_start_time = cast(Any, engine.began)
    task_run.run_count = attempts - 1
    # A tag may be a limit on concurrency, in which its item has had its place.
    try:
        with _held_back(engine, task_run, task_run.tags):
            _run_sync(engine)
    except BaseException as raised:
        # As SystemExit does, which Prefect takes for a crash and raises again.
        if raised is not error:
            raise
