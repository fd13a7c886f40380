"""The combinations that `make test` runs hold every value, or every pair of values."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.thinning import covering


def test_one_parameter_has_all_its_values() -> None:
    assert covering([("a",), ("b",), ("c",)]) == [0, 1, 2]
    assert covering([()]) == [0]


def test_each_value_of_two_runs_once() -> None:
    every = list(product("abcd", "xyz"))
    chosen = [every[place] for place in covering(every)]
    assert {one for one, _ in chosen} == {*"abcd"}
    assert {other for _, other in chosen} == {*"xyz"}
    assert len(chosen) == 4


@pytest.mark.parametrize("sizes", [(4, 3, 4), (2, 2, 2), (4, 3, 2, 2), (3, 1, 5)])
def test_each_pair_of_more_runs(sizes: tuple[int, ...]) -> None:
    every = list(product(*map(range, sizes)))
    chosen = covering(every)
    assert chosen == sorted(set(chosen))
    for one, other in combinations(range(len(sizes)), 2):
        pairs = {(every[place][one], every[place][other]) for place in chosen}
        assert pairs == set(product(range(sizes[one]), range(sizes[other])))
    assert len(chosen) < len(every) or 1 in sizes


def test_what_was_left_out_by_hand_is_not_asked_for() -> None:
    every = [("a", "x"), ("a", "y"), ("b", "y")]
    assert [every[place] for place in covering(every)] == every[:1] + every[2:]
