"""Results that could be pickled when they were tried, and cannot be when they are packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evolve_tasks.more import More
from evolve_tasks.workers.bound import Ran
from evolve_tasks.workers.calls import Discovery
from evolve_tasks.workers.discoveries import packed_results, refuse_unpicklable, taken_apart

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


Packing = Callable[..., tuple[list[Any], list[Ran], list[Discovery]]]


@pytest.fixture
def pack(caplog: pytest.LogCaptureFixture) -> Packing:
    caplog.set_level("CRITICAL", "distributed.protocol.pickle")

    def packing(*given: Any) -> tuple[list[Any], list[Ran], list[Discovery]]:
        """As units do it."""
        ended = [Ran(value=value) for value in given]
        refuse_unpicklable("work", ended)
        assert not any(ran.error for ran in ended)
        found = taken_apart("work", ended, 0, None)

        def values() -> list[Any]:
            return [ran.value for ran in ended if ran.error is None]

        packed = packed_results("work", values, [(ended, found)])
        return packed.value(), ended, found

    return packing


def failed(ended: list[Ran]) -> list[int]:
    return [position for position, ran in enumerate(ended) if ran.error is not None]


def test_what_cannot_be_pickled_any_more_fails_alone(pack: Packing) -> None:
    values, ended, _ = pack(0, Pickled(), Pickled(*range(9)), 3)
    assert values == [0, "came", 3]
    assert failed(ended) == [1]
    assert "it went before" in str(ended[1].error)
    assert "work" in str(ended[1].error)


def test_those_beside_one_that_led_further_are_lost_with_it(pack: Packing) -> None:
    values, ended, found = pack(0, More(Pickled(), [1, 2], stage=0), More(3, [3], stage=1))
    assert values == []
    assert found == []
    assert failed(ended) == [0, 1, 2]


def test_what_was_found_and_cannot_be_pickled_any_more(pack: Packing) -> None:
    values, ended, found = pack(0, More(1, [Pickled()], stage=0), More(2, [3], stage=1))
    assert values == [0, 2]
    assert failed(ended) == [1]
    assert "it went before" in str(ended[1].error)
    assert [(one.stage, one.owners, one.items.value()) for one in found] == [(1, [(2, 1)], [3])]


def test_where_none_is_at_fault_all_fail_with_errors_of_their_own(pack: Packing) -> None:
    # It can be pickled whenever it is tried, and not when it is packed.
    values, ended, _ = pack(0, Pickled(1 + TRIES + 1), 2)
    assert values == []
    assert failed(ended) == [0, 1, 2]
    # An error that is raised once more for each item that it stands for becomes longer each time.
    assert len({id(ran.error) for ran in ended}) == 3
