"""A batch gets its slice of a long list from where the list is, and not the whole list."""

from __future__ import annotations

from typing import Any

import pytest
from distributed import Client, get_task_stream
from prefect import flow

from evolve_tasks import EvolveTaskRunner, evolve

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

BYTES = 10_000
ITEMS = 400


def blobs(source: int) -> list[bytes]:
    return [bytes([source % 256, item % 256]) * (BYTES // 2) for item in range(ITEMS)]


@pytest.mark.parametrize("strategy", ["as_completed", "async"])
def test_no_more_travels_than_what_is_worked_on(strategy: str, process_workers: str) -> None:
    @flow(task_runner=EvolveTaskRunner(address=process_workers))
    def sizes() -> list[int]:
        options: Any = {"strategy": strategy, "batch": 20, "record": "sources"}
        return evolve([7], blobs, len, **options).results

    with Client(process_workers, set_as_default=False) as client:
        with get_task_stream(client) as stream:
            assert sizes() == [BYTES] * ITEMS
        cuts = [one for one in stream.data if str(one["key"]).startswith("('cut-")]
        assert len(cuts) == ITEMS / 20
        # The list lies on one of two workers: the other one fetches its slices.
        moved = [one["nbytes"] for one in cuts]
        assert max(moved) < 2 * 20 * BYTES


def few(source: int) -> list[int]:
    return list(range(source, source + 50))


@pytest.mark.parametrize("strategy", ["as_completed", "async"])
def test_a_small_list_travels_whole(strategy: str, process_workers: str) -> None:
    """Cutting it would cost more, and would wait for the worker that has the list."""

    @flow(task_runner=EvolveTaskRunner(address=process_workers))
    def numbers() -> list[int]:
        options: Any = {"strategy": strategy, "batch": 1, "record": "sources"}
        return evolve([1], few, abs, **options).results

    with Client(process_workers, set_as_default=False) as client:
        with get_task_stream(client) as stream:
            assert numbers() == few(1)
        kinds = {str(one["key"]).partition("-")[0] for one in stream.data}
        assert kinds == {"('few", "('measure", "('abs"}
