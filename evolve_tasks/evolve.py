"""`evolve` and its three siblings: check the call, choose a strategy, run it, tell the outcome."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import (
    ExitStack,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
    nullcontext,
)
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict, TypeVar, Unpack
from uuid import UUID

import anyio.from_thread
import anyio.to_thread
import distributed
from distributed import Client
from prefect import Task
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.results import get_result_store
from prefect.settings.context import get_current_settings
from prefect_dask.task_runners import DaskTaskRunner

from evolve_tasks.context import RunContexts
from evolve_tasks.core.assembly import Assembly, Portion
from evolve_tasks.core.evolution import Window
from evolve_tasks.errors import InvalidInput, NotInFlow, RunCancelled
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.journal import Journal
from evolve_tasks.monitoring.cancelling import heeding_cancellation
from evolve_tasks.monitoring.crashes import (
    end_what_died,
    now,
    record_given_up,
    tell_for_the_dead,
)
from evolve_tasks.monitoring.recording import unrecorded_after, wait_until_recorded
from evolve_tasks.monitoring.terminal import showing, terminal
from evolve_tasks.naming import LABEL, one_line, short_repr
from evolve_tasks.options import (
    BatchSize,
    EvolveOptions,
    FailurePolicy,
    Limits,
    RecordMode,
    StrategyName,
    resolve_options,
)
from evolve_tasks.outcome import EvolveFailed, Failure, ItemOutcome, Outcome
from evolve_tasks.resuming import Resuming
from evolve_tasks.runner import EvolveTaskRunner
from evolve_tasks.stages import Stage, stages_from
from evolve_tasks.strategies.as_completed import run_as_completed
from evolve_tasks.strategies.asynchronous import run_async
from evolve_tasks.strategies.choice import Choice, choose
from evolve_tasks.strategies.nested import Shares, run_nested, shares
from evolve_tasks.strategies.sequential import run_sequential
from evolve_tasks.strategies.submitting import Submitter, new_run_name
from evolve_tasks.workers.calls import RunSpec
from evolve_tasks.workers.context import on_worker
from evolve_tasks.workers.seceding import seceded

# Failures that `evolve_iter` keeps for the error at its end. All of them were given to the
# loop; what is kept must not grow with the run.
ITER_FAILURES = 100

# How long the API is given to record what workers said that have died since; without progress.
DEAD_S = 8.0

# Vanished sources that a log line names.
SHOWN = 5

# Work that lies ready for each thread: one item running, and enough behind it that a thread
# never waits for the flow, which answers within milliseconds.
PER_THREAD = 4
SMALLEST_WINDOW = 16

# Key under which calls with a journal of the flow run's own are numbered.
_JOURNALS = "evolve-tasks-journals"

R = TypeVar("R")

Stagelike = Task[..., Any] | Callable[..., Any]


class Overrides(TypedDict, total=False):
    """The fields of `EvolveOptions` as keywords; `limits` may be given by its fields."""

    strategy: StrategyName
    limits: Limits
    in_flight: int | None
    buffered: int
    max_items: int | None
    max_depth: int | None
    in_flight_variable: str | None
    on_failure: FailurePolicy | Mapping[str, Any]
    batch: BatchSize
    record: RecordMode
    record_budget: int
    resources: dict[str, dict[str, float]] | None
    journal: bool | str
    unique: bool
    progress: bool


class Later(TypedDict, total=False):
    """Callables that this version does not have yet."""

    collect: Any
    reduce: Any
    label: Any
    key: Any


class Callables(Later, total=False):
    """The callables of a run."""

    fingerprint: Callable[[Any], Any] | None


class Extras(Overrides, Callables, total=False):
    """Everything that `evolve` takes as keywords but `options`."""


def evolve(
    sources: Iterable[Any],
    *stages: Stagelike,
    options: EvolveOptions | Mapping[str, Any] | None = None,
    **overrides: Unpack[Extras],
) -> Outcome:
    """Expand sources into items, and process the items while sources are still expanded.

    Args:
        sources: N >= 0 sources; any iterable, also a lazy or endless one: a source is taken
            when there is room for it. Sources may repeat and need not be hashable.
        stages: two Prefect tasks or plain functions. The first takes a source and gives
            M >= 0 items, the second takes an item and gives its result.
        options: an `EvolveOptions`, or a mapping of its fields as a deployment has it.
        collect: not available yet.
        reduce: not available yet.
        fingerprint: takes a source and gives a plain value; a source whose value is another
            than in an earlier run of the same journal counts as changed. `file_fingerprint` is
            one for files.
        label: not available yet.
        key: not available yet.
        overrides: fields of `EvolveOptions` as keywords; `in_flight=` and `buffered=` may
            be given without their `limits`.

    Returns:
        The outcome: results in source order and then item order, failures, counts.

    Raises:
        InvalidInput: the call cannot be worked with; nothing was started.
        NotInFlow: called outside a flow run, or the flow's runner cannot do what was asked.
        EvolveFailed: sources or items failed and the policy does not accept it; all that was
            finished is in its `outcome`.
        ClusterLost: the connection to the Dask scheduler broke.
        ClusterUnfit: the cluster cannot run it, as without this package.
        RunCancelled: the flow run was cancelled, in the UI or by the API.
        JournalBusy: another run has the journal; wait for it, or give another name.
        JournalLost: another run has taken the journal over while this one was thought dead.

    Example:
        >>> from prefect import flow
        >>> @flow
        ... def squares(numbers: list[int]) -> list[int]:
        ...     return evolve(numbers, range, lambda x: x * x, strategy="sequential").results
    """
    call = _Call.checked(sources, stages, options, overrides)
    assembly = Assembly()
    with call.opened() as opened:
        opened.run.on_source = assembly.arrived
        with closing(opened.portions()) as portions:
            for portion in portions:
                assembly.add(portion)
    return opened.judged(assembly.by_source(), assembly.failures())


async def aevolve(
    sources: Iterable[Any],
    *stages: Stagelike,
    options: EvolveOptions | Mapping[str, Any] | None = None,
    **overrides: Unpack[Extras],
) -> Outcome:
    """Do what `evolve` does, awaited; the event loop stays free for other work.

    Args:
        sources: as in `evolve`.
        stages: as in `evolve`; tasks and functions may be async.
        options: as in `evolve`.
        overrides: as in `evolve`.

    Returns:
        The outcome, as `evolve` gives it.

    Raises:
        InvalidInput: as in `evolve`.
        EvolveFailed: as in `evolve`.

    Example:
        >>> from prefect import flow
        >>> @flow
        ... async def squares(numbers: list[int]) -> list[int]:
        ...     outcome = await aevolve(numbers, range, lambda x: x * x, strategy="sequential")
        ...     return outcome.results
    """
    call = _Call.checked(sources, stages, options, overrides)
    assembly = Assembly()
    async with _opened_async(call) as opened:
        opened.run.on_source = assembly.arrived
        if call.choice.strategy == "async":
            async with aclosing(run_async(opened.run, opened.submitter)) as portions:
                async for portion in portions:
                    assembly.add(portion)
                    opened.show()
        else:

            def collect() -> None:
                with closing(opened.portions()) as portions:
                    for portion in portions:
                        assembly.add(portion)

            await _in_thread(opened.run, collect)
    return opened.judged(assembly.by_source(), assembly.failures())


def evolve_iter(
    sources: Iterable[Any],
    *stages: Stagelike,
    options: EvolveOptions | Mapping[str, Any] | None = None,
    **overrides: Unpack[Extras],
) -> Iterator[ItemOutcome]:
    """Give each item's outcome as it ends, in bounded memory.

    Nothing runs further ahead of the loop than `in_flight` + `buffered`. Leaving the loop
    stops the run: what has not begun does not begin.

    Args:
        sources: as in `evolve`; they may be endless.
        stages: as in `evolve`.
        options: as in `evolve`.
        overrides: as in `evolve`.

    Yields:
        An `ItemOutcome` for each item and for each source that failed, in order of
        completion.

    Raises:
        InvalidInput: as in `evolve`, at the call.
        EvolveFailed: after the last outcome, if the policy does not accept the failures; its
            outcome has counts and the first failures, the results went to the loop.

    Example:
        >>> from prefect import flow
        >>> @flow
        ... def total(numbers: list[int]) -> int:
        ...     options = {"strategy": "sequential"}
        ...     return sum(item.value for item in evolve_iter(numbers, range, abs, options=options))
    """
    # Checked here and not in the generator, so that a wrong call fails where it stands.
    call = _Call.checked(sources, stages, options, overrides)
    return _iterate(call)


def _iterate(call: _Call) -> Iterator[ItemOutcome]:
    failures: list[Failure] = []
    with call.opened() as opened, closing(opened.portions()) as portions:
        for portion in portions:
            yield from _outcomes(portion, failures)
    opened.judged([], failures)


async def aevolve_iter(
    sources: Iterable[Any],
    *stages: Stagelike,
    options: EvolveOptions | Mapping[str, Any] | None = None,
    **overrides: Unpack[Extras],
) -> AsyncIterator[ItemOutcome]:
    """Do what `evolve_iter` does in an async flow.

    A loop that may be left early stands in `async with contextlib.aclosing(...)`: Python closes
    an abandoned async generator at a time of its own, which may be after the flow.

    Args:
        sources: as in `evolve_iter`.
        stages: as in `evolve_iter`.
        options: as in `evolve_iter`.
        overrides: as in `evolve_iter`.

    Yields:
        An `ItemOutcome` for each item and for each source that failed.

    Raises:
        InvalidInput: as in `evolve`, at the first step.
        EvolveFailed: as in `evolve_iter`.

    Example:
        >>> from prefect import flow
        >>> @flow
        ... async def total(numbers: list[int]) -> int:
        ...     found = aevolve_iter(numbers, range, abs, strategy="sequential")
        ...     return sum([item.value async for item in found])
    """
    call = _Call.checked(sources, stages, options, overrides)
    failures: list[Failure] = []
    async with _opened_async(call) as opened:
        portions = (
            run_async(opened.run, opened.submitter)
            if call.choice.strategy == "async"
            else _step_by_step(opened)
        )
        async with aclosing(portions):
            async for portion in portions:
                opened.show()
                for outcome in _outcomes(portion, failures):
                    yield outcome
    opened.judged([], failures)


@asynccontextmanager
async def _opened_async(call: _Call) -> AsyncGenerator[_Opened, None]:
    """Open a run beside an event loop; it is closed also when the task here is cancelled."""
    # An async task on a worker holds a thread of it by its event loop: this is that thread.
    with seceded() if on_worker() else nullcontext():
        opened = await anyio.to_thread.run_sync(call.open)
        try:
            yield opened
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(opened.close)


async def _in_thread(run: EvolvingRun, work: Callable[[], R]) -> R:
    """Let a thread work for us; when we are cancelled, the run is left and the thread ends."""
    context = copy_context()
    under_way = asyncio.get_running_loop().run_in_executor(None, context.run, work)
    try:
        return await asyncio.shield(under_way)
    except asyncio.CancelledError:
        run.interrupt()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([under_way])
        if not under_way.cancelled():
            under_way.exception()  # it is told by the cancellation
        raise


async def _step_by_step(opened: _Opened) -> AsyncGenerator[Portion, None]:
    portions = opened.portions()
    over = object()

    def following() -> Any:
        return next(portions, over)

    try:
        while (portion := await _in_thread(opened.run, following)) is not over:
            assert isinstance(portion, Portion)
            yield portion
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(portions.close)


def _outcomes(portion: Portion, failures: list[Failure]) -> Iterator[ItemOutcome]:
    failed = {failure.index: failure for failure in portion.failures}
    failures += portion.failures[: ITER_FAILURES - len(failures)]
    if (portion.position,) in failed:
        yield ItemOutcome(portion.source, (portion.position,), failure=failed[portion.position,])
    values = iter(portion.values)
    for position in range(portion.start, portion.stop):
        index = (portion.position, position)
        failure = failed.get(index)
        value = next(values) if failure is None else None
        yield ItemOutcome(
            portion.source, index, value=value, failure=failure, resumed=portion.resumed
        )


@dataclass
class _Call:
    """A call that was checked; nothing has been started for it."""

    sources: Iterable[Any]
    stages: tuple[Stage, ...]
    options: EvolveOptions
    choice: Choice
    client: Client | None
    runner: Any
    fingerprint: Callable[[Any], Any] | None = None

    @classmethod
    def checked(
        cls,
        sources: Any,
        functions: tuple[Any, ...],
        options: EvolveOptions | Mapping[str, Any] | None,
        keywords: Mapping[str, Any],
    ) -> _Call:
        later = {name: keywords[name] for name in Later.__annotations__ if name in keywords}
        for name, value in later.items():
            if value is not None:
                raise InvalidInput(
                    f"{name}={short_repr(value)}: this version of evolve-tasks does not have "
                    f"{name}= yet, and an argument is never ignored in silence; leave it out"
                )
        given = {name: value for name, value in keywords.items() if name not in later}
        fingerprint = given.pop("fingerprint", None)
        resolved = resolve_options(options, given)
        stages = stages_from(functions)
        _refuse_wrong_fingerprint(fingerprint, resolved)
        _refuse_wrong_sources(sources)
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise NotInFlow(
                "evolve was called outside a flow run: call it inside a function decorated with "
                "@flow(task_runner=EvolveTaskRunner())"
            )
        nested, runner = on_worker(), context.task_runner
        if nested and resolved.journal is True:
            raise InvalidInput(
                "journal=True inside a task: the retries of a flow run cannot tell which of its "
                'tasks this one is; give the journal a name, as in journal="ingest"'
            )
        has_dask = nested or isinstance(runner, DaskTaskRunner)
        choice = choose(resolved.strategy, stages, has_dask=has_dask, on_worker=nested)
        client: Client | None = None
        if choice.strategy != "sequential":
            client = distributed.get_client() if nested else runner.client  # type: ignore[attr-defined]
            _refuse_workers_without_api(client, runner)
        return cls(sources, stages, resolved, choice, client, runner, fingerprint)

    @contextmanager
    def opened(self) -> Iterator[_Opened]:
        opened = self.open()
        try:
            yield opened
        finally:
            opened.close()

    def open(self) -> _Opened:
        """Begin: from here on there is something to close."""
        started = time.monotonic()
        in_flight = self.options.limits.in_flight
        threads = sum(self.client.nthreads().values()) if self.client is not None else 1
        share = shares(in_flight, threads) if self.choice.strategy == "nested" else None
        if self.choice.strategy == "sequential":
            window = Window(units=1)
        elif share is not None:
            window = Window(in_flight, share.units, threads)
        elif in_flight is not None:
            window = Window(in_flight, threads=threads)
        else:
            window = Window(units=max(SMALLEST_WINDOW, PER_THREAD * threads), threads=threads)
        with ExitStack() as stack:
            return self._opened(stack, started, window, share, threads)

    def _opened(
        self, stack: ExitStack, started: float, window: Window, share: Shares | None, threads: int
    ) -> _Opened:
        options = self.options
        console = terminal() if options.progress else None
        logger = get_run_logger()
        resuming = self._resuming(stack, logger)
        context, surroundings = self._context(stack)
        spec = RunSpec(
            run=new_run_name(),
            stages=self.stages,
            surroundings=surroundings,
            failures_recorded=options.record != "sources",
            fail_fast=options.on_failure == "fail_fast",
            terminal_pid=None if console is None else os.getpid(),
            journaled=resuming is not None,
        )
        run = EvolvingRun(
            spec.run, self.sources, self.stages, options, window=window, resuming=resuming
        )
        note = logger.warning if self.choice.warn else logger.info
        note("Evolving with strategy %s: %s", self.choice.strategy, self.choice.reason)
        submitter = None
        if self.client is not None:
            submitter = Submitter(self.client, context, spec)
            submitter.open()
            stack.callback(submitter.close)
        stack.enter_context(heeding_cancellation(_flow_run_id(), run.cancel, logger))
        show = stack.enter_context(showing(run, console, self.client))
        if self.client is not None and on_worker():
            stack.enter_context(seceded())
        return _Opened(self, run, spec, submitter, stack.pop_all(), show, started, share, threads)

    def _resuming(self, stack: ExitStack, logger: Any) -> Resuming | None:
        """Take the journal, where there is to be one."""
        name = self.options.journal
        if not name:
            return None
        context = FlowRunContext.get()
        assert context is not None, "it was checked before"
        assert context.flow_run is not None, "it was checked before"
        if name is True:
            # Prefect numbers the calls of a task here, anew for each attempt of the flow run.
            numbers = context.task_run_dynamic_keys
            number = int(numbers.get(_JOURNALS, 0))
            numbers[_JOURNALS] = number + 1
            name = f"flow run {context.flow_run.id}, {number}"
        holder = f"flow run {context.flow_run.name}"
        journal = stack.enter_context(Journal.open(name, get_result_store(), holder=holder))
        resuming = Resuming(journal, self.stages, self.fingerprint, logger)
        stack.callback(resuming.tell)
        return resuming

    def _context(self, stack: ExitStack) -> tuple[str | None, dict[str, Any]]:
        """Bring the run context to the workers, where there are any."""
        if self.client is None:
            return None, {}
        if isinstance(self.runner, EvolveTaskRunner):
            contexts = self.runner.contexts
        else:
            contexts = RunContexts(self.client, DaskTaskRunner)
            stack.callback(contexts.close)
        name = contexts.current()
        return name, contexts.around(name)


def _flow_run_id() -> UUID:
    context = FlowRunContext.get()
    assert context is not None, "it was checked before"
    assert context.flow_run is not None, "it was checked before"
    return context.flow_run.id


@dataclass
class _Opened:
    """A run that has been opened, and has to be closed."""

    call: _Call
    run: EvolvingRun
    spec: RunSpec
    _submitter: Submitter | None
    _stack: ExitStack
    show: Callable[[], None]
    _started: float
    _share: Shares | None
    _threads: int
    gone: list[str] = field(default_factory=list)
    _logger: Any = field(default_factory=get_run_logger)
    _began: datetime = field(default_factory=now)
    _flow_run_id: UUID = field(default_factory=_flow_run_id)

    @property
    def submitter(self) -> Submitter:
        assert self._submitter is not None, "a sequential run submits nothing"
        return self._submitter

    def portions(self) -> Generator[Portion, None, None]:
        """Run, in whatever way was chosen."""
        match self.call.choice.strategy:
            case "sequential":
                portions = run_sequential(self.run, self.spec)
            case "as_completed":
                portions = run_as_completed(self.run, self.submitter)
            case "nested":
                portions = run_nested(self.run, self.submitter, self._share, self._threads)
            case _:
                portions = _in_own_loop(run_async(self.run, self.submitter))
        with closing(portions):
            for portion in portions:
                self.show()
                yield portion

    def vanished(self) -> list[str]:
        """Say which sources are gone since an earlier run, once all have been taken."""
        run = self.run
        named = isinstance(self.call.options.journal, str)
        if run.resuming is None or not named or not run.core.finished or run.core.stopped:
            return []
        if run.source_error is not None:
            return []
        gone = run.resuming.vanished()
        if gone:
            shown = ", ".join(one_line(name, LABEL) for name in gone[:SHOWN])
            more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
            self._logger.warning(
                "%d sources of earlier runs are gone: %s%s", len(gone), shown, more
            )
        run.keep()
        return gone

    def close(self) -> None:
        """Wait until the API knows what ran, then leave the cluster as it was found."""
        with self._stack:
            run = self.run
            self.gone = self.vanished()
            recorded = [one.run_id for one in run.recorded]
            if run.deaths:
                missing = unrecorded_after(recorded, self._logger, DEAD_S)
                tell_for_the_dead(run.recorded, set(missing), run.stages, self._logger)
            recorded += record_given_up(run.given_up)
            if recorded:
                wait_until_recorded(recorded, self._logger)
            if run.deaths:
                # Asked when the others are known: events come to the API one after another.
                names = [stage.name for stage in run.stages]
                ended = end_what_died(self._flow_run_id, names, self._began, self._logger)
                wait_until_recorded(ended, self._logger)

    def judged(self, by_source: list[tuple[Any, list[Any]]], failures: list[Failure]) -> Outcome:
        """Make the outcome, and raise if it is not accepted."""
        run = self.run
        if run.cancelled:
            message = f"the flow run was cancelled after {run.counts()}; what was finished is " + (
                "in the journal" if run.resuming else "lost, as there is no journal="
            )
            if isinstance(self.call.runner, EvolveTaskRunner):
                self.call.runner.acknowledge_at_end(self._flow_run_id, message)
            raise RunCancelled(message)
        outcome = Outcome(
            results=[value for _, values in by_source for value in values],
            by_source=by_source,
            failures=failures,
            counts=run.counts(),
            strategy=self.call.choice.strategy,
            reason=self.call.choice.reason,
            duration_s=time.monotonic() - self._started,
            stopped=run.core.stopped,
            error=run.source_error,
            vanished=self.gone,
        )
        if run.core.rejected or run.source_error is not None:
            raise EvolveFailed(outcome) from run.source_error
        self._logger.info(
            "Evolved in %.1f s (%s): %s", outcome.duration_s, outcome.strategy, outcome.counts
        )
        return outcome


def _in_own_loop(portions: AsyncGenerator[Portion, None]) -> Generator[Portion, None, None]:
    """Read an async iterator from sync code, also where this thread's loop is busy with us."""
    over = object()

    async def following() -> Any:
        return await anext(portions, over)

    with anyio.from_thread.start_blocking_portal() as portal:
        try:
            while True:
                under_way = portal.start_task_soon(following)
                try:
                    portion = under_way.result()
                except BaseException:
                    # Raised here, by a signal: the step has to end before it can be closed.
                    under_way.cancel()
                    raise
                if portion is over:
                    return
                assert isinstance(portion, Portion)
                yield portion
        finally:
            portal.call(_closed, portions)


async def _closed(portions: AsyncGenerator[Portion, None]) -> None:
    while True:
        try:
            await portions.aclose()
        except RuntimeError:  # its last step is still being cancelled
            await anyio.sleep(0.01)
        else:
            return


def _refuse_wrong_fingerprint(fingerprint: Any, options: EvolveOptions) -> None:
    if fingerprint is None:
        return
    if not callable(fingerprint):
        raise InvalidInput(
            f"fingerprint={short_repr(fingerprint)} is not callable: give a function of a source, "
            "as file_fingerprint"
        )
    if not isinstance(options.journal, str):
        raise InvalidInput(
            "fingerprint= says what makes a source count as changed since an earlier run, and "
            'there is no journal that runs share: give one a name, as in journal="ingest", or '
            "leave fingerprint= out"
        )


def _refuse_wrong_sources(sources: Any) -> None:
    if isinstance(sources, str | bytes | bytearray):
        raise InvalidInput(
            f"sources is {short_repr(sources)}, of which each character would be a source: give a "
            "list of sources, as in [path]"
        )
    try:
        iter(sources)
    except TypeError as error:
        raise InvalidInput(
            f"sources is {short_repr(sources)} of type {type(sources).__name__}, which cannot be "
            "iterated: give a list, a generator or another iterable of sources"
        ) from error


def _refuse_workers_without_api(client: Client | None, runner: Any) -> None:
    """The stock runner leaves worker processes without an API where none is configured.

    Each would start a server of its own on one SQLite file; a flow of 100 tasks had not ended
    after 400 s.
    """
    if isinstance(runner, EvolveTaskRunner) or get_current_settings().api.url is not None:
        return
    assert client is not None
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if all(address.startswith("inproc://") for address in workers):
        return
    raise NotInFlow(
        f"the flow's {type(runner).__name__} has worker processes and no PREFECT_API_URL is set, "
        "so each of them would start a Prefect server of its own: use "
        "@flow(task_runner=EvolveTaskRunner()), or start a server (prefect server start) and set "
        "PREFECT_API_URL"
    )
