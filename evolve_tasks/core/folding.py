"""Combine many values in pairs, in a shape that follows from their positions alone.

Position by position the values are the leaves of a binary tree whose nodes cover aligned ranges:
node `number` of `level` covers the positions from `number * 2**level` on, `2**level` of them.
Where a value is missing (its item failed, or there is no such position) the other side stands for
both.
So the result is the same, to the last bit, whichever parts were combined first and by whom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Nodes that one step combines at the most are 2 to the power of this: few enough that no step
# takes long, or needs much memory, and enough that a million values need two steps.
TIER = 9

Part = list[Any]  # one value, or none
Combine = Callable[[Any, Any], Any]


class Block(NamedTuple):
    """A node of the tree: what its positions come to."""

    level: int
    number: int
    part: Any  # a `Part`, packed or not


def merged(left: Part, right: Part, combine: Combine) -> Part:
    """Combine two parts; one that has no value leaves the other as it is."""
    return [combine(left[0], right[0])] if left and right else left or right


def blocks_of(start: int, parts: Iterable[Part], combine: Combine) -> list[Block]:
    """Combine consecutive positions as far as whole nodes of the tree go.

    Args:
        start: position of the first.
        parts: N >= 0 parts.
        combine: the user's function.

    Returns:
        At most about 2 log2(N) blocks, in order.

    Example:
        >>> blocks_of(3, [["a"], ["b"], [], ["d"], ["e"]], lambda one, other: one + other)
        [Block(level=0, number=3, part=['a']), Block(level=2, number=1, part=['bde'])]
    """
    done: list[Block] = []
    for position, part in enumerate(parts, start):
        level, index = 0, position
        while index % 2 and done and done[-1][:2] == (level, index - 1):
            part = merged(done.pop().part, part, combine)
            level, index = level + 1, index // 2
        done.append(Block(level, index, part))
    return done


def folded(blocks: Sequence[Block], combine: Combine) -> Part:
    """Combine what there is of a tree, in order; what is missing is missing.

    Example:
        >>> blocks = [Block(0, 0, ["a"]), Block(0, 3, ["d"]), Block(2, 1, ["e"])]
        >>> folded(blocks, lambda one, other: f"({one}{other})")
        ['((ad)e)']
    """
    if not blocks:
        return []
    level = max(block.level for block in blocks)
    while max(block.number >> (level - block.level) for block in blocks):
        level += 1
    return _node(list(blocks), level, 0, combine)


def _node(blocks: list[Block], level: int, index: int, combine: Combine) -> Part:
    if len(blocks) == 1:
        part: Part = blocks[0].part
        return part
    middle = 2 * index + 1
    right = [block for block in blocks if block.number >> (level - 1 - block.level) >= middle]
    left = blocks[: len(blocks) - len(right)]
    parts = [
        _node(side, level - 1, place, combine) if side else []
        for side, place in ((left, middle - 1), (right, middle))
    ]
    return merged(parts[0], parts[1], combine)


@dataclass(slots=True)
class Fold:
    """The blocks of one list that have come and wait for others.

    Example:
        >>> fold = Fold()
        >>> fold.add(Block(0, 0, "a")), fold.add(Block(9, 1, "b"))
        (None, None)
        >>> fold.blocks()
        [Block(level=0, number=0, part='a'), Block(level=9, number=1, part='b')]
    """

    # By tier and number of the step that is to combine them; with the nodes that they cover.
    _steps: dict[tuple[int, int], list[Block]] = field(default_factory=dict)

    def add(self, block: Block) -> tuple[int, int] | None:
        """Take a block; give the step that has all that it will ever get."""
        place, within = _step_of(block)
        blocks = self._steps.setdefault(place, [])
        blocks.append(block)
        if len(blocks) > 1 and sum(1 << (one.level - TIER * place[0]) for one in blocks) == within:
            return place
        return None

    def take(self, place: tuple[int, int]) -> list[Block]:
        """Take what a step combines, in order."""
        return sorted(self._steps.pop(place), key=_first_position)

    def blocks(self) -> list[Block]:
        """All that waits, in order."""
        return sorted(
            (block for blocks in self._steps.values() for block in blocks), key=_first_position
        )

    def next_steps(self) -> list[tuple[int, int]]:
        """What is to be combined where nothing more comes: what has several blocks, lowest tier."""
        lowest = min((tier for tier, _ in self._steps), default=0)
        return sorted(
            place for place, blocks in self._steps.items() if place[0] == lowest and len(blocks) > 1
        )

    def lift(self) -> None:
        """Let single blocks stand for their step: nothing comes to join them any more."""
        while len(self._steps) > 1 and not self.next_steps():
            tier = min(tier for tier, _ in self._steps)
            for place in [place for place in self._steps if place[0] == tier]:
                (block,) = self._steps.pop(place)
                self.add(Block(TIER * (tier + 1), place[1], block.part))


def _step_of(block: Block) -> tuple[tuple[int, int], int]:
    """The step that combines a block with others, and how many nodes that has."""
    tier = block.level // TIER
    return (tier, block.number >> (TIER * (tier + 1) - block.level)), 1 << TIER


def _first_position(block: Block) -> int:
    return block.number << block.level


def result_of(place: tuple[int, int], part: Any) -> Block:
    """What a step comes to, as a block of the next tier."""
    tier, number = place
    return Block(TIER * (tier + 1), number, part)
