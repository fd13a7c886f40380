"""`EvolveTaskRunner`: a `DaskTaskRunner` whose worker processes need no server of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple, Self, cast
from uuid import UUID, uuid4

import dask
import distributed
import httpx
from distributed import Client, Future, LocalCluster, performance_report
from prefect.client.schemas.objects import RunInput
from prefect.context import AssetContext, FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.context import get_current_settings
from prefect.tasks import MaterializingTask, Task
from prefect.utilities.collections import visit_collection
from prefect.utilities.engine import collect_task_run_inputs_sync
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from evolve_tasks.cluster_block import block_name, load_block, refuse_wrong_template
from evolve_tasks.connecting import adapt, connected, start
from evolve_tasks.context import RunContexts, register
from evolve_tasks.errors import ClusterLost, ClusterUnfit, InvalidInput
from evolve_tasks.futures import EndedFutures, EvolveFuture, death_of
from evolve_tasks.lost_workers import lost_workers_return
from evolve_tasks.monitoring.cancelling import acknowledge
from evolve_tasks.monitoring.crashes import (
    end_killed,
    end_what_died_with_workers,
    end_what_was_left,
)
from evolve_tasks.monitoring.recording import wait_until_recorded
from evolve_tasks.naming import error_text
from evolve_tasks.stages import function_name
from evolve_tasks.workers.closing import QuietClosing
from evolve_tasks.workers.context import on_worker
from evolve_tasks.workers.dask_span import in_one_span
from evolve_tasks.workers.submitted import (
    Submission,
    Upstream,
    begun,
    children,
    run_submission,
)
from evolve_tasks.workers.transport import Packed

# Several tasks may be the first to need a client; a cluster started twice would be left behind.
_making = threading.RLock()

_SPAWN_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"


# In the id of a client whose cluster goes with its flow run.
OWN = "evolve-own"

# How far the clock of a scheduler may be behind that of a flow. If it is more, a death may be
# missed; if it is less, one of before is taken for one of now, which costs a question.
SKEW_S = 60.0


class _Pending(NamedTuple):
    """What was submitted and has not ended."""

    task: Task[Any, Any]
    future: Future[Any]


class _Asked(NamedTuple):
    """Which cluster a flow run is to use."""

    given: Any  # a cluster, an address, or nothing
    cluster_class: Any  # of the cluster to start, if one was named
    cluster_kwargs: dict[str, Any]
    adapt_kwargs: dict[str, Any]
    client_kwargs: dict[str, Any]


class EvolveTaskRunner(DaskTaskRunner):
    """Runs tasks on Dask, warm: what they share reaches each worker once.

    Everything that a flow submits through it, and `evolve`, runs in a context that is prepared
    once in each worker process. The embedded default works with worker processes, too.

    Task runs that nobody waited for are awaited at the end of the flow run; if it failed, those
    that have not begun are cancelled. A warning says how many.

    Takes everything that `DaskTaskRunner` takes. Where no `PREFECT_API_URL` is set, Prefect
    starts a temporary server for the flow; the workers then use that one, and the flow waits
    at its end until it has recorded the task runs, because it goes down with the flow.

    Args:
        cluster: a running Dask cluster.
        address: address of a running scheduler.
        cluster_class: class of the cluster to start; `LocalCluster` if not given.
        cluster_kwargs: what it is started with.
        adapt_kwargs: bounds for adaptive scaling.
        client_kwargs: arguments for the Dask client.
        performance_report_path: where to write Dask's performance report. It needs bokeh, on the
            scheduler too: `pip install "evolve-tasks[dashboard]"`.
        cluster_block: name of a `DaskCluster` block, or a Prefect template that gives it when a
            flow run starts: `"prod"`, `"{{ parameters.cluster }}"`,
            `"{{ prefect.variables.cluster }}"`, `"{{ $CLUSTER }}"` (environment, and with it
            the job variables of a work pool). Where it gives nothing, a local cluster is started.

    Raises:
        ValueError: arguments that exclude each other, as in `DaskTaskRunner`; `cluster_block`
            excludes all others that say which cluster (`InvalidInput`).

    Example:
        >>> from prefect import flow
        >>> @flow(task_runner=EvolveTaskRunner(cluster_kwargs={"n_workers": 2}))
        ... def index(paths: list[str]) -> None: ...
        >>> @flow(task_runner=EvolveTaskRunner(cluster_block="{{ parameters.cluster }}"))
        ... def anywhere(paths: list[str], cluster: str = "") -> None: ...
    """

    def __init__(self, *args: Any, cluster_block: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cluster_block = cluster_block
        if cluster_block is not None:
            self._refuse_wrong_block()
        # What was given, apart from what the client makes of it later.
        self._given_cluster = self._cluster
        self._contexts: RunContexts | None = None
        self._ephemeral = False
        self._submitted: list[UUID] = []
        self._pending: dict[UUID, _Pending] = {}
        self._killed: dict[UUID, tuple[Task[Any, Any], str]] = {}
        self._flow_context: FlowRunContext | None = None
        self._ended: EndedFutures | None = None
        self._cancelled: tuple[UUID, str] | None = None
        self._outer: Any = None  # the runner of the flow around
        self._left = False  # something may be under way when the cluster goes
        self._gone = False  # the cluster that it had started
        self._began = time.time()  # events of a scheduler have such a time

    def duplicate(self) -> Self:
        """Make a runner with the same settings; the stock one forgets `cluster`."""
        return type(self)(
            cluster=self._given_cluster,
            address=None if self._given_cluster is not None else self.address,
            cluster_class=self.cluster_class,
            cluster_kwargs=self.cluster_kwargs,
            adapt_kwargs=self.adapt_kwargs,
            client_kwargs=self.client_kwargs,
            performance_report_path=self.performance_report_path,
            cluster_block=self.cluster_block,
        )

    def __eq__(self, other: object) -> bool:
        """Whether the settings are the same, the cluster and the block among them."""
        return (
            isinstance(other, EvolveTaskRunner)
            and super().__eq__(other)
            and self._given_cluster is other._given_cluster
            and self.cluster_block == other.cluster_block
        )

    __hash__ = None  # type: ignore[assignment]

    def _refuse_wrong_block(self) -> None:
        refuse_wrong_template(self.cluster_block)
        others = {
            "cluster": self._cluster,
            "address": self.address,
            "cluster_class": self.cluster_class,
            "cluster_kwargs": self.cluster_kwargs,
            "adapt_kwargs": self.adapt_kwargs,
            "client_kwargs['security']": self.client_kwargs.get("security"),
        }
        if given := [name for name, value in others.items() if value]:
            raise InvalidInput(
                f"cluster_block={self.cluster_block!r} says which cluster, and so does "
                f"{', '.join(given)}: give one of them"
            )

    @property
    def client(self) -> PrefectDaskClient:
        """The Dask client, made on first use together with the cluster."""
        with _making:
            if self._client is None and on_worker():
                # The one that all tasks on a worker share; it is closed with the worker.
                self._client = cast(PrefectDaskClient, distributed.get_client())
            elif self._client is None:
                asked = self._asked()
                with dask.config.set({_SPAWN_ENVIRONMENT: self._spawn_environment(asked)}):
                    self._client = self._connected(asked)
            return self._client

    def _asked(self) -> _Asked:
        """Which cluster this flow run is to use; of a block, that is known now and not before."""
        options = dict(self.client_kwargs)
        if self.cluster_block is None or not (name := self._block_name(self.cluster_block)):
            given = self._cluster if self._cluster is not None else self.address
            own = self.resolved_cluster_class
            return _Asked(given, own, self.cluster_kwargs, self.adapt_kwargs, options)
        found = load_block(self.cluster_block, name).runner_arguments()
        address = found.get("address")
        self.logger.info(
            "The cluster is that of block %r: %s", name, address or "one is started for this run"
        )
        return _Asked(
            address,
            found.get("cluster_class"),
            found.get("cluster_kwargs", {}),
            found.get("adapt_kwargs", {}),
            {**options, **found.get("client_kwargs", {})},
        )

    def _block_name(self, template: str) -> str:
        name = block_name(template)
        if not name:
            self.logger.info("cluster_block=%r names no block here: the default is used", template)
        return name

    def _connected(self, asked: _Asked) -> PrefectDaskClient:
        """Connect to the cluster that was asked for, and start it if it is to be started.

        The stock runner takes any default client of the process first, and with it another
        cluster than the one that it was given: that of a worker in this process, for one.
        """
        if self.performance_report_path and find_spec("bokeh") is None:
            # Dask would say so when everything has run.
            raise InvalidInput(
                f"performance_report_path={str(self.performance_report_path)!r}: Dask draws its "
                "report with bokeh, which is not installed; run pip install bokeh, or leave it out"
            )
        told = asked.cluster_class is not None or bool(asked.cluster_kwargs)
        given, options = asked.given, asked.client_kwargs
        own = not given
        if not given and not told and (around := self._around()) is not None:
            given = around.cluster or around.scheduler_info(n_workers=0)["address"]
            options.setdefault("security", around.security)
            own = OWN in around.id  # not ours, but it goes with a flow run as well
        if own:
            options["name"] = "-".join(filter(None, [OWN, options.get("name")]))
        own = not given
        if own:
            cluster_class = asked.cluster_class or LocalCluster
            self.logger.info("Starting a Dask cluster with %s", function_name(cluster_class))
            started = start(cluster_class, asked.cluster_kwargs)
            # Entered before the cluster, so it is done after that is gone.
            self._exit_stack.callback(self._end_left)
            given = self._cluster = self._exit_stack.enter_context(started)
        if isinstance(given, LocalCluster):  # also that of a default client
            self._exit_stack.enter_context(lost_workers_return())
        if asked.adapt_kwargs and self._cluster is not None:
            adapt(self._cluster, asked.adapt_kwargs)
        client: PrefectDaskClient = self._exit_stack.enter_context(connected(given, **options))
        if self.performance_report_path:
            self._exit_stack.enter_context(Client.as_current(client))
            self._exit_stack.enter_context(performance_report(self.performance_report_path))
        if own:
            register(client, QuietClosing())
        if client.dashboard_link:
            self.logger.info("The Dask dashboard is at %s", client.dashboard_link)
        return client

    def _around(self) -> Client | None:
        """A client that the user has made in this process and left as the default.

        Or that of a flow around this one, whose cluster outlives it. The cluster of another flow,
        which goes on beside this one, goes with that flow.
        """
        around = [one for one in self._clients_around() if one.status == "running"]
        try:
            client: Client = Client.current()
        except ValueError:  # there is none
            return around[0] if around else None
        # A worker in this process leaves its own client as the default; it is not the user's.
        others = OWN in client.id or client.id.startswith("Client-worker-")
        if client.status == "running" and not others:
            return client
        return around[0] if around else None

    def _clients_around(self) -> Iterator[Client]:
        around = self._outer
        while isinstance(around, EvolveTaskRunner):
            if around._client is not None:
                yield around._client
            around = around._outer

    def _spawn_environment(self, asked: _Asked) -> dict[str, Any]:
        """The environment that worker processes start with.

        They read Prefect's settings and Dask's logging levels as they are imported, before
        Dask gives them the environment of the cluster: these reach them earlier.
        """
        environment = {**dask.config.get(_SPAWN_ENVIRONMENT, {})}
        if (url := get_current_settings().api.url) is not None:
            environment["PREFECT_API_URL"] = url
        if dask.config.get("logging", None) is None and not isinstance(asked.given, str):
            # Dask's own INFO is eighty lines about starting and stopping a local cluster. Who
            # wants them sets `logging` in Dask's configuration.
            logging.getLogger("distributed").setLevel(logging.WARNING)
            environment["DASK_LOGGING__DISTRIBUTED"] = "warning"
        return environment

    @property
    def contexts(self) -> RunContexts:
        """The run contexts of this flow run that the workers know."""
        self._flow_context = FlowRunContext.get() or self._flow_context
        with _making:
            if self._contexts is None:
                self._contexts = RunContexts(self.client, EvolveTaskRunner)
            return self._contexts

    def submit(  # type: ignore[override]
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
        *,
        priority: int = 0,
        resources: dict[str, float] | None = None,
    ) -> EvolveFuture:
        """Submit a task to the Dask cluster.

        `task.submit()` and `task.map()` come here. Give `priority` and `resources` for those
        with `dask.annotate(priority=10, resources={"GPU": 1})` around them.

        Args:
            task: the task.
            parameters: its parameters by name; futures may be anywhere in them.
            wait_for: futures that have to end before it begins.
            dependencies: task runs that its parameters came from, by parameter, beside those
                of the futures.
            priority: Dask's priority; a task of a higher one goes first.
            resources: amounts of Dask worker resources that it takes, as `{"GPU": 1}`.

        Returns:
            Its future.

        Raises:
            RuntimeError: the runner has not been started; submit inside the flow.
            InvalidInput: the task or its parameters cannot be pickled.
        """
        if not self._started:
            raise RuntimeError("The task runner must be started before submitting work.")
        run_id = uuid4()
        upstream: list[Future[Any]] = []
        inputs = {
            name: _inputs(value) | (dependencies or {}).get(name, set())
            for name, value in parameters.items()
        }
        context = self.contexts.current()
        submission = Submission(
            task,
            run_id,
            _without_futures(parameters, upstream),
            _without_futures(wait_for, upstream) if wait_for else None,
            inputs,
            {**self.contexts.around(context), **_assets(task, run_id, inputs)},
        )
        try:
            packed = Packed.of(submission)
        except Exception as error:
            raise InvalidInput(
                f"task {task.name!r} or its parameters cannot be pickled "
                f"({type(error).__name__}: {error}), so they cannot be sent to the workers; give "
                "plain values, and open files, locks and connections inside the task"
            ) from error
        with in_one_span():
            future = Client.submit(
                self.client,
                run_submission,
                context,
                packed,
                upstream,
                key=f"{task.name}-{run_id}",
                priority=priority,
                resources=resources,
                pure=False,
            )
        return self._noted(task, run_id, future)

    def _noted(self, task: Task[Any, Any], run_id: UUID, future: Future[Any]) -> EvolveFuture:
        """Keep a future until it has ended: Dask drops a task whose future nobody holds."""
        if self._ephemeral:
            self._submitted.append(run_id)
        self._pending[run_id] = pending = _Pending(task, future)
        future.add_done_callback(lambda _: self._note_end(run_id, pending))
        if (mine := children.get()) is not None:
            mine.append(future)
        if self._ended is None:
            self._ended = EndedFutures(self.client)
        submitted = EvolveFuture(run_id, future, self._ended)
        self._ended.add(submitted)
        return submitted

    def _note_end(self, run_id: UUID, pending: _Pending) -> None:
        death, status = death_of(pending.future), pending.future.status
        if death is None and status == "error":
            # Prefect's engine gives a state, whatever the task does: it was not reached.
            error = error_text(pending.future.exception())
            death = f"it could not be run on a worker ({error}), whose log may say more"
        if death is not None:
            self._killed[run_id] = pending.task, death
        self._pending.pop(run_id, None)

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        if (around := FlowRunContext.get()) is not None:  # the flow that calls this one
            self._outer = around.task_runner
        if on_worker():
            return self
        self._ephemeral = get_current_settings().api.url is None
        if self._ephemeral:
            # The engine has one running by now; this finds it, and everything that is done in
            # the flow from here on names it, on workers too.
            # Where there is a server nobody needs one: importing it takes seconds.
            from prefect.server.api.server import SubprocessASGIServer

            server = SubprocessASGIServer()
            server.start()
            self._exit_stack.enter_context(
                temporary_settings(updates={PREFECT_API_URL: server.api_url})
            )
        return self

    def __exit__(self, *args: Any) -> None:
        if not on_worker():
            try:
                self._end_pending(interrupted=args[0] is not None)
                if self._contexts is not None:
                    self._contexts.close()
                # Whoever ran them cannot tell; without us they would be Running for ever.
                crashed = self._end_killed() if self._killed else []
                if self._workers_died():
                    crashed += self._end_died()
                self._submitted += [one for one in crashed if one not in self._submitted]
                if self._submitted:
                    wait_until_recorded(self._submitted, self.logger)
                if self._cancelled is not None:
                    acknowledge(*self._cancelled)
            finally:
                super().__exit__(*args)
        else:
            super().__exit__(*args)

    def acknowledge_at_end(self, flow_run_id: UUID, message: str) -> None:
        """Say at the end that the flow run was cancelled.

        The engine knows of an error alone, and would leave it as Failed.
        """
        self._cancelled = flow_run_id, message

    def end_at_end(self) -> None:
        """End task runs that are left when the cluster is gone, if this runner ends the cluster.

        On a cluster of somebody else's they go on, and tell their end themselves.
        """
        self._flow_context = FlowRunContext.get() or self._flow_context
        self._left = True
        if self._gone:  # the flow function did not wait for what it had begun
            self._end_left()

    def _end_left(self) -> None:
        self._gone = True
        around = self._flow_context
        if not self._left or around is None or around.flow_run is None:
            return
        self._left = False
        try:
            with around.model_copy():
                ended = end_what_was_left(around.flow_run.id, self.logger)
                wait_until_recorded(ended, self.logger)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            self.logger.debug("Nobody could be told of what was left: %r", error)

    def _end_pending(self, *, interrupted: bool) -> None:
        """End what was submitted and is not waited for by anybody."""
        pending = dict(self._pending)
        if not pending or self.client.status != "running":
            return
        if interrupted or self._failed():
            # What has not begun may wait for something that the flow will never do.
            keep = {} if interrupted else self._begun(pending)
            dropped = {run_id: one for run_id, one in pending.items() if run_id not in keep}
            self.logger.warning(
                "%s submitted had not ended when the flow run did: cancelling %d, waiting for %d "
                "that have begun",
                _runs(len(pending)),
                len(dropped),
                len(keep),
            )
            self.client.cancel([one.future for one in dropped.values()])
            self._left = True  # some of them may have begun
            self._submitted = [run_id for run_id in self._submitted if run_id not in dropped]
            pending = keep
        else:
            self.logger.warning(
                "Waiting for %s submitted and not waited for: call wait() or result() on the "
                "futures in the flow, so that its state tells of them",
                _runs(len(pending)),
            )
        assert self._ended is not None, "something was submitted"
        for run_id, one in pending.items():
            try:
                self._ended.wait(one.future)
            except (ClusterLost, ClusterUnfit) as error:
                self.logger.error(
                    "Cancelling %r, which was submitted and not waited for: %s",
                    one.task.name,
                    error_text(error),
                )
                self.client.cancel([one.future])
                self._submitted = [other for other in self._submitted if other != run_id]
                continue
            self._note_end(run_id, one)  # Dask calls back some time later

    def _end_killed(self) -> list[UUID]:
        # The engine has left the flow run's context by now, and the API takes a task run out of
        # its flow run when an event about it comes without one.
        around = self._flow_context
        with around.model_copy() if around is not None else nullcontext():
            return end_killed(self._killed, self.logger)

    def _workers_died(self) -> bool:
        """Whether workers have died since the flow run began; whichever it had work on."""
        if self._client is None or self._contexts is None or self._client.status != "running":
            return False
        try:
            events = self._client.get_events("all")  # the last thousand
        except OSError as error:
            self.logger.debug("The scheduler cannot be asked whether workers died: %r", error)
            return False
        return any(
            isinstance(event, dict)  # users may log there, too
            and event.get("action") == "remove-worker"
            and not event.get("expected")
            and at > self._began - SKEW_S
            for at, event in events
        )

    def _end_died(self) -> list[UUID]:
        around = self._flow_context
        # What was left on somebody else's cluster goes on there.
        if self._left or around is None or around.flow_run is None:
            return []
        try:
            with around.model_copy():
                return end_what_died_with_workers(around.flow_run.id, self.logger)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            self.logger.warning(
                "The Prefect API cannot be told of task runs whose workers died (%s); the UI may "
                "show them as running",
                error_text(error),
            )
            return []

    def _failed(self) -> bool:
        """Whether the flow run did not end well; Prefect sets its state before this.

        One that is to be tried again is not even final: it runs, or waits for its next attempt.
        """
        flow_run = self._flow_context.flow_run if self._flow_context is not None else None
        state = flow_run.state if flow_run is not None else None
        return state is not None and not state.is_completed()

    def _begun(self, pending: dict[UUID, _Pending]) -> dict[UUID, _Pending]:
        keys = [one.future.key for one in pending.values()]
        by_worker: dict[str, list[str]] = self.client.run(begun, keys, on_error="ignore")
        running = {key for found in by_worker.values() for key in found}
        return {run_id: one for run_id, one in pending.items() if one.future.key in running}


def _runs(count: int) -> str:
    return "1 task run" if count == 1 else f"{count} task runs"


def _inputs(value: Any) -> set[RunInput]:
    """The task runs that a value comes from; futures of Prefect's Dask client have one, too."""
    own = collect_task_run_inputs_sync(value)
    return {*own, *collect_task_run_inputs_sync(value, future_cls=Future)}


def _without_futures(value: Any, upstream: list[Future[Any]]) -> Any:
    """Put an `Upstream` in place of each future, and add the future to `upstream`."""

    def visit(part: Any) -> Any:
        future = part.wrapped_future if isinstance(part, PrefectDaskFuture) else part
        if not isinstance(future, Future):
            return part
        upstream.append(future)
        return Upstream(len(upstream) - 1)

    return visit_collection(value, visit_fn=visit, return_data=True)


def _assets(task: Task[Any, Any], run_id: UUID, inputs: dict[str, set[RunInput]]) -> dict[str, Any]:
    """The part of a run context that tells of assets, where there are any.

    The flow's process alone knows which task runs gave which assets.
    """
    flow_run = FlowRunContext.get()
    own = task.asset_deps or isinstance(task, MaterializingTask)
    if not own and not (flow_run and flow_run.task_run_assets):
        return {}
    context = AssetContext.from_task_and_inputs(
        task, run_id, task_inputs=inputs, copy_to_child_ctx=True
    )
    return {"asset_context": context.serialize()}
