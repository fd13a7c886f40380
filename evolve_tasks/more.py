"""What a last stage returns when it found more work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class More:
    """A result, and items that it leads to: recursion.

    The last stage returns it in place of its result. The items are worked on as if the stage had
    been given them by the stage before it; their places are below that of the item that found
    them, so results stand in order: that of the item, then what it led to. The run is over when
    nothing is left anywhere.

    Args:
        value: the result itself.
        items: M >= 0 items that stage `stage` is to work on: any iterable but a string, bytes,
            number or mapping.
        stage: position of the stage, 0 (which takes what sources are) to that of the last stage.

    Errors of the items are failures of their own; an item whose `More` cannot be used (no such
    stage, no collection of items) has failed. Nobody knows whether it ends: `unique=True` works on
    equal items once, and `limits.max_depth` and `limits.max_items` are bounds.

    Example:
        >>> def halved(number: int) -> int | More:
        ...     return More(number, [number // 2, number // 2], stage=1) if number > 1 else number
        >>> halved(4)
        More(value=4, items=[2, 2], stage=1)

    With `evolve([4], lambda number: [number], halved)` the results are `[4, 2, 1, 1, 2, 1, 1]`.
    """

    value: Any = None
    items: Iterable[Any] = ()
    stage: int = 0
