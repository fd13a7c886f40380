"""`EvolveTaskRunner`: a `DaskTaskRunner` whose worker processes need no server of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Self, cast
from uuid import UUID

import dask
import distributed
from prefect.client.schemas.objects import RunInput
from prefect.futures import PrefectFuture
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.context import get_current_settings
from prefect.tasks import Task
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from evolve_tasks.monitoring.recording import wait_until_recorded
from evolve_tasks.workers.closing import QuietClosing

_SPAWN_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"


class EvolveTaskRunner(DaskTaskRunner):
    """Runs tasks on Dask; the embedded default works with worker processes.

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
        performance_report_path: where to write Dask's performance report.
        cluster_block: name of a `DaskCluster` block. Not available yet.

    Raises:
        ValueError: arguments that exclude each other, as in `DaskTaskRunner`.

    Example:
        >>> from prefect import flow
        >>> @flow(task_runner=EvolveTaskRunner(cluster_kwargs={"n_workers": 2}))
        ... def index(paths: list[str]) -> None: ...
    """

    def __init__(self, *args: Any, cluster_block: str | None = None, **kwargs: Any) -> None:
        if cluster_block is not None:
            raise ValueError(
                f"cluster_block={cluster_block!r}: this version of evolve-tasks does not have it "
                "yet; give address= or cluster_class= and cluster_kwargs="
            )
        super().__init__(*args, **kwargs)
        # What was given, apart from what the client makes of it later.
        self._given_cluster = self._cluster
        self._submitted: list[UUID] = []

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
        )

    def __eq__(self, other: object) -> bool:
        """Whether the settings are the same, the cluster among them."""
        return (
            isinstance(other, EvolveTaskRunner)
            and super().__eq__(other)
            and self._given_cluster is other._given_cluster
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def client(self) -> PrefectDaskClient:
        """The Dask client, made on first use together with the cluster."""
        if self._client is None:
            own = self._cluster is None and not self.address
            with dask.config.set({_SPAWN_ENVIRONMENT: self._spawn_environment()}):
                client = super().client
            if own and not _on_worker():
                client.register_plugin(QuietClosing())
        return super().client

    def _spawn_environment(self) -> dict[str, Any]:
        """The environment that worker processes start with.

        They read Prefect's settings and Dask's logging levels as they are imported, before
        Dask gives them the environment of the cluster: these reach them earlier.
        """
        environment = {**dask.config.get(_SPAWN_ENVIRONMENT, {})}
        if (url := get_current_settings().api.url) is not None:
            environment["PREFECT_API_URL"] = url
        if dask.config.get("logging", None) is None and not self.address:
            # Dask's own INFO is eighty lines about starting and stopping a local cluster. Who
            # wants them sets `logging` in Dask's configuration.
            logging.getLogger("distributed").setLevel(logging.WARNING)
            environment["DASK_LOGGING__DISTRIBUTED"] = "warning"
        return environment

    def submit(  # type: ignore[override]
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> PrefectDaskFuture[Any]:
        """Submit a task, and remember that the API has to hear of it."""
        future = super().submit(
            task, parameters, wait_for=cast(Any, wait_for), dependencies=dependencies
        )
        self._submitted.append(future.task_run_id)
        return future

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        if _on_worker():
            return self
        self._ephemeral = get_current_settings().api.url is None
        if self._ephemeral:
            # The engine has one running by now; this finds it, and everything that is done in
            # the flow from here on names it, on workers too.
            server = SubprocessASGIServer()
            server.start()
            self._exit_stack.enter_context(
                temporary_settings(updates={PREFECT_API_URL: server.api_url})
            )
        return self

    def __exit__(self, *args: Any) -> None:
        if self._submitted and getattr(self, "_ephemeral", False):
            wait_until_recorded(self._submitted, self.logger)
        super().__exit__(*args)


def _on_worker() -> bool:
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True
