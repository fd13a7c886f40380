"""Results that could be pickled when they were tried, and cannot be when they are packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evolve_tasks.more import More
from evolve_tasks.workers.bound import Ran
from evolve_tasks.workers.results import Results, packed

TRIES = 4  # of pickle, Dask and cloudpickle, before a value is given up


class Pickled:
    """Can be pickled the first time that somebody tries, and at some later ones."""

    def __init__(self, *later: int) -> None:
        self.tries = 0
        self.able = {1, *later}

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        self.tries += 1
        if self.tries not in self.able:
            raise OSError("it went before")
        return str, ("came",)


Packing = Callable[..., tuple[list[Any], list[Results]]]


@pytest.fixture
def pack(caplog: pytest.LogCaptureFixture) -> Packing:
    caplog.set_level("CRITICAL", "distributed.protocol.pickle")

    def packing(*lists: list[Any]) -> tuple[list[Any], list[Results]]:
        """As units do it."""
        results = [Results("work", [Ran(value) for value in one], 0, None) for one in lists]
        assert not any(failed(one) for one in results)

        def values() -> list[Any]:
            return [[ran.value for ran in one.ended if ran.error is None] for one in results]

        return packed(results, values).value(), results

    return packing


def failed(results: Results) -> list[int]:
    return [position for position, ran in enumerate(results.ended) if ran.error is not None]


def led_to(results: Results) -> list[tuple[int, list[tuple[int, int]], list[Any]]]:
    return [(one.stage, one.owners, one.items.value()) for one in results.discoveries]


def test_a_result_that_cannot_be_pickled_any_more_fails_alone(pack: Packing) -> None:
    able = Pickled(*range(9))
    values, (first, second) = pack([0, Pickled(), able, More(3, [4], stage=0)], [5])
    assert values == [[0, "came", 3], [5]]
    assert failed(first) == [1]
    assert failed(second) == []
    assert led_to(first) == [(0, [(3, 1)], [4])]
    error = first.ended[1].error
    assert "it went before" in str(error)
    assert "work" in str(error)
    assert isinstance(error.__cause__, OSError)


def test_what_it_led_to_is_left_out(pack: Packing) -> None:
    values, (first,) = pack([More(Pickled(), [1, 2], stage=0), More(3, [4], stage=0)])
    assert values == [[3]]
    assert failed(first) == [0]
    assert led_to(first) == [(0, [(1, 1)], [4])]


def test_one_that_leads_to_what_cannot_be_pickled_any_more_fails_alone(pack: Packing) -> None:
    values, (first, second) = pack(
        [0, More(1, [Pickled()], stage=0), More(2, [3], stage=0), More(4, [5, 6], stage=1)],
        [More(7, [8], stage=0)],
    )
    assert values == [[0, 2, 4], [7]]
    assert failed(first) == [1]
    assert "it went before" in str(first.ended[1].error)
    assert led_to(first) == [(0, [(2, 1)], [3]), (1, [(3, 2)], [5, 6])]
    assert led_to(second) == [(0, [(0, 1)], [8])]


def test_where_none_is_at_fault_all_fail_with_errors_of_their_own(pack: Packing) -> None:
    # It can be pickled whenever it is tried, and not when it is packed.
    able = Pickled(1 + TRIES + 1, 2 * (1 + TRIES) + 1)
    values, (first, second) = pack([0, able], [More(2, [3], stage=0)])
    assert values == [[], []]
    assert failed(first) == [0, 1]
    assert failed(second) == [0]
    assert led_to(second) == []
    assert len({id(ran.error) for one in (first, second) for ran in one.ended}) == 3


def test_what_passes_at_once_fails_nobody(pack: Packing) -> None:
    able = Pickled(1 + TRIES + 1, 1 + TRIES + 2)
    values, (first,) = pack([0, able, More(2, [3], stage=0)])
    assert values == [[0, "came", 2]]
    assert failed(first) == []
    assert led_to(first) == [(0, [(2, 1)], [3])]


def test_an_error_without_a_text(pack: Packing) -> None:
    values, (first,) = pack([0, Mute()])
    assert values == [[0]]
    assert "Speechless" in str(first.ended[1].error)


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Mute(Pickled):
    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        try:
            return super().__reduce__()
        except OSError as error:
            raise Speechless from error
