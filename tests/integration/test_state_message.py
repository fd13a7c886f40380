"""The state in which a flow run ends well says what came of it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Completed

from evolve_tasks import EvolveFailed, EvolveTaskRunner, aevolve, evolve, evolve_iter

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


def half(item: int) -> int:
    if item % 2:
        raise ValueError("odd")
    return item


def message(flow_run_id: UUID) -> str | None:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
        states = client.read_flow_run_states(flow_run_id)
    assert state is not None
    assert state.is_completed()
    assert [one.name for one in states].count("Completed") == 1
    return state.message


def test_it_has_the_counts_of_each_call() -> None:
    ids: list[UUID] = []
    options: Any = {"strategy": "sequential", "on_failure": "ignore"}

    @flow
    def below() -> None:
        ids.append(UUID(flow_run.id))
        list(evolve_iter([2], range, abs, strategy="sequential"))

    @flow(retries=1)
    def night() -> int:
        ids.append(UUID(flow_run.id))
        evolve([3, 1], range, half, **options)
        if flow_run.run_count == 1:
            raise RuntimeError("for once")
        below()
        evolve([1], range, half, **options)
        return 5

    assert night() == 5
    first, again, inner = ids
    assert first == again
    assert message(first) == (
        "3 of 4 items done, 1 failed; 2 sources | 1 of 1 items done; 1 source"
    )
    assert message(inner) == "2 of 2 items done; 1 source"


def test_in_an_async_flow_with_dask(thread_workers: str) -> None:
    ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    async def night() -> None:
        ids.append(UUID(flow_run.id))
        await aevolve([3, 1], range, abs)

    asyncio.run(night())
    assert message(ids[0]) == "4 of 4 items done; 2 sources"


def test_a_message_of_the_flow_s_own_stays() -> None:
    ids: list[UUID] = []

    @flow
    def night() -> Any:
        ids.append(UUID(flow_run.id))
        with pytest.raises(EvolveFailed):
            evolve([3], range, half, strategy="sequential")
        evolve([3], range, abs, strategy="sequential")
        return Completed(message="all is well")

    night()
    assert message(ids[0]) == "all is well"
