"""Whether flow, scheduler and workers have versions that understand each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from weakref import WeakSet

from distributed import Client

from evolve_tasks.errors import ClusterUnfit

# How much of a version has to be the same, in numbers; `None`: all of it. Functions travel as
# bytecode, which each minor version of Python has its own; run contexts and task runs travel as
# Prefect's models, which change with its minor versions; calls and plugins are this package's.
# Of its own packages Dask itself warns when a client connects.
_SAME: Final[Mapping[str, int | None]] = {"python": 2, "prefect": 2, "evolve-tasks": None}

SHOWN = 3  # places that a message names

_checked: WeakSet[Client] = WeakSet()


def require_same_versions(client: Client) -> None:
    """Compare the versions of a cluster with those here; once for each client.

    A version that cannot be told, as of a package that was never installed but copied, is passed.

    Args:
        client: a connected client.

    Raises:
        ClusterUnfit: they differ where they must not; the message says which, where, and what
            to install.
    """
    if client in _checked:
        return
    wrong = differences(client)
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ClusterUnfit(
            "the Dask cluster has other versions than the flow: "
            + "; ".join(wrong[:SHOWN])
            + more
            + "; install there what the flow has, or start the flow where the cluster's versions "
            "are installed"
        )
    _checked.add(client)


def differences(client: Client) -> list[str]:
    """Say which versions of a cluster are not those here and have to be.

    Args:
        client: a connected client.

    Returns:
        One line for each place and package: place, its version, the version here.
    """
    versions: Any = client.get_versions(packages=[name for name in _SAME if name != "python"])
    here = versions["client"]["packages"]
    places = {"the scheduler": versions["scheduler"]}
    places |= {f"worker {address}": found for address, found in versions["workers"].items()}
    return list(_differences(here, places))


def _differences(here: Mapping[str, Any], places: Mapping[str, Any]) -> Iterator[str]:
    for place, found in places.items():
        if not isinstance(found, Mapping):
            continue  # it did not answer; what is sent to it will tell
        for name, numbers in _SAME.items():
            own, other = here.get(name), found["packages"].get(name)
            if own and other and _part(own, numbers) != _part(other, numbers):
                yield f"{place} has {name} {_short(other)}, the flow {_short(own)}"


def _part(version: str, numbers: int | None) -> list[str]:
    return version.split(".")[:numbers]


def _short(version: str) -> str:
    """A version of Python without `final.0`."""
    return ".".join(version.split(".")[:3])
