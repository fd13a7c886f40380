"""What items of the last stage gave: results on one side, what they lead to on the other.

Both are packed here. What cannot travel fails by itself: not those that gave the items, and others
that were worked on beside them only where no single one is at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from evolve_tasks.more import More
from evolve_tasks.naming import error_text
from evolve_tasks.workers.bound import Ran
from evolve_tasks.workers.calls import Discovery
from evolve_tasks.workers.transport import Packed, Unpicklable, is_plain, require_picklable


class _Led(NamedTuple):
    """An item that leads to others, and what stands for each of those where they are compared."""

    position: int
    ran: Ran
    stage: int
    items: list[Any]
    keys: bytes


class Results:
    """How N >= 0 consecutive items have ended, and what they lead to.

    Args:
        name: of what gave them.
        ended: how they have ended. Those that cannot travel fail, and of a `More` its result alone
            is left.
        start: position of the first.
        keys_of: gives what stands for each of some items; `None` where nobody compares them. An
            item whose finds cannot be compared fails.

    Attributes:
        discoveries: what they lead to, one for each stage that is to work on something, in order
            of the stages; once they are packed.
    """

    __slots__ = ("_led", "_name", "discoveries", "ended")

    def __init__(
        self,
        name: str,
        ended: list[Ran],
        start: int,
        keys_of: Callable[[Sequence[Any]], bytes] | None,
    ) -> None:
        self.ended = ended
        self.discoveries: Sequence[Discovery] = ()
        self._name = name
        refuse_unpicklable(name, ended)
        self._led = [
            _led(position, ran, ran.value, keys_of)
            for position, ran in enumerate(ended, start)
            if ran.error is None and isinstance(ran.value, More)
        ]

    def pack_discoveries(self) -> None:
        """Pack what those lead to that have not failed.

        Raises:
            Exception: whatever pickling raises.
        """
        if not self._led:
            return
        found: dict[int, list[_Led]] = {}
        for one in self._led:
            if one.ran.error is None:
                found.setdefault(one.stage, []).append(one)
        self.discoveries = [
            Discovery(
                stage,
                [(one.position, len(one.items)) for one in led],
                Packed.of([item for one in led for item in one.items]),
                b"".join(one.keys for one in led),
            )
            for stage, led in sorted(found.items())
        ]

    def refuse_unpicklable(self) -> int:
        """Let those fail that cannot be pickled any more; give how many."""
        before = self._failed()
        refuse_unpicklable(self._name, self.ended)
        for one in self._led:
            if one.ran.error is None:
                try:
                    require_picklable(f"{self._name}, in More,", one.items)
                except Unpicklable as error:
                    one.ran.error = error
        return self._failed() - before

    def refuse_all(self, error: Exception) -> int:
        """Let all fail, each with an error of its own; give how many had not."""
        before = self._failed()
        for ran in self.ended:
            if ran.error is None:
                ran.value = None
                # Not one for all: one that is raised once for each item becomes longer each time.
                ran.error = Unpicklable(
                    f"{self._name} returned a value that can be pickled alone, and cannot be "
                    f"pickled with those that came beside it ({error_text(error)}); return plain "
                    "values, or less in each"
                )
        return self._failed() - before

    def _failed(self) -> int:
        return sum(ran.error is not None for ran in self.ended)


def _led(
    position: int,
    ran: Ran,
    more: More,
    keys_of: Callable[[Sequence[Any]], bytes] | None,
) -> _Led:
    ran.value, items, keys = more.value, list(more.items), b""
    if keys_of is not None:
        try:
            keys = keys_of(items)
        except Exception as error:
            ran.value, ran.error = None, error
    return _Led(position, ran, more.stage, items, keys)


def packed(results: Sequence[Results], values: Callable[[], list[Any]]) -> Packed:
    """Pack what items gave, and what they lead to.

    All of it could be pickled when it was tried. It may have changed since then, or there may be
    no memory for all of it at once: then those fail that cannot be pickled alone, in `results`; or
    all, if each of them can.

    Args:
        results: what they gave, N >= 1 times.
        values: gives the results that are to be packed, of those that have not failed.
    """
    at_fault = 1
    while True:
        try:
            for one in results:
                one.pack_discoveries()
            return Packed.of(values())
        except Exception as error:
            # Where none is at fault it may have been for a moment, so that is tried once more.
            before, at_fault = at_fault, sum(one.refuse_unpicklable() for one in results)
            if not (before or at_fault or sum(one.refuse_all(error) for one in results)):
                raise


def refuse_unpicklable(name: str, ended: Sequence[Ran]) -> None:
    """Make failures of values that cannot travel.

    Args:
        name: of what gave them.
        ended: how N >= 0 calls have ended.
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
                    require_picklable(name, ran.value)
                except Unpicklable as error:
                    ran.error = error
