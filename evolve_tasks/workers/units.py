"""The functions that are submitted to Dask: importable wherever the package is installed."""

from __future__ import annotations

from evolve_tasks.workers.calls import BatchResult, ExpandCall, Expansion, Measure, ProcessCall
from evolve_tasks.workers.plugin import runtime_of
from evolve_tasks.workers.transport import Packed


def expand(run: str, call: ExpandCall) -> Expansion:
    """Run an expanding stage; its items stay here."""
    return runtime_of(run).expand(call)


def measure(expansion: Expansion) -> Measure:
    """Tell the flow how many items there are, not which."""
    return Measure(
        size=len(expansion.items),
        failure=expansion.failure,
        not_run=expansion.not_run,
        recorded=expansion.recorded,
        span=expansion.span,
    )


def process(run: str, call: ProcessCall, expansion: Expansion) -> BatchResult:
    """Run the last stage on some of the items that stay on the workers."""
    return runtime_of(run).process(call, expansion.items[call.start : call.stop])


def process_items(run: str, call: ProcessCall, items: Packed) -> BatchResult:
    """Run the last stage on items that come along (`nested`)."""
    return runtime_of(run).process(call, items.value())
