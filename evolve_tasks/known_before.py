"""What of a run need not be done: a journal has it, or the run has met it before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evolve_tasks.beside import Beside
from evolve_tasks.core.actions import Expand, Found, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.seen import Seen, key_at, ranges
from evolve_tasks.leads import Find, Share, between
from evolve_tasks.more import More
from evolve_tasks.naming import short_repr
from evolve_tasks.resuming import Recalled, Resuming
from evolve_tasks.under_way import UnderWay
from evolve_tasks.workers.calls import SourceCall, SourceEnd
from evolve_tasks.workers.keys import keys_of


@dataclass(slots=True)
class KnownBefore:
    """Compares what is found with what was met, and with what the journal has.

    Args:
        last: position of the last stage.
        seen: what the run has met; `None` where nothing is compared.
        key: the user's function that says what makes two items the same.
        resuming: the journal of the run; `None` if it has none.
        under_way: what has begun.
        beside: takes results that need not be worked out again.
        logger: is told what cannot be compared, and what is known.
    """

    last: int
    seen: Seen | None
    key: Callable[[Any], Any] | None
    resuming: Resuming | None
    under_way: UnderWay
    beside: Beside
    logger: logging.Logger | Any
    _sources: dict[int, tuple[int, Recalled]] = field(default_factory=dict)  # known in whole
    _met: set[int] = field(default_factory=set)  # sources that are equal to others
    _shares: dict[tuple[int, int], Share] = field(default_factory=dict)  # by unit and list
    # What items are known by in a journal, by the unit that gave them and their list.
    _keys: dict[int, dict[int, bytes]] = field(default_factory=dict)

    @property
    def compares(self) -> bool:
        """Whether the run compares what it meets."""
        return self.seen is not None

    @property
    def repeated(self) -> int:
        """How much was found again."""
        return 0 if self.seen is None else sum(self.seen.repeated)

    def source_arrived(self, position: int, source: Any, label: str) -> bool:
        """Take in a source; say whether it need not be worked on."""
        known = None if self.resuming is None else self.resuming.arrived(position, source, label)
        if known is None and self.seen is not None and self._repeats(self.seen, source):
            known = 0, []
            self._met.add(position)
        if known is None:
            return False
        self._sources[position] = known
        self.logger.debug("Source %d is known, with %d items", position, known[0])
        return True

    @property
    def journaled(self) -> bool:
        """Whether results are noted for a journal."""
        return self.resuming is not None

    def is_met(self, position: int) -> bool:
        """Whether a source is equal to one that came before: what it leads to is that one's."""
        return position in self._met

    def source_done(self, position: int) -> None:
        """Forget a source that has ended."""
        self._sources.pop(position, None)
        self._met.discard(position)
        if self.resuming is not None:
            self.resuming.source_done(position)

    def released(self, unit: int) -> None:
        """Forget a unit, none of whose lists is open."""
        self._keys.pop(unit, None)

    def keys(self, unit: int, place: int) -> bytes:
        """What the items of a list are known by in the journal; nothing for their places."""
        return self._keys.get(unit, {}).get(place, b"")

    def note_keys(self, unit: int, place: int, keys: bytes) -> None:
        """Note that, where a journal knows items by themselves."""
        if self.seen is not None and self.resuming is not None:
            self._keys.setdefault(unit, {})[place] = keys

    def _repeats(self, seen: Seen, source: Any) -> bool:
        """Whether an equal source has come before; one that nobody can compare has not."""
        try:
            keys = keys_of(self.key, [source])
        except Exception as error:
            self.logger.warning(
                "unique=True cannot compare source %s with others (%s); it is worked on",
                short_repr(source),
                error,
            )
            return False
        return not seen.fresh(0, keys)

    def partly(self, calls: Sequence[SourceCall]) -> bool:
        """Whether a journal may have some items of what is expanded, and not all."""
        resuming = self.resuming
        return resuming is not None and any(
            not call.known and resuming.knows(call.index) for call in calls
        )

    def take_over(
        self, finds: list[Find], action: Expand, offset: int, call: SourceCall, end: SourceEnd
    ) -> list[Portion]:
        """What of a list need not be begun: a journal has it, or it was met before."""
        if call.known:
            return self.recalled(finds, offset, 1, call, self._sources[call.position][1])
        below = action.stage + 1
        sure = end.failure is None and not end.skipped
        journaled = self.resuming is not None and below == self.last and sure
        if not (journaled or self.seen is not None):
            return []
        share, recalled = self.share(journaled, below, call, end.size, end.keys, lambda: end.token)
        if end.ended and self.seen is None:
            return []  # it was worked on where it was found
        self._shares[action.unit, offset] = share
        if journaled:
            self.note_keys(action.unit, offset, end.keys)
        return self.recalled(finds, offset, 1, call, recalled)

    def share(
        self,
        journaled: bool,
        stage: int,
        call: SourceCall,
        size: int,
        keys: bytes,
        token: Callable[[], str],
    ) -> tuple[Share, Recalled]:
        """What of the list that `call` gave is new, and what a journal has of that."""
        resuming = self.resuming if journaled else None
        if self.seen is None:
            recalled = []
            if resuming is not None:
                recalled = resuming.expanded(call.index, call.label, size, token())
            known = [(start, stop) for start, stop, _ in recalled]
            return Share(size, 0, tuple(between(known, size))), recalled
        fresh, recalled = self.seen.fresh(stage, keys), []
        if resuming is not None:
            for position in fresh:
                values = resuming.met(call.position, key_at(keys, position))
                if values:
                    recalled.append((position, position + 1, values))
        known_ones = {position for position, _, _ in recalled}
        left = ranges([position for position in fresh if position not in known_ones])
        return Share(size, size - len(fresh), left), recalled

    def recalled(
        self, finds: list[Find], offset: int, levels: int, call: SourceCall, recalled: Recalled
    ) -> list[Portion]:
        """Results that a journal has; what they led to is among the finds again."""
        portions = []
        for start, stop, values in recalled:
            plain, leading = [], []
            for place, value in enumerate(values, start):
                if isinstance(value, More):
                    items = list(value.items)
                    keys = b"" if self.seen is None else keys_of(self.key, items)
                    owners = [(place, len(items))]
                    finds.append(Find(offset, call, levels, value.stage, owners, items, keys))
                    leading.append(place)
                    value = value.value
                plain.append(value)
            source = self.under_way.source(call)
            self.beside.known(call.index, start, plain, set(leading))
            portion = Portion(
                call.position, source, start, stop, plain, resumed=True, inner=call.inner
            )
            portions += portion.cut_after(leading)
        return portions

    def resumed(self, action: Expand | Process, found: list[Found]) -> list[Found]:
        """The same with what a journal has of it, and without what was met before."""
        for offset, call in enumerate(self.under_way.calls[action.unit]):
            if call.known:
                size, _ = self._sources.pop(call.position)
                met = call.position in self._met
                found[offset] = Found(size, size, resumed=size, known=not met)
            elif (share := self._shares.pop((action.unit, offset), None)) is not None:
                found[offset] = share.of(found[offset])
        return found

    def noted(self, portion: Portion, mores: Mapping[int, More], keys: bytes = b"") -> Portion:
        """Give a portion after its results were noted for the journal."""
        if self.resuming is not None:
            own = len(portion.index) + 1
            failed = {
                failure.index[-1] for failure in portion.failures if len(failure.index) == own
            }
            values = iter(portion.values)
            done: list[Any] = []
            for place in range(portion.start, portion.stop + 1):
                if place < portion.stop and place not in failed:
                    value = next(values)
                    if place in mores:
                        value = replace(mores[place], value=value)
                    if keys:
                        self.resuming.done_once(portion.position, key_at(keys, place), value)
                    else:
                        done.append(value)
                elif done:
                    self.resuming.done(portion.index, place - len(done), done)
                    done = []
        return portion
