"""A short form of `make soak`: real kills of workers, flows, the scheduler and the API."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.faults import run_rounds

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(900)
def test_rounds_of_faults_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    total = run_rounds(tmp_path, range(1, 2), said.append, each_kind=True)
    assert total.rounds == total.workers_killed == total.flows_killed == 1, said
    assert total.schedulers_killed == total.api_stopped == 1, said
    assert total.faults == 0, said
