"""Take what the last stage found apart: results on one side, work on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evolve_tasks.more import More
from evolve_tasks.workers.bound import Ran
from evolve_tasks.workers.calls import Discovery
from evolve_tasks.workers.transport import Packed


def taken_apart(
    ended: Sequence[Ran], start: int, keys_of: Callable[[Sequence[Any]], bytes] | None
) -> list[Discovery]:
    """Leave results alone in `ended`, and give what they lead to.

    Args:
        ended: how consecutive items have ended.
        start: position of the first.
        keys_of: gives what stands for each of some items; `None` where nobody compares them. An
            item whose finds cannot be compared fails.

    Returns:
        One for each stage that is to work on something, in order of the stages.
    """
    found: dict[int, tuple[list[tuple[int, int]], list[Any], list[bytes]]] = {}
    for position, ran in enumerate(ended, start):
        if ran.error is not None or not isinstance(ran.value, More):
            continue
        more, items = ran.value, list(ran.value.items)
        try:
            keys = keys_of(items) if keys_of is not None else b""
        except Exception as error:
            ran.value, ran.error = None, error
            continue
        ran.value = more.value
        owners, all_items, all_keys = found.setdefault(more.stage, ([], [], []))
        owners.append((position, len(items)))
        all_items += items
        all_keys.append(keys)
    return [
        Discovery(stage, owners, Packed.of(items), b"".join(keys))
        for stage, (owners, items, keys) in sorted(found.items())
    ]
