"""Items that failed because they, or their results, cannot be unpickled in the flow's process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evolve_tasks.outcome import Failure
from evolve_tasks.workers.calls import SourceCall
from evolve_tasks.workers.failing import failure_from
from evolve_tasks.workers.salvaging import Unreadable
from evolve_tasks.workers.transport import Unpacked

RULE = (
    "return plain values, or see that their classes are installed there and can be made from what "
    "they pickle"
)


class Salvaged(Unpacked):
    """Unpacked values, some of which are `Unreadable`."""

    __slots__ = ()


def unreadable(stage: str, call: SourceCall, position: int, why: str) -> Failure:
    """Describe an item that failed because it, or its result, cannot be unpickled here.

    Args:
        stage: name of the stage that works on it.
        call: the list that it is in.
        position: its position there.
        why: the message.
    """
    return failure_from(
        TypeError(why),
        stage=stage,
        index=(*call.index, position),
        item=f"item {position} of {call.label}",
    )


def set_apart(
    stage: str, call: SourceCall, positions: range, values: list[Any], failures: Sequence[Failure]
) -> tuple[list[Any], list[Failure]]:
    """Take values that cannot be read out of the results of a list's items.

    Args:
        stage: name of the stage that gave them.
        call: the list that the items are in.
        positions: those of the items that were worked on.
        values: results of those that did not fail, in order; none where they are combined.
        failures: those of the others.

    Returns:
        The values that are left, and failures of those that are not.
    """
    failed = {failure.index[-1] for failure in failures}
    done = [position for position in positions if position not in failed]
    left, unread = [], []
    for position, value in zip(done, values, strict=bool(values)):
        if isinstance(value, Unreadable):
            why = (
                "its result came back, but cannot be unpickled in the flow's process "
                f"({value.error}); {RULE}"
            )
            unread.append(unreadable(stage, call, position, why))
        else:
            left.append(value)
    return left, unread
