"""`evolve` in a flow run, timed from its call to the return of its results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

from prefect import flow

from evolve_tasks import EvolveTaskRunner, Outcome, aevolve, evolve, evolve_iter

Strategy = Literal["as_completed", "async", "nested"]
STRATEGIES: tuple[Strategy, ...] = ("as_completed", "async", "nested")


def runner_on(address: str) -> Any:
    """The runner for a cluster; `@flow` asks for one of any future, which none is."""
    return cast(Any, EvolveTaskRunner(address=address))


def evolved(
    address: str, sources: Sequence[Any], stages: Sequence[Any], strategy: Strategy, **more: Any
) -> tuple[float, list[Any]]:
    """Evolve in a flow run of its own, with the default options but for those in `more`.

    Returns:
        Seconds from the call of `evolve` to its return, by when the API knows all task runs,
        and the results. `"async"` is measured where it belongs, in an async flow.
    """
    outcomes: list[Outcome] = []
    seconds: list[float] = []
    options = {"strategy": strategy, "progress": False, **more}

    # Sources do not travel as parameters of the flow run: the API would store them.
    @flow(name=f"benchmark-{strategy}", task_runner=runner_on(address))
    def evolving() -> None:
        begun = time.perf_counter()
        outcomes.append(evolve(sources, *stages, options=options))
        seconds.append(time.perf_counter() - begun)

    @flow(name=f"benchmark-{strategy}", task_runner=runner_on(address))
    async def evolving_async() -> None:
        begun = time.perf_counter()
        outcomes.append(await aevolve(sources, *stages, options=options))
        seconds.append(time.perf_counter() - begun)

    if strategy == "async":
        asyncio.run(evolving_async())
    else:
        evolving()
    return seconds[0], outcomes[0].results


def seconds_to_first(
    address: str, sources: Iterable[Any], stages: Sequence[Any], strategy: Strategy
) -> float:
    """Seconds from the call of `evolve_iter` to its first item; then the loop is left."""
    seconds: list[float] = []

    @flow(name=f"benchmark-first-{strategy}", task_runner=runner_on(address))
    def first() -> None:
        begun = time.perf_counter()
        for _ in evolve_iter(sources, *stages, strategy=strategy, progress=False):
            seconds.append(time.perf_counter() - begun)
            break

    first()
    return seconds[0]


def empty_flow(address: str) -> float:
    """Seconds that a flow run takes in which nothing is done; evolve's rows leave it out."""

    @flow(name="benchmark-empty", task_runner=runner_on(address))
    def nothing() -> None:
        return

    begun = time.perf_counter()
    nothing()
    return time.perf_counter() - begun
