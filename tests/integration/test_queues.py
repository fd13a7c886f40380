"""What waits at a worker, and what goes before it: threads never wait for a list to be opened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from evolve_tasks import EvolveTaskRunner, evolve

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

SOURCES, ITEMS = 20, 5
ITEM_S = 0.1


def read(source: tuple[str, int]) -> list[str]:
    diary, _ = source
    with Path(diary).open("a") as lines:
        lines.write("list\n")
    return [diary] * ITEMS


def wait(diary: str) -> None:
    with Path(diary).open("a") as lines:
        lines.write("item\n")
    time.sleep(ITEM_S)


@pytest.mark.parametrize("strategy", ["as_completed", "async"])
def test_lists_are_there_before_the_last_item_is(
    strategy: str, tmp_path: Path, process_workers: str
) -> None:
    """Dask itself would hold sources back until a worker has nothing else to do."""
    diary = tmp_path / "diary"

    @flow(task_runner=EvolveTaskRunner(address=process_workers))
    def night() -> None:
        options: Any = {"strategy": strategy, "record": "sources"}
        sources = [(str(diary), number) for number in range(SOURCES)]
        assert evolve(sources, read, wait, **options).counts.done == SOURCES * ITEMS

    night()
    known = begun = 0
    waited = []
    for line in diary.read_text().split():
        if line == "list":
            known += ITEMS
            waited.append(known - ITEMS - begun)
        else:
            begun += 1
    assert begun == known == SOURCES * ITEMS
    first_lists = 4  # two for each thread, where nothing is known
    assert waited[first_lists] > ITEMS, waited
