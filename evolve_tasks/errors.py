"""What evolve-tasks raises when it cannot begin, or must not go on."""

from __future__ import annotations


class EvolveError(Exception):
    """Base of every error that evolve-tasks raises itself.

    Catch it to tell a refusal of this library from an error of your own code.
    """


class InvalidInput(EvolveError, ValueError):
    """A value that was given cannot be worked with; nothing has been started.

    The message names the value, the rule it breaks and the way out.
    """


class NotInFlow(EvolveError, RuntimeError):
    """`evolve` was called outside a Prefect flow run, or the flow's runner cannot serve it."""


class ClusterLost(EvolveError, RuntimeError):
    """The connection to the Dask scheduler is gone, and with it what was in flight.

    Run the flow again when the scheduler is back.
    """


class ItemsChanged(EvolveError, RuntimeError):
    """A source gave other items when it was parsed again than it had given before.

    Results stand at positions; let the same source give the same items in the same order.
    """


class ClusterUnfit(EvolveError, RuntimeError):
    """The Dask cluster cannot run this flow's work; nothing has been started.

    The message says what is missing, and where.
    """


class RunCancelled(EvolveError):
    """The flow run was cancelled while it was evolving; what was finished is in the journal."""


class IllegalEvent(EvolveError, AssertionError):
    """The pure core was told something that cannot have happened: a fault of this library."""


class JournalBusy(EvolveError, RuntimeError):
    """Another run holds the journal; nothing has been started, and nothing in it was changed.

    The message names the holder (flow run, host, process, since when) and the ways out.
    """


class JournalLost(EvolveError, RuntimeError):
    """Another run took the journal over, because this one gave no sign of life for too long.

    What was written before is kept. Stop this run; the other one goes on from there.
    """
