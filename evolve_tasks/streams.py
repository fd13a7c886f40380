"""Stages that give items on the way: how far they may go, and what of them has come."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from evolve_tasks.workers.calls import Measure, SourceCall, StreamCall
from evolve_tasks.workers.streaming import ENOUGH, Chunk


@dataclass(slots=True)
class _Unit:
    """A unit in flight that may give on the way."""

    stage: int
    indices: list[tuple[int, ...]]
    given: list[int]  # by its items
    may: list[int]
    lists: int = 0
    at: int = 0  # the one that gives
    began: bool = False
    again: bool = False  # somebody begins anew, and has to be told how far it may go
    held: Any = None  # its answer, if that came before all that it sent


@dataclass(slots=True)
class Streams:
    """The units of a run that may give on the way.

    Args:
        stages: positions of the stages that do so; none where nobody can hear of it.
        allowance: how many items each source may give before it is told how to go on.
    """

    stages: Collection[int] = ()
    allowance: int = 1
    _units: dict[int, _Unit] = field(default_factory=dict)
    # What was given of sources whose worker may die, or has died: number and digest.
    _known: dict[tuple[int, ...], tuple[int, bytes]] = field(default_factory=dict)
    _indices: dict[int, set[tuple[int, ...]]] = field(default_factory=dict)
    _unwanted: set[tuple[int, int]] = field(default_factory=set)  # of units that are over

    def call(self, unit: int, stage: int, sources: Collection[SourceCall]) -> StreamCall | None:
        """How a unit is to give on the way; `None` if it is not."""
        if stage not in self.stages:
            return None
        known = [self._known.get(source.index, (0, b"")) for source in sources]
        given, digests = [number for number, _ in known], [digest for _, digest in known]
        may = [number + self.allowance for number in given]
        self._units[unit] = _Unit(stage, [source.index for source in sources], given, may)
        return StreamCall(unit, self.allowance, tuple(given), tuple(digests))

    def given(self, chunk: Chunk) -> int:
        """How many items have come of what a chunk is from."""
        return self._units[chunk.unit].given[chunk.offset]

    def repeated(self, chunk: Chunk) -> int:
        """How many items of a chunk have come before: Dask has begun the unit anew."""
        one = self._units[chunk.unit]
        known = min(chunk.size, one.given[chunk.offset] - chunk.start)
        if known > 0:
            one.again, one.at = True, chunk.offset
        return known

    def took(self, chunk: Chunk, source: SourceCall) -> int:
        """Note items that have come; give how many lists the unit had given before."""
        one = self._units[chunk.unit]
        one.given[chunk.offset] = chunk.start + chunk.size
        one.at, one.began = chunk.offset, True
        one.lists += 1
        self._known[source.index] = one.given[chunk.offset], chunk.digest
        self._indices.setdefault(source.position, set()).add(source.index)
        return one.lists - 1

    def lists(self, unit: int) -> int:
        """How many lists a unit gave on the way."""
        return self._units[unit].lists if unit in self._units else 0

    def ended(self, unit: int, *, again: bool) -> None:
        """A unit is not in flight any more; what was in it runs again, or not."""
        one = self._units.pop(unit, None)
        if one is not None and not again:
            for index in one.indices:
                self._known.pop(index, None)

    def source_done(self, position: int) -> None:
        """Forget a source that has ended."""
        for index in self._indices.pop(position, ()):
            self._known.pop(index, None)

    def in_order(self, answers: Iterable[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Put each answer behind all that its unit gave on the way, also if that is to come."""
        ordered: list[tuple[int, Any]] = []
        coming: dict[int, int] = {}  # items that come with these answers
        ends: dict[tuple[int, int], int] = {}  # how far these go
        for unit, answer in answers:
            one = self._units.get(unit)
            if isinstance(answer, Chunk):
                if one is None:
                    # Of a unit that was given up, or has ended and is made anew for its lists: it
                    # would wait to be told how far it may go.
                    self._unwanted.add((unit, answer.offset))
                    continue
                place, stop = (unit, answer.offset), answer.start + answer.size
                known = ends.get(place, one.given[answer.offset])
                ends[place] = max(known, stop)
                coming[unit] = coming.get(unit, 0) + max(0, stop - known)
                ordered.append((unit, answer))
                if one.held is not None and self._is_whole(one, one.held, coming[unit]):
                    ordered.append((unit, one.held))
                    one.held = None
            elif one is not None and not self._is_whole(one, answer, coming.get(unit, 0)):
                one.held = answer
            else:
                ordered.append((unit, answer))
        return ordered

    @staticmethod
    def _is_whole(one: _Unit, answer: Any, coming: int) -> bool:
        """Whether all has come that was sent before an answer."""
        if not isinstance(answer, Measure):
            return True
        return sum(end.given for end in answer.ends) <= sum(one.given) + coming

    def permits(
        self, waiting_behind: Callable[[int], int] | None, buffered: int
    ) -> list[tuple[int, int, int]]:
        """Say how far those may go that give on the way.

        Args:
            waiting_behind: how many items wait of what a stage gives; `None` if nobody wants any.
            buffered: how many may.

        Returns:
            For those that have to be told: the unit, which of its items, and up to which number.
        """
        told = [(unit, offset, ENOUGH) for unit, offset in sorted(self._unwanted)]
        self._unwanted.clear()
        by_stage: dict[int, list[tuple[int, _Unit]]] = {}
        for unit, one in self._units.items():
            if one.began:
                by_stage.setdefault(one.stage, []).append((unit, one))
        for stage, units in by_stage.items():
            free, idle = None, False
            if waiting_behind is not None:
                waiting = waiting_behind(stage)
                out = sum(max(0, one.may[one.at] - one.given[one.at]) for _, one in units)
                free, idle = buffered - waiting - out, not waiting
            for unit, one in units:
                may, given = one.may[one.at], one.given[one.at]
                if free is None or may == ENOUGH:
                    may = ENOUGH
                elif free > 0 and may - given <= self.allowance // 2:
                    # No more at once: one that is slow must not keep what others could use.
                    share = max(1, min(self.allowance, free // len(units)))
                    may = max(may, given) + share
                    free -= share
                elif idle and may <= given:
                    # Others have leave to give all that may wait, and do not.
                    may = given + max(1, self.allowance // 8)
                if may != one.may[one.at] or one.again:
                    one.may[one.at], one.again = may, False
                    told.append((unit, one.at, may))
        return told
