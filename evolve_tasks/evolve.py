"""`evolve` and its three siblings: how results are collected, or given one by one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, closing, nullcontext
from contextvars import copy_context
from typing import Any, TypedDict, TypeVar, Unpack

import anyio
import anyio.to_thread
from prefect import Task

from evolve_tasks.async_sources import drawn
from evolve_tasks.call import Call
from evolve_tasks.core.assembly import Assembly, Portion
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.opened import Opened
from evolve_tasks.options import (
    BatchSize,
    EvolveOptions,
    FailurePolicy,
    Limits,
    RecordMode,
    StrategyName,
)
from evolve_tasks.outcome import Failure, ItemOutcome, Outcome
from evolve_tasks.strategies.asynchronous import run_async
from evolve_tasks.workers.context import on_worker
from evolve_tasks.workers.seceding import seceded

# Failures that `evolve_iter` keeps for the error at its end. All of them were given to the
# loop; what is kept must not grow with the run.
ITER_FAILURES = 100

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
    events_per_minute: int | None
    resources: dict[str, dict[str, float]] | None
    priority: int
    journal: bool | str
    unique: bool
    progress: bool


class Callables(TypedDict, total=False):
    """The callables of a run."""

    collect: Stagelike | Mapping[str, Stagelike] | None
    reduce: Stagelike | None
    key: Callable[[Any], Any] | None
    label: Callable[[Any], Any] | None
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
        stages: N >= 2 Prefect tasks or plain functions. The first takes a source and gives
            M >= 0 items, each further one takes one of those and gives items again, and the last
            one takes an item and gives its result, or `More`: a result and further items.
        options: an `EvolveOptions`, or a mapping of its fields as a deployment has it.
        collect: a Prefect task or a function of a source and the list of its results, called on
            a worker as soon as all that came from the source has ended; its values are in
            `outcome.collected`, as `(source, value)`. If it needs a third argument it is given
            the failures of the source, too, and is called also for a source that could not be
            expanded. What it raises is a failure of the source, which policies count. Inner items
            are collected likewise where functions are given by the name of an expanding stage, as
            in `{"list_folder": count, "parse_file": write_summary}`: each is called with what
            that stage was given and all results that came from it; the values are in
            `outcome.collected_by_stage`, by that name. With a journal it is called again only
            for other results, or with other code.
        reduce: a Prefect task or a function of two results that gives one of their kind, and does
            not care how they are grouped, as `operator.add`. Results are combined on the workers,
            in pairs whose shape follows from their positions, and do not come to the flow:
            `outcome.reduced` is what all of them come to, and `outcome.results` is empty.
        fingerprint: takes a source and gives a plain value; a source whose value is another
            than in an earlier run of the same journal counts as changed. `file_fingerprint` is
            one for files.
        label: takes a source or an item and gives its short name in the UI; without one a source
            is named by the last part of its path, or its repr, and an item by its position.
        key: takes an item and gives what makes two of them the same, as a str or a tuple; with
            it `unique` holds, without one items are compared by value and type. Items of
            a stage are compared with items of the same stage, sources with what `More` gives
            to stage 0.
        overrides: fields of `EvolveOptions` as keywords, which win over `options`; `in_flight=`
            and `buffered=` may be given without their `limits`.

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
    call = Call.checked(sources, stages, options, overrides)
    assembly = Assembly()
    with call.opened() as opened:
        opened.run.on_source = assembly.arrived
        with closing(opened.portions()) as portions:
            for portion in portions:
                assembly.add(portion)
    return opened.judged(assembly.by_source(), assembly.failures())


async def aevolve(
    sources: Iterable[Any] | AsyncIterable[Any],
    *stages: Stagelike,
    options: EvolveOptions | Mapping[str, Any] | None = None,
    **overrides: Unpack[Extras],
) -> Outcome:
    """Do what `evolve` does, awaited; the event loop stays free for other work.

    Args:
        sources: as in `evolve`, or an async iterable, as an async generator that reads a queue.
        stages: as in `evolve`; tasks and functions may be async.
        options: as in `evolve`.
        overrides: fields of `EvolveOptions`, and the callables `collect`, `reduce`,
            `fingerprint`, `label` and `key`, all as in `evolve`.

    Returns:
        The outcome, as `evolve` gives it.

    Raises:
        InvalidInput: as in `evolve`; so are all others, `NotInFlow`, `ClusterLost`,
            `ClusterUnfit`, `RunCancelled`, `JournalBusy` and `JournalLost`.
        EvolveFailed: as in `evolve`.

    Example:
        >>> from prefect import flow
        >>> @flow
        ... async def squares(numbers: list[int]) -> list[int]:
        ...     outcome = await aevolve(numbers, range, lambda x: x * x, strategy="sequential")
        ...     return outcome.results
    """
    async with drawn(sources) as given:
        call = Call.checked(given, stages, options, overrides)
        assembly = Assembly()
        async with _opened_async(call) as opened:
            opened.run.on_source = assembly.arrived
            if call.choice.strategy == "async":
                async with aclosing(run_async(opened.run, opened.submitter)) as portions:
                    async for portion in portions:
                        opened.heed()
                        assembly.add(portion)
            else:

                def collect() -> None:
                    with closing(opened.portions()) as portions:
                        for portion in portions:
                            assembly.add(portion)

                threads = _own_threads()
                try:
                    await _in_thread(opened.run, threads, collect)
                finally:
                    threads.shutdown(wait=False)
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
        overrides: fields of `EvolveOptions`, and the callables `fingerprint`,
            `label` and `key`, all as in `evolve`.

    Yields:
        An `ItemOutcome` for each item, and for each source or inner item that could not be
        expanded, in order of completion.

    Raises:
        InvalidInput: as in `evolve`, at the call; so is `NotInFlow`. At the first step
            `ClusterUnfit` and `JournalBusy`, at any `ClusterLost`, `RunCancelled` and
            `JournalLost`, as in `evolve`.
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
    call = Call.checked(sources, stages, options, overrides, iterates=True)
    return _iterate(call)


def _iterate(call: Call) -> Iterator[ItemOutcome]:
    failures: list[Failure] = []
    with call.opened() as opened, closing(opened.portions()) as portions:
        for portion in portions:
            yield from _outcomes(portion, failures)
    opened.judged([], failures)


async def aevolve_iter(
    sources: Iterable[Any] | AsyncIterable[Any],
    *stages: Stagelike,
    options: EvolveOptions | Mapping[str, Any] | None = None,
    **overrides: Unpack[Extras],
) -> AsyncIterator[ItemOutcome]:
    """Do what `evolve_iter` does in an async flow.

    A loop that may be left early stands in `async with contextlib.aclosing(...)`: Python closes
    an abandoned async generator at a time of its own, which may be after the flow.

    Args:
        sources: as in `evolve_iter`, or an async iterable.
        stages: as in `evolve_iter`.
        options: as in `evolve_iter`.
        overrides: as in `evolve_iter`: fields of `EvolveOptions`, `fingerprint`, `label`, `key`.

    Yields:
        An `ItemOutcome` for each item and for each source that failed.

    Raises:
        InvalidInput: as in `evolve`, at the first step; so is `NotInFlow`. All others are as in
            `evolve_iter`.
        EvolveFailed: as in `evolve_iter`.

    Example:
        >>> from prefect import flow
        >>> @flow
        ... async def total(numbers: list[int]) -> int:
        ...     found = aevolve_iter(numbers, range, abs, strategy="sequential")
        ...     return sum([item.value async for item in found])
    """
    async with drawn(sources) as given:
        call = Call.checked(given, stages, options, overrides, iterates=True)
        failures: list[Failure] = []
        async with _opened_async(call) as opened:
            portions = (
                run_async(opened.run, opened.submitter)
                if call.choice.strategy == "async"
                else _step_by_step(opened)
            )
            async with aclosing(portions):
                async for portion in portions:
                    opened.heed()
                    for outcome in _outcomes(portion, failures):
                        yield outcome
    opened.judged([], failures)


@asynccontextmanager
async def _opened_async(call: Call) -> AsyncGenerator[Opened, None]:
    """Open a run beside an event loop; it is closed also when the task here is cancelled."""
    # An async task on a worker holds a thread of it by its event loop: this is that thread.
    with seceded() if on_worker() else nullcontext():
        opened = await _opened_in_thread(call)
        try:
            yield opened
        finally:
            error = sys.exception()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(opened.close, error)


async def _opened_in_thread(call: Call) -> Opened:
    """Open a run; if we are cancelled meanwhile, close what was opened."""
    threads = _own_threads()
    opening = asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call.open)
    threads.shutdown(wait=False)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError as error:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await anyio.to_thread.run_sync(opening.result().close, error)
        raise


def _own_threads() -> ThreadPoolExecutor:
    """A thread that nobody else waits for: there may be many runs at the same time."""
    return ThreadPoolExecutor(1, thread_name_prefix="evolve")


async def _in_thread(run: EvolvingRun, threads: ThreadPoolExecutor, work: Callable[[], R]) -> R:
    """Let a thread work for us; when we are cancelled, the run is left and the thread ends."""
    under_way = asyncio.get_running_loop().run_in_executor(threads, copy_context().run, work)
    try:
        return await asyncio.shield(under_way)
    except asyncio.CancelledError:
        run.interrupt()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([under_way])
        if not under_way.cancelled():
            under_way.exception()  # it is told by the cancellation
        raise


async def _step_by_step(opened: Opened) -> AsyncGenerator[Portion, None]:
    portions, threads = opened.portions(), _own_threads()
    over = object()

    def following() -> Any:
        return next(portions, over)

    try:
        while (portion := await _in_thread(opened.run, threads, following)) is not over:
            assert isinstance(portion, Portion)
            yield portion
    finally:
        threads.shutdown(wait=False)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(portions.close)


def _outcomes(portion: Portion, failures: list[Failure]) -> Iterator[ItemOutcome]:
    failed = {failure.index: failure for failure in portion.failures}
    failures += portion.failures[: ITER_FAILURES - len(failures)]
    if portion.index in failed:
        yield ItemOutcome(portion.source, portion.index, failure=failed[portion.index])
    values = iter(portion.values)
    for position in range(portion.start, portion.stop):
        index = (*portion.index, position)
        failure = failed.get(index)
        value = next(values) if failure is None else None
        yield ItemOutcome(
            portion.source, index, value=value, failure=failure, resumed=portion.resumed
        )
