"""Combining in pairs: the same shape whatever comes first, and no large step."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from evolve_tasks.core.folding import TIER, Block, Fold, blocks_of, folded, result_of


def pair(one: Any, other: Any) -> Any:
    """Not associative: it shows the shape."""
    return f"({one}{other})"


def canonical(parts: list[list[str]]) -> list[str]:
    """The tree by its definition."""
    while len(parts) > 1:
        pairs = [parts[at : at + 2] for at in range(0, len(parts), 2)]
        parts = [
            [pair(two[0][0], two[1][0])]
            if len(two) == 2 and all(two)
            else next(filter(None, two), [])
            for two in pairs
        ]
    return parts[0] if parts else []


@pytest.mark.parametrize("seed", range(60))
def test_any_cuts_in_any_order_give_the_same_shape(seed: int) -> None:
    random = Random(seed)
    size = random.choice((0, 1, 2, 7, 100, 511, 512, 513, 3_000, 20_000))
    parts = [[] if random.random() < 0.2 else [f"{at},"] for at in range(size)]
    cuts = sorted({0, size, *(random.randint(0, size) for _ in range(random.choice((0, 3, 40))))})
    portions = [blocks_of(start, parts[start:stop], pair) for start, stop in pairwise(cuts)]
    random.shuffle(portions)
    fold, steps = Fold(), 0
    for blocks in portions:
        for block in blocks:
            place = fold.add(block)
            while place is not None:
                steps += 1
                taken = fold.take(place)
                assert len(taken) <= 1 << TIER
                place = fold.add(result_of(place, folded(taken, pair)))
    fold.lift()
    while places := fold.next_steps():
        for place in places:
            taken = fold.take(place)
            assert len(taken) <= 1 << TIER
            fold.add(result_of(place, folded(taken, pair)))
        fold.lift()
    left = fold.blocks()
    assert len(left) <= 1
    assert folded(left, pair) == canonical(parts)


def test_a_long_run_of_values_becomes_few_blocks() -> None:
    blocks = blocks_of(5, [[number] for number in range(100_000)], lambda one, other: one + other)
    assert len(blocks) <= 34
    assert sum(block.part[0] for block in blocks) == sum(range(100_000))


def test_what_is_missing_leaves_the_others() -> None:
    assert folded([], pair) == []
    assert folded([Block(0, 7, []), Block(0, 9, [])], pair) == []
    assert folded([Block(0, 7, []), Block(0, 9, ["x"])], pair) == ["x"]
