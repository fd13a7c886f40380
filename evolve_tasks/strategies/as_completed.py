"""`as_completed`: a growing set of futures; what ends decides what is submitted next.

The flow learns lengths, the lists stay on the workers. Items go before new sources, and a future
is released as soon as its result is taken.
"""

from __future__ import annotations

from collections.abc import Generator

from evolve_tasks.core.assembly import Portion
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.strategies.carrying import FutureCarrier
from evolve_tasks.strategies.drive import drive
from evolve_tasks.strategies.submitting import Submitter


def run_as_completed(run: EvolvingRun, submitter: Submitter) -> Generator[Portion, None, None]:
    """Submit sources while there is room, and items as their lists become known."""
    return drive(run, FutureCarrier(run, submitter))
