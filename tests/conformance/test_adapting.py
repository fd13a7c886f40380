"""`auto` changes to `nested` when the flow's process cannot keep up; the outcome is the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from evolve_tasks import EvolveTaskRunner, Outcome, evolve
from evolve_tasks.core import bottleneck
from evolve_tasks.strategies import nested
from tests.conformance.flows import in_flow

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

SOURCES = list(range(40))


def up_to(number: int) -> list[int]:
    return list(range(number))


def negative(number: int) -> int:
    return -number


def evolved(address: str, **options: Any) -> Outcome:
    def body() -> Outcome:
        return evolve(SOURCES, up_to, negative, batch=2, **options)

    return in_flow(EvolveTaskRunner(address=address), body)


@pytest.fixture
def always_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck, "BUSY_SHARE", -1.0)
    monkeypatch.setattr(nested, "Bottleneck", partial(bottleneck.Bottleneck, window_s=0.0))


@pytest.mark.usefixtures("always_busy")
def test_new_sources_go_nested(thread_workers: str) -> None:
    outcome = evolved(thread_workers)
    assert outcome.strategy == "as_completed"
    assert "nested from source" in outcome.reason
    assert "nested from source" in outcome.report["reason"]
    assert outcome.results == [-item for number in SOURCES for item in range(number)]


@pytest.mark.usefixtures("always_busy")
@pytest.mark.parametrize(
    "options", [{"strategy": "as_completed"}, {"in_flight": 8}, {"max_items": 10_000}]
)
def test_what_was_asked_for_stays(options: dict[str, Any], thread_workers: str) -> None:
    outcome = evolved(thread_workers, **options)
    assert "nested" not in outcome.reason
    assert outcome.results == [-item for number in SOURCES for item in range(number)]


def test_who_keeps_up_stays(thread_workers: str) -> None:
    assert "nested" not in evolved(thread_workers).reason


def test_two_busy_windows_in_a_row_are_too_many() -> None:
    watched = bottleneck.Bottleneck()
    busy = {"busy_s": 1.8, "waited_s": 0.2}
    assert watched.spent(**busy) is None
    assert watched.spent(busy_s=0.2, waited_s=1.8) is None
    assert watched.spent(**busy) is None
    assert watched.spent(**busy, starving=False) is None, "threads have work"
    assert watched.spent(**busy) is None
    assert watched.spent(**busy) == pytest.approx(0.9)
