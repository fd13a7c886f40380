"""A call of `evolve` that was checked, and how it is opened: client, window, journal, context."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import distributed
from distributed import Client
from prefect.context import FlowRunContext, TagsContext
from prefect.logging import get_run_logger
from prefect.results import get_result_store
from prefect.settings.context import get_current_settings
from prefect_dask.task_runners import DaskTaskRunner

from evolve_tasks.collecting import Collecting, collecting_by
from evolve_tasks.context import RunContexts
from evolve_tasks.core.window import Window
from evolve_tasks.errors import InvalidInput, NotInFlow
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.journal import Journal
from evolve_tasks.monitoring.events import RunEvents
from evolve_tasks.monitoring.glimpsing import glimpsing
from evolve_tasks.monitoring.progress_lines import told_in_lines
from evolve_tasks.monitoring.shown import Shown
from evolve_tasks.monitoring.steering import Variable, in_flight_now, steered
from evolve_tasks.monitoring.tag_limits import unlimited_tags
from evolve_tasks.monitoring.terminal import showing, terminal
from evolve_tasks.naming import short_repr
from evolve_tasks.opened import Opened, flow_run_id
from evolve_tasks.options import EvolveOptions, resolve_options
from evolve_tasks.reducing import Reducing, reducing_by
from evolve_tasks.report import Story
from evolve_tasks.resuming import Resuming
from evolve_tasks.runner import EvolveTaskRunner
from evolve_tasks.stages import Stage, stages_from
from evolve_tasks.strategies.choice import Choice, choose, generates
from evolve_tasks.strategies.nested import flow_sends_items, shares
from evolve_tasks.strategies.submitting import Submitter, new_run_name
from evolve_tasks.streams import Streams
from evolve_tasks.workers.calls import RunSpec
from evolve_tasks.workers.context import on_worker
from evolve_tasks.workers.engines import keeps_results
from evolve_tasks.workers.garbage import RarelyCollected
from evolve_tasks.workers.seceding import seceded

# Work that lies ready for each thread: one item running, and enough behind it that a thread
# never waits for the flow, which answers within milliseconds.
PER_THREAD = 4
SMALLEST_WINDOW = 16

# Events of task runs that the API gets in a minute where nobody says how many. A server on SQLite
# records 30 to 40 task runs a second, with two events each; Prefect Cloud takes 2,000 events and
# log lines a minute in its smallest plan.
EVENTS_PER_MINUTE = 6_000
CLOUD_EVENTS_PER_MINUTE = 1_500

# Items that a generator may be ahead before the flow has said how it goes on.
MOST_AHEAD = 1_000

# Key under which calls with a journal of the flow run's own are numbered.
_JOURNALS = "evolve-tasks-journals"


@dataclass
class Call:
    """A call that was checked; nothing has been started for it."""

    sources: Iterable[Any]
    stages: tuple[Stage, ...]
    options: EvolveOptions
    choice: Choice
    client: Client | None
    runner: Any
    fingerprint: Callable[[Any], Any] | None = None
    label: Callable[[Any], Any] | None = None
    key: Callable[[Any], Any] | None = None
    iterates: bool = False  # a loop takes each result as it comes
    collecting: Collecting | None = None
    reducing: Reducing | None = None
    journal: str | None = None  # its name

    @classmethod
    def checked(
        cls,
        sources: Any,
        functions: tuple[Any, ...],
        options: EvolveOptions | Mapping[str, Any] | None,
        keywords: Mapping[str, Any],
        *,
        iterates: bool = False,
    ) -> Call:
        given = dict(keywords)
        fingerprint, label = given.pop("fingerprint", None), given.pop("label", None)
        key, collect, reduce = (given.pop(name, None) for name in ("key", "collect", "reduce"))
        for name, value in (("collect", collect), ("reduce", reduce)):
            if value is not None and iterates:
                raise InvalidInput(
                    f"{name}= gives what it makes to the outcome, which evolve_iter does not have: "
                    "use evolve, or put results together in the loop"
                )
        if key is not None:
            given["unique"] = True  # what else would it be for
        resolved = resolve_options(options, given)
        stages = stages_from(functions)
        _refuse_wrong_fingerprint(fingerprint, resolved)
        _refuse_wrong_label(label)
        _refuse_wrong_key(key)
        collecting = collecting_by(collect, stages)
        reducing = reducing_by(reduce, len(stages) + len(collecting.stages if collecting else ()))
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
        if iterates:
            # A loop that takes its time would look like a flow that cannot keep up.
            choice = replace(choice, adapts=False)
        _refuse_wrong_resources(resolved, stages, choice)
        _refuse_steering_one_item(resolved, choice)
        client: Client | None = None
        if choice.strategy != "sequential":
            client = distributed.get_client() if nested else runner.client  # type: ignore[attr-defined]
            _refuse_workers_without_api(client, runner)
        # Here and not where it is opened: calls that are awaited together are opened by threads,
        # in any order. And last: a call that is refused has no number.
        journal = _journal_of(context, resolved)
        return cls(
            sources,
            stages,
            resolved,
            choice,
            client,
            runner,
            fingerprint=fingerprint,
            label=label,
            key=key,
            iterates=iterates,
            collecting=collecting,
            reducing=reducing,
            journal=journal,
        )

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        opened = self.open()
        try:
            yield opened
        finally:
            opened.close(sys.exception())

    def open(self) -> Opened:
        """Begin: from here on there is something to close."""
        started = time.monotonic()
        limits = self.options.limits
        in_flight, variable = limits.in_flight, None
        if limits.in_flight_variable is not None:
            variable = Variable(limits.in_flight_variable, in_flight)
            in_flight = in_flight_now(variable)
        threads = sum(self.client.nthreads().values()) if self.client is not None else 1
        nested = self.choice.strategy == "nested"
        why_not = None
        if nested:
            why_not = flow_sends_items(self.options, self.stages, iterates=self.iterates)
        divided = nested and why_not is None
        window_of = partial(_window, self.choice.strategy, divided, threads)
        with ExitStack() as stack:
            opened = self._opened(stack, started, window_of, in_flight, variable, threads)
        if why_not is not None:
            get_run_logger().info("The flow sends the items itself: %s", why_not)
        return opened

    def _opened(
        self,
        stack: ExitStack,
        started: float,
        window_of: Callable[[int | None], Window],
        in_flight: int | None,
        variable: Variable | None,
        threads: int,
    ) -> Opened:
        options = self.options
        stack.enter_context(RarelyCollected())
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
            resources=options.resources or {},
            label=self.label,
            importance=options.priority,
            most_items=options.limits.max_items,
            unique=options.unique,
            key=self.key,
            collect=(
                {}
                if self.collecting is None
                else {one.of: one.stage for one in self.collecting.collectors.values()}
            ),
            reduce=None if self.reducing is None else self.reducing.stage,
            values_wanted=bool(self.reducing is None or self.collecting or resuming),
            free_tags=unlimited_tags(self._tags(), logger),
        )
        story = Story(time.time(), [stage.name for stage in self.stages], threads)
        run = EvolvingRun(
            spec.run,
            self.sources,
            self.stages,
            options,
            window_of=window_of,
            in_flight=in_flight,
            story=story,
            events_per_minute=options.events_per_minute or _events_per_minute(),
            resuming=resuming,
            streams=self._streams(threads, resuming),
            collecting=self.collecting,
            reducing=self.reducing,
            label=self.label,
            key=self.key,
            iterates=self.iterates,
            one_by_one=self.client is None,
            logger=logger,
        )
        note = logger.warning if self.choice.warn else logger.info
        note("Evolving with strategy %s: %s", self.choice.strategy, self.choice.reason)
        submitter = None
        if self.client is not None:
            submitter = Submitter(self.client, context, spec)
            stack.callback(submitter.close)  # some of it may be there when it cannot be opened
            submitter.open()
            if missing := submitter.missing():
                logger.warning("No worker offers %s at this moment; waiting for one", missing)
        for stage, why in self._gathered(resuming):
            logger.info("%s is run to its end before its items begin: %s", stage, why)
        stack.enter_context(steered(flow_run_id(), run, variable, logger))
        if self.choice.strategy == "nested" and self.client is not None:
            stack.enter_context(glimpsing(self.client, run))
        shown = Shown(
            run,
            strategy=self.choice.strategy,
            reason=self.choice.reason,
            started=started,
            dashboard=None if self.client is None else self.client.dashboard_link or None,
            logger=logger,
            progress=options.progress,
        )
        if console is not None:
            stack.enter_context(showing(run, console, self.client))
        elif options.progress:
            stack.enter_context(told_in_lines(shown.line, logger))
        stack.enter_context(shown.shown())
        events = RunEvents(spec.run, shown.title, flow_run_id())
        events.started(
            strategy=self.choice.strategy,
            reason=self.choice.reason,
            stages=[stage.name for stage in self.stages],
            record=options.record,
            batch=options.batch,
        )
        run.taking.on_expanded = events.expanded
        if self.client is not None and on_worker():
            stack.enter_context(seceded())
        return Opened(
            options=options,
            choice=self.choice,
            runner=self.runner,
            run=run,
            spec=spec,
            _submitter=submitter,
            _stack=stack.pop_all(),
            shown=shown,
            events=events,
            _threads=threads,
        )

    def _tags(self) -> set[str]:
        """Tags of everything that this call runs."""
        beside = self.collecting.stages if self.collecting is not None else ()
        reduces = (self.reducing.stage,) if self.reducing is not None else ()
        tasks = [stage.task for stage in (*self.stages, *beside, *reduces)]
        tags = {tag for task in tasks if task is not None for tag in task.tags}
        return tags | set(TagsContext.get().current_tags)

    def _streams(self, threads: int, resuming: Resuming | None) -> Streams:
        """Which stages give on the way: generators, where the flow can hear of it."""
        gathered = dict(self._gathered(resuming))
        stages = [
            stage.position
            for stage in self.stages[:-1]
            if generates(stage) and stage.name not in gathered
        ]
        allowance = self.options.limits.buffered // (2 * max(1, threads))
        return Streams(stages, max(1, min(allowance, MOST_AHEAD)))

    def _gathered(self, resuming: Resuming | None) -> Iterator[tuple[str, str]]:
        """Generators that cannot give on the way here, and why."""
        for stage in self.stages[:-1]:
            if not generates(stage):
                continue
            task = stage.task
            if self.client is None:
                yield stage.name, "without Dask one thing is done after the other"
            elif resuming is not None:
                yield stage.name, "what a journal has of a list is known by all of it"
            elif task is not None and task.timeout_seconds is not None:
                yield stage.name, "its time limit would run while the flow holds it back"
            elif task is not None and keeps_results(task):
                yield stage.name, "what Prefect stores as its result has to be all of it"

    def _resuming(self, stack: ExitStack, logger: Any) -> Resuming | None:
        """Take the journal, where there is to be one."""
        name = self.journal
        if name is None:
            return None
        context = FlowRunContext.get()
        assert context is not None, "it was checked before"
        assert context.flow_run is not None, "it was checked before"
        holder = f"flow run {context.flow_run.name}"
        journal = stack.enter_context(Journal.open(name, get_result_store(), holder=holder))
        resuming = Resuming(
            journal,
            self.stages,
            self.fingerprint,
            logger,
            unique=self.options.unique,
            key=self.key,
        )
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


def _journal_of(context: FlowRunContext, options: EvolveOptions) -> str | None:
    """Name of the journal of a call; a flow run's own is known by the number of the call."""
    if options.journal is not True:
        return options.journal or None
    assert context.flow_run is not None, "it was checked before"
    # Prefect numbers the calls of a task here, anew for each attempt of the flow run.
    numbers = context.task_run_dynamic_keys
    number = int(numbers.get(_JOURNALS, 0))
    numbers[_JOURNALS] = number + 1
    return f"flow run {context.flow_run.id}, {number}"


def _window(strategy: str, divided: bool, threads: int, in_flight: int | None) -> Window:
    """The window of a run.

    Args:
        strategy: its strategy.
        divided: nested sources have shares of it.
        threads: worker threads of the cluster.
        in_flight: items that may be in flight; `None` where nobody says.
    """
    if strategy == "sequential":
        return Window(units=1)
    if in_flight is None:
        return Window(units=max(SMALLEST_WINDOW, PER_THREAD * threads), threads=threads)
    share = shares(in_flight, threads) if divided else None
    return Window(in_flight, share.units if share else None, threads)


def _events_per_minute() -> int:
    settings = get_current_settings()
    in_cloud = (settings.api.url or "").startswith(settings.cloud.api_url)
    return CLOUD_EVENTS_PER_MINUTE if in_cloud else EVENTS_PER_MINUTE


def _refuse_wrong_fingerprint(fingerprint: Any, options: EvolveOptions) -> None:
    if fingerprint is None:
        return
    if not callable(fingerprint):
        raise InvalidInput(
            f"fingerprint={short_repr(fingerprint)} is not callable: give a function of a source, "
            "as file_fingerprint"
        )
    if not options.journal:
        raise InvalidInput(
            "fingerprint= says what makes a source count as changed since an earlier run, and "
            'there is no journal that runs share: give one a name, as in journal="ingest", or '
            "leave fingerprint= out"
        )


def _refuse_wrong_label(label: Any) -> None:
    if label is not None and not callable(label):
        raise InvalidInput(
            f"label={short_repr(label)} is not callable: give a function of a source or an item "
            "that gives its short name, as str"
        )


def _refuse_wrong_key(key: Any) -> None:
    if key is not None and not callable(key):
        raise InvalidInput(
            f"key={short_repr(key)} is not callable: give a function of an item that gives what "
            "makes two of them the same, as a str or a tuple"
        )


def _refuse_wrong_sources(sources: Any) -> None:
    if isinstance(sources, str | bytes | bytearray):
        raise InvalidInput(
            f"sources is {short_repr(sources)}, of which each character would be a source: give a "
            "list of sources, as in [path]"
        )
    if isinstance(sources, AsyncIterable) and not isinstance(sources, Iterable):
        raise InvalidInput(
            f"sources is {short_repr(sources)}, which is iterated asynchronously: use aevolve or "
            "aevolve_iter in an async flow, or give a list, a generator or another iterable"
        )
    try:
        iter(sources)
    except TypeError as error:
        raise InvalidInput(
            f"sources is {short_repr(sources)} of type {type(sources).__name__}, which cannot be "
            "iterated: give a list, a generator or another iterable of sources"
        ) from error


def _refuse_wrong_resources(
    options: EvolveOptions, stages: Sequence[Stage], choice: Choice
) -> None:
    if not options.resources:
        return
    names = [stage.name for stage in stages]
    if unknown := sorted(set(options.resources) - set(names)):
        raise InvalidInput(
            f"resources is given for {', '.join(map(repr, unknown))}, which is no stage of this "
            f"call: its stages are {', '.join(map(repr, names))}"
        )
    if choice.strategy == "sequential":
        raise InvalidInput(
            f"resources={options.resources} are those of Dask workers, and the strategy is "
            "sequential, which has none: use @flow(task_runner=EvolveTaskRunner()) and another "
            "strategy, or leave resources out"
        )


def _refuse_steering_one_item(options: EvolveOptions, choice: Choice) -> None:
    name = options.limits.in_flight_variable
    if name is not None and choice.strategy == "sequential":
        raise InvalidInput(
            f"limits.in_flight_variable={name!r} changes how many items are in flight, and the "
            "strategy is sequential, which has one at a time: use as_completed, async or nested "
            "with @flow(task_runner=EvolveTaskRunner()), or leave it out"
        )


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
