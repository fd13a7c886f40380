"""Put what ends in any order into the order of the sources and their items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(slots=True)
class Portion:
    """What one answered unit adds to the outcome.

    Args:
        position: the source's position among the sources.
        source: the source itself.
        start: position of the first item in its list.
        stop: position after the last item that has ended.
        values: results of those that succeeded, in order.
        failures: those that failed, in order of position; a failure of what was to give the
            list alone has `start == stop`.
        resumed: the values come from a journal.
        inner: positions from the source down to what gave the list; empty for the source itself.
    """

    position: int
    source: Any
    start: int
    stop: int
    values: list[Any]
    failures: Sequence[Any] = ()
    resumed: bool = False
    inner: tuple[int, ...] = ()

    @property
    def index(self) -> tuple[int, ...]:
        """Positions from the source down to what gave the list."""
        return self.position, *self.inner

    def cut_after(self, places: Iterable[int]) -> list[Portion]:
        """The same in parts, so that what is below some items can come between.

        Args:
            places: positions that a part ends with.

        Example:
            >>> whole = Portion(0, "a", 0, 3, ["a0", "a1", "a2"])
            >>> [(part.start, part.stop, part.values) for part in whole.cut_after([1])]
            [(0, 2, ['a0', 'a1']), (2, 3, ['a2'])]
        """
        ends = sorted({place + 1 for place in places if place + 1 < self.stop} | {self.stop})
        if len(ends) == 1:
            return [self]
        own = len(self.index) + 1
        failed = {one.index[-1]: one for one in self.failures if len(one.index) == own}
        others = [one for one in self.failures if len(one.index) != own]
        values, start, parts = iter(self.values), self.start, []
        for stop in ends:
            failures = [failed[place] for place in range(start, stop) if place in failed]
            done = [next(values) for _ in range(stop - start - len(failures))]
            parts.append(
                replace(self, start=start, stop=stop, values=done, failures=[*others, *failures])
            )
            start, others = stop, []
        return parts


@dataclass(slots=True)
class Assembly:
    """Results of a run, kept until they can be put in order.

    Example:
        >>> assembly = Assembly()
        >>> for position, source in enumerate("ab"):
        ...     assembly.arrived(position, source)
        >>> assembly.add(Portion(1, "b", 0, 1, ["b0"]))
        >>> assembly.add(Portion(0, "a", 1, 2, ["a1"]))
        >>> assembly.add(Portion(0, "a", 0, 1, ["a0"]))
        >>> assembly.by_source()
        [('a', ['a0', 'a1']), ('b', ['b0'])]
    """

    _sources: list[Any] = field(default_factory=list)
    _values: dict[int, list[tuple[tuple[int, ...], list[Any]]]] = field(default_factory=dict)
    _failures: list[Any] = field(default_factory=list)

    def arrived(self, position: int, source: Any) -> None:
        """Note a source; sources arrive in order."""
        assert position == len(self._sources), (position, len(self._sources))
        self._sources.append(source)

    def add(self, portion: Portion) -> None:
        """Note what a unit gave."""
        if portion.values:
            part = (*portion.inner, portion.start), portion.values
            parts = self._values.get(portion.position)
            if parts is None:
                self._values[portion.position] = [part]
            else:
                parts.append(part)
        self._failures.extend(portion.failures)

    def by_source(self) -> list[tuple[Any, list[Any]]]:
        """The results of each source, in order."""
        return [(source, self.values(position)) for position, source in enumerate(self._sources)]

    def values(self, position: int) -> list[Any]:
        """The results of one source, in order."""
        parts = self._values.get(position, ())
        if len(parts) == 1:
            return parts[0][1]
        return [value for _, values in sorted(parts, key=lambda part: part[0]) for value in values]

    def failures(self) -> list[Any]:
        """The failures, in order of position."""
        return sorted(self._failures, key=lambda failure: failure.index)
