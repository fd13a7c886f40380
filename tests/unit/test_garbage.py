"""How rarely garbage is looked for while runs are under way."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from evolve_tasks.workers import garbage
from evolve_tasks.workers.garbage import RARE, RarelyCollected

CPYTHONS = (700, 10, 10)


@pytest.fixture(autouse=True)
def as_cpython_has_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*CPYTHONS)
    monkeypatch.setattr(garbage, "_here", garbage._Thresholds())
    yield
    gc.set_threshold(*before)


def test_it_is_as_rare_as_in_processes_of_dask_and_as_before_afterwards() -> None:
    with RarelyCollected():
        assert gc.get_threshold() == RARE
    assert gc.get_threshold() == CPYTHONS


def test_of_runs_that_overlap_the_last_one_puts_it_back() -> None:
    first, second = RarelyCollected(), RarelyCollected()
    first.__enter__()
    second.__enter__()
    first.__exit__()
    first.__exit__()
    assert gc.get_threshold() == RARE, "one that ends twice does not end the other"
    second.__exit__()
    assert gc.get_threshold() == CPYTHONS


def test_it_is_put_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="no number"), RarelyCollected():
        raise ValueError("no number")
    assert gc.get_threshold() == CPYTHONS


def test_who_collects_more_rarely_goes_on_to() -> None:
    gc.set_threshold(50_000, 20, 100)
    with RarelyCollected():
        assert gc.get_threshold() == (50_000, 30, 100)
    assert gc.get_threshold() == (50_000, 20, 100)


@pytest.mark.parametrize("own", [(0, 10, 10), (100, 5, 5)])
def test_who_has_turned_it_off_or_wants_it_often_is_left_alone(own: tuple[int, int, int]) -> None:
    gc.set_threshold(*own)
    with RarelyCollected():
        assert gc.get_threshold() == own
    assert gc.get_threshold() == own


def test_what_somebody_sets_meanwhile_stays() -> None:
    with RarelyCollected():
        gc.set_threshold(1_000, 5, 5)
    assert gc.get_threshold() == (1_000, 5, 5)


def test_a_process_that_is_forked_meanwhile_has_no_run() -> None:
    reader, writer = os.pipe()
    with RarelyCollected():
        if (child := os.fork()) == 0:
            os.write(writer, repr(gc.get_threshold()).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert gc.get_threshold() == RARE
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == repr(CPYTHONS)
