"""What evolve-tasks raises when it cannot begin, or must not go on."""

from __future__ import annotations


class EvolveError(Exception):
    """Base of every error that evolve-tasks raises itself.

    Catch it to tell a refusal of this library from an error of your own code.

    Example:
        >>> issubclass(InvalidInput, EvolveError)
        True
    """


class InvalidInput(EvolveError, ValueError):
    """A value that was given cannot be worked with; nothing has been started.

    The message names the value, the rule it breaks and the way out.

    Example:
        >>> from evolve_tasks import tolerate
        >>> try:
        ...     tolerate(ratio=2.0)
        ... except InvalidInput as error:
        ...     print("ratio" in str(error))
        True
    """


class NotInFlow(EvolveError, RuntimeError):
    """`evolve` was called outside a Prefect flow run, or the flow's runner cannot serve it.

    Call it in a function that is a `@flow`, with `task_runner=EvolveTaskRunner()` or a strategy
    that needs no Dask; the message says which it is.

    Example:
        >>> from evolve_tasks import evolve
        >>> try:
        ...     evolve([2], range, abs)
        ... except NotInFlow as error:
        ...     print("flow" in str(error))
        True
    """


class ClusterLost(EvolveError, RuntimeError):
    """The connection to the Dask scheduler is gone, and with it what was in flight.

    Run the flow again when the scheduler is back; with a journal it does what is missing. Prefect
    does it by itself with `retries=` of the flow.

    Example:
        >>> from prefect import flow
        >>> @flow(retries=3, retry_delay_seconds=60)
        ... def night(paths: list[str]) -> None:
        ...     "With journal=True each attempt goes on where the last one ended."
    """


class ItemsChanged(EvolveError, RuntimeError):
    """A source gave other items when it was parsed again than it had given before.

    Results stand at positions; let the same source give the same items in the same order.

    Example:
        >>> def names(folder: str) -> list[str]:
        ...     from pathlib import Path
        ...     return sorted(path.name for path in Path(folder).iterdir())  # and not as it comes
    """


class ClusterUnfit(EvolveError, RuntimeError):
    """The Dask cluster cannot run this flow's work; nothing has been started.

    The message says what is missing, and where: a version, this package, workers, or a resource.

    Example:
        >>> from evolve_tasks import DaskCluster
        >>> DaskCluster(address="tcp://10.0.0.5:8786").address  # its check() tells beforehand
        'tcp://10.0.0.5:8786'
    """


class RunCancelled(EvolveError):
    """The flow run was cancelled while it was evolving; what was finished is in the journal.

    Let it pass, so that the flow run ends as Cancelled; with a named journal the next run goes on.

    Example:
        >>> from prefect import flow
        >>> from evolve_tasks import evolve
        >>> @flow
        ... def tidy(paths: list[str]) -> None:
        ...     try:
        ...         evolve(paths, open, str.strip, strategy="sequential", journal="tidy")
        ...     except RunCancelled:
        ...         print("the rest is done next time")
        ...         raise
    """


class IllegalEvent(EvolveError, AssertionError):
    """The pure core was told something that cannot have happened: a fault of this library."""


class JournalBusy(EvolveError, RuntimeError):
    """Another run holds the journal; nothing has been started, and nothing in it was changed.

    The message names the holder (flow run, host, process, since when) and the ways out.

    Example:
        >>> from evolve_tasks import EvolveOptions
        >>> EvolveOptions(journal="ingest-europe").journal  # a name for each flow that may overlap
        'ingest-europe'
    """


class JournalLost(EvolveError, RuntimeError):
    """Another run took the journal over, because this one gave no sign of life for too long.

    What was written before is kept. Stop this run; the other one goes on from there.

    Example:
        >>> issubclass(JournalLost, EvolveError)
        True
    """
