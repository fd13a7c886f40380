"""A few rounds of what `make soak` runs a hundred of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.faults import run_rounds

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_nothing_is_lost_or_done_twice_whatever_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    total = run_rounds(tmp_path, range(1, 4), said.append)
    assert total.rounds == 3
    assert total.faults == 0, "\n".join(said)
