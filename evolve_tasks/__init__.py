"""Evolving workflows on Prefect and Dask: work whose extent is unknown when it starts."""

from evolve_tasks.blocks import AdaptiveBounds, ClusterCheck, ClusterTls, DaskCluster
from evolve_tasks.errors import (
    ClusterLost,
    ClusterUnfit,
    EvolveError,
    InvalidInput,
    ItemsChanged,
    JournalBusy,
    JournalLost,
    NotInFlow,
    RunCancelled,
)
from evolve_tasks.evolve import aevolve, aevolve_iter, evolve, evolve_iter
from evolve_tasks.journal import (
    JournalInfo,
    file_fingerprint,
    forget_journal,
    journal_info,
    list_journals,
)
from evolve_tasks.more import More
from evolve_tasks.options import EvolveOptions, Limits, Tolerate, tolerate
from evolve_tasks.outcome import (
    Counts,
    EvolveFailed,
    Failure,
    ItemOutcome,
    Outcome,
    StageCounts,
)
from evolve_tasks.runner import EvolveTaskRunner

__all__ = [
    "AdaptiveBounds",
    "ClusterCheck",
    "ClusterLost",
    "ClusterTls",
    "ClusterUnfit",
    "Counts",
    "DaskCluster",
    "EvolveError",
    "EvolveFailed",
    "EvolveOptions",
    "EvolveTaskRunner",
    "Failure",
    "InvalidInput",
    "ItemOutcome",
    "ItemsChanged",
    "JournalBusy",
    "JournalInfo",
    "JournalLost",
    "Limits",
    "More",
    "NotInFlow",
    "Outcome",
    "RunCancelled",
    "StageCounts",
    "Tolerate",
    "aevolve",
    "aevolve_iter",
    "evolve",
    "evolve_iter",
    "file_fingerprint",
    "forget_journal",
    "journal_info",
    "list_journals",
    "tolerate",
]
