"""Take what the last stage gave apart: results on one side, work on the other; pack both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evolve_tasks.more import More
from evolve_tasks.workers.bound import Ran
from evolve_tasks.workers.calls import Discovery
from evolve_tasks.workers.transport import Packed, Unpicklable, is_plain, require_picklable


def taken_apart(
    stage: str,
    ended: Sequence[Ran],
    start: int,
    keys_of: Callable[[Sequence[Any]], bytes] | None,
) -> list[Discovery]:
    """Leave results alone in `ended`, and give what they lead to.

    Args:
        stage: name of what gave them.
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
    discoveries = []
    for to, (owners, all_items, all_keys) in sorted(found.items()):
        try:
            packed = Packed.of(all_items)
        except Exception as error:
            for owner, _ in owners:
                _fail(stage, ended[owner - start], error)
            continue
        discoveries.append(Discovery(to, owners, packed, b"".join(all_keys)))
    return discoveries


def refuse_unpicklable(stage: str, ended: Sequence[Ran]) -> None:
    """Make failures of results that cannot travel.

    Args:
        stage: name of what gave them.
        ended: how N >= 0 items have ended.
    """
    values = [ran.value for ran in ended if ran.error is None]
    if is_plain(values):
        return
    try:
        Packed.tried(values)
    except Exception:
        # One of them is at fault; the way to find out which is to try each.
        for ran in ended:
            if ran.error is None:
                try:
                    require_picklable(stage, ran.value)
                except Unpicklable as error:
                    ran.error = error


def packed_results(
    stage: str,
    values: Callable[[], list[Any]],
    groups: Sequence[tuple[Sequence[Ran], list[Discovery]]],
) -> Packed:
    """Pack results that were not refused; what cannot be packed any more fails.

    Some are changed by their owners meanwhile, or there is no memory for all of them at once.
    Whoever gave the items did not fail, nor did others that were worked on beside them.

    Args:
        stage: name of what gave them.
        values: gives the results, of those in `groups` that have not failed.
        groups: how items have ended, and what they have found: N >= 1 lists. Where something was
            found and one fails, all of its list do, and what they found is left out.
    """
    try:
        return Packed.of(values())
    except Exception as error:
        for ended, found in groups:
            failed = _failed(ended)
            refuse_unpicklable(stage, ended)
            if found and _failed(ended) > failed:
                _fail_all(stage, ended, found, error)
    try:
        return Packed.of(values())
    except Exception as error:
        for ended, found in groups:
            _fail_all(stage, ended, found, error)
        return Packed.of(values())


def _failed(ended: Sequence[Ran]) -> int:
    return sum(ran.error is not None for ran in ended)


def _fail_all(stage: str, ended: Sequence[Ran], found: list[Discovery], error: Exception) -> None:
    found.clear()
    for ran in ended:
        _fail(stage, ran, error)


def _fail(stage: str, ran: Ran, error: Exception) -> None:
    """Let what came of an item be lost; each with an error of its own, which will be raised."""
    if ran.error is None:
        why = f"{type(error).__name__}: {error}"
        ran.value = None
        ran.error = Unpicklable(
            f"what {stage} returned, or what came with it, could be pickled when it was tried, and "
            f"then it could not ({why}); return plain values, and do not change them afterwards"
        )
