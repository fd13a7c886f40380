"""Combine results in pairs where they are: on the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from evolve_tasks.core.folding import Block, Combine, blocks_of, folded
from evolve_tasks.workers.bound import BoundStage, Ran, UnitContext
from evolve_tasks.workers.calls import Discovery, Parts, Recording
from evolve_tasks.workers.transport import Packed, require_picklable


@contextmanager
def combining(bound: BoundStage, log_run_id: UUID, name: str) -> Iterator[Combine]:
    """Give the user's function as something that combines two values, and raises if it fails."""
    with UnitContext(bound, Recording(), log_run_id, name) as unit:

        def combine(one: Any, other: Any) -> Any:
            ran = unit.run((one, other), log_run_id, name)
            if ran.error is not None:
                raise ran.error
            return ran.value

        yield combine


def parts_of(
    ended: Sequence[Ran], start: int, discoveries: Sequence[Discovery], combine: Combine
) -> Parts:
    """Combine the results of consecutive items, as far as that goes without others.

    Args:
        ended: how they have ended; one that failed has no value.
        start: position of the first.
        discoveries: what they have found; who found something stands alone.
        combine: combines two values.
    """
    leading = {position for one in discoveries for position, _ in one.owners}
    parts = Parts()
    run: list[list[Any]] = []
    for position, ran in enumerate([*ended, None], start):
        if ran is not None and position not in leading:
            run.append([ran.value] if ran.error is None else [])
            continue
        parts.blocks += [packed(block) for block in blocks_of(position - len(run), run, combine)]
        run = []
        if ran is not None:
            parts.own.append((position, Packed.of([ran.value])))
    return parts


def packed(block: Block) -> Block:
    """The same, ready to travel."""
    return block._replace(part=Packed.of(block.part))


def part_of(stage: str, blocks: Sequence[Block], combine: Combine) -> Packed:
    """Combine blocks that have come packed."""
    part = folded([block._replace(part=block.part.value()) for block in blocks], combine)
    require_picklable(stage, part)
    return Packed.of(part)
