"""What is combined when: all values once, in one shape, whatever came first."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from evolve_tasks.core.folding import TIER, Block, blocks_of, folded
from evolve_tasks.reducing import Combination, Reducing, reducing_by
from evolve_tasks.workers.transport import Packed

Tree = dict[tuple[int, ...], list[str] | None]  # by path: a value, none, or a list of further ones


def pair(one: Any, other: Any) -> Any:
    return f"({one}{other})"


def canonical(parts: list[list[str]]) -> list[str]:
    return folded([Block(0, place, part) for place, part in enumerate(parts)], pair)


class Source:
    """A source of random shape: lists of items, some of which lead to lists again."""

    def __init__(self, random: Random, position: int, large: int) -> None:
        self.random = random
        self.events: list[tuple[str, tuple[int, ...], Any]] = []
        self.part = self._list((position,), random.choice((0, 1, 3, 5, large)), 0)

    def _list(self, path: tuple[int, ...], size: int, depth: int) -> list[str]:
        random, parts, run = self.random, [], []
        leads = 0.1 if depth < 3 and size < 50 else 0.0
        expands = size < 20 and depth < 2 and random.random() < 0.3
        for place in range(size):
            name = [".".join(map(str, (*path, place))) + ","]
            if expands:
                self._flush(path, place, run)
                parts.append(self._list((*path, place), random.randint(0, 4), depth + 1))
            elif random.random() < leads:
                self._flush(path, place, run)
                self.events.append(("own", (*path, place), name))
                below = self._list((*path, place), random.randint(0, 4), depth + 1)
                parts.append([pair(name[0], below[0])] if below else name)
            else:
                run.append([] if random.random() < 0.1 else name)
                parts.append(run[-1])
                if random.random() < 0.02:
                    self._flush(path, place + 1, run)
        self._flush(path, size, run)
        return canonical(parts)

    def _flush(self, path: tuple[int, ...], stop: int, run: list[Any]) -> None:
        if run:
            self.events.append(("blocks", path, blocks_of(stop - len(run), list(run), pair)))
            run.clear()


@pytest.mark.parametrize("seed", range(40))
def test_all_values_once_in_one_shape(seed: int) -> None:
    random = Random(seed)
    count = random.choice((0, 1, 5, 700))
    large = random.choice((10, 600, 5_000, 20_000)) if count < 10 else 3
    sources = [Source(random, position, large) for position in range(count)]
    reducing = reducing_by(max, 2)
    assert reducing is not None
    todo = [(position, event) for position, one in enumerate(sources) for event in one.events]
    random.shuffle(todo)
    left = {position: len(one.events) for position, one in enumerate(sources)}
    ends = [position for position, one in enumerate(sources) if not one.events]
    out: list[Combination] = []
    while todo or ends or out or reducing.value is None:
        choice = random.random()
        if choice < 0.5 and todo:
            position, (kind, path, given) = todo.pop()
            if kind == "own":
                reducing.take_own(path, Packed.of(given))
            else:
                blocks = [one._replace(part=Packed.of(one.part)) for one in given]
                reducing.take(path, blocks)
            left[position] -= 1
            if not left[position]:
                ends.append(position)
        elif choice < 0.7 and ends:
            reducing.source_ended(ends.pop())
        elif out:
            _answer(reducing, out.pop(random.randrange(len(out))))
        if not (todo or ends):
            reducing.over()
        out += reducing.wanted()
        if not (todo or ends or out):
            reducing.over()
            out += reducing.wanted()
    expected = canonical([one.part for one in sources])
    assert reducing.value.value() == expected


def _answer(reducing: Reducing, combination: Combination) -> None:
    assert sum(len(group.blocks) for group in combination.groups) <= 1 << TIER
    parts = []
    for group in combination.groups:
        blocks = [one._replace(part=one.part.value()) for one in group.blocks]
        parts.append(Packed.of(folded(blocks, pair)))
    reducing.combined(combination, parts)
