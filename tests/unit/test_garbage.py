"""How rarely garbage is looked for while runs are under way."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from evolve_tasks.workers.garbage import RARE, rarely_collected

CPYTHONS = (700, 10, 10)


@pytest.fixture(autouse=True)
def as_cpython_has_it() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*CPYTHONS)
    yield
    gc.set_threshold(*before)


def test_it_is_as_rare_as_in_processes_of_dask_and_as_before_afterwards() -> None:
    with rarely_collected():
        assert gc.get_threshold() == RARE
    assert gc.get_threshold() == CPYTHONS


def test_of_runs_that_overlap_the_last_one_puts_it_back() -> None:
    first, second = rarely_collected(), rarely_collected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold() == RARE
    second.__exit__(None, None, None)
    assert gc.get_threshold() == CPYTHONS


def test_it_is_put_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="no number"), rarely_collected():
        raise ValueError("no number")
    assert gc.get_threshold() == CPYTHONS


def test_who_collects_more_rarely_goes_on_to() -> None:
    gc.set_threshold(50_000, 20, 100)
    with rarely_collected():
        assert gc.get_threshold() == (50_000, 30, 100)
    assert gc.get_threshold() == (50_000, 20, 100)


def test_who_has_turned_it_off_is_left_alone() -> None:
    gc.set_threshold(0, 10, 10)
    with rarely_collected():
        assert gc.get_threshold() == (0, 10, 10)
    assert gc.get_threshold() == (0, 10, 10)


def test_what_somebody_sets_meanwhile_stays() -> None:
    with rarely_collected():
        gc.set_threshold(1_000, 5, 5)
    assert gc.get_threshold() == (1_000, 5, 5)
