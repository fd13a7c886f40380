"""Start a Dask cluster or connect to one: what goes wrong there ends in one clear error."""

from __future__ import annotations

import asyncio
from typing import Any

import dask
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect_dask.client import PrefectDaskClient

from evolve_tasks.errors import ClusterUnfit
from evolve_tasks.naming import LINE, error_text, one_line, short_repr

_TIMEOUT = "distributed.comm.timeouts.connect"


def start(cluster_class: Any, cluster_kwargs: dict[str, Any]) -> Any:
    """Start a cluster.

    Args:
        cluster_class: its class, or what else makes one.
        cluster_kwargs: what it is started with.

    Returns:
        The cluster, to be entered.

    Raises:
        ClusterUnfit: it cannot be started; the message names the options that were given.
    """
    try:
        return cluster_class(**cluster_kwargs)
    except Exception as error:
        name = getattr(cluster_class, "__qualname__", short_repr(cluster_class))
        names = ", ".join(sorted(cluster_kwargs)) or "no options"
        raise ClusterUnfit(
            f"the cluster {name} could not be started with {names} "
            f"({one_line(error_text(error), LINE)}): correct cluster_kwargs, or see that what it "
            "starts its workers with is there"
        ) from error


def adapt(cluster: Any, bounds: dict[str, Any]) -> None:
    """Let a cluster scale by itself.

    Args:
        cluster: a cluster that has been started.
        bounds: arguments of its `adapt`, as `{"minimum": 1, "maximum": 4}`.
    """
    adapting = cluster.adapt(**bounds)
    if asyncio.iscoroutine(adapting):
        run_coro_as_sync(adapting)


def connected(given: Any, **options: Any) -> PrefectDaskClient:
    """Make a client of a cluster.

    Dask tries for 30 s to reach an address (its setting `distributed.comm.timeouts.connect`),
    also where the other side speaks TLS and refuses a certificate.

    Args:
        given: a cluster object, or the address of a scheduler.
        options: arguments of `distributed.Client`.

    Returns:
        The client, connected.

    Raises:
        ClusterUnfit: there is no connection to the address; the message says why, and what to do.
    """
    try:
        return PrefectDaskClient(given, **options)
    except (OSError, RuntimeError, TypeError) as error:
        wrong_options = isinstance(error, TypeError) and "ssl_context" not in str(error)
        if wrong_options or not isinstance(given, str):
            raise  # it is not about the way to the scheduler
        raise ClusterUnfit(
            f"no connection to the Dask scheduler at {given} ({_told(error)}): "
            f"{_way_out(given, error)}"
        ) from error


def _told(error: BaseException) -> str:
    """The error and what caused it: a timeout alone would not say why."""
    text = error_text(error)
    if (cause := error.__cause__) is not None:
        text = f"{text}, last because of {error_text(cause)}"
    return one_line(text, LINE)


def _way_out(address: str, error: BaseException) -> str:
    told = _told(error)
    encrypted = address.startswith(("tls://", "wss://"))
    if "ssl_context" in told:
        return (
            "it speaks TLS, and nothing says with which certificate: give ca, certificate and key "
            "as tls of a DaskCluster block, or set Dask's distributed.comm.tls"
        )
    if "encryption required" in told:
        return "Dask's configuration asks for encryption here: give the tls:// address"
    if encrypted:
        return (
            "the certificate must be signed by the scheduler's CA, the CA must be the one that "
            "signed the scheduler's certificate, and the scheduler must be started with "
            "--tls-ca-file, --tls-cert and --tls-key"
        )
    return (
        "see that the scheduler is up and can be reached from here, and that it is no TLS "
        "scheduler: its address would begin with tls:// and needs certificates; Dask tries for "
        f"{dask.config.get(_TIMEOUT)} ({_TIMEOUT})"
    )
