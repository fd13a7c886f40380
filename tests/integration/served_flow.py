"""A flow that is served for a long time: every run uses all that a run can use.

DASK_SCHEDULER_ADDRESS=tcp://127.0.0.1:8786 python -m tests.integration.served_flow
"""

# No postponed annotations: `flow.serve` sends the function to its runs as a pickle, which does not
# have the names that stand in annotations alone.
import dask
from prefect import flow, task

from evolve_tasks import EvolveTaskRunner, evolve
from evolve_tasks.options import StrategyName
from tests.integration.long_life import NAME, numbers_below, twice

# It has to be set before this: the flow that is served is the one that was made here.
ADDRESS = dask.config.get("scheduler-address", None)


@task
def add_one(x: int) -> int:
    """A task that is submitted, not evolved."""
    return x + 1


@flow(name=NAME, task_runner=EvolveTaskRunner(address=ADDRESS))
def long_life(strategy: StrategyName, journal: str | None = None) -> int:
    """Work on twenty sources with a strategy; submit some tasks beside it.

    Args:
        strategy: how.
        journal: name of a journal, if there is to be one.
    """
    submitted = [add_one.submit(x) for x in range(3)]
    outcome = evolve(
        range(20), numbers_below, twice, strategy=strategy, journal=journal or False, batch=3
    )
    return sum(outcome.results) + sum(future.result() for future in submitted)


if __name__ == "__main__":
    long_life.serve(name=NAME)
