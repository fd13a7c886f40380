"""What items of the last stage have found: it becomes lists of their unit, which the flow keeps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from evolve_tasks.core.actions import HELD, Expand, Follow, Found, Further, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.seen import KEY_BYTES
from evolve_tasks.journal import items_token
from evolve_tasks.known_before import KnownBefore
from evolve_tasks.leads import Find, Lead, Runs
from evolve_tasks.more import More
from evolve_tasks.under_way import UnderWay
from evolve_tasks.workers.calls import Discovery, SourceCall


class Held(NamedTuple):
    """What an item has found, held back.

    Args:
        finds: what it is.
        action: the unit that the item was in.
    """

    finds: list[Find]
    action: Expand | Process


@dataclass(slots=True)
class Following:
    """Takes apart what was found, for the core and for those who will work on it.

    Args:
        known: what need not be done again.
        under_way: what has begun.
        max_depth: how often the last stage may lead further; `None` for any number.
        told_of: inner stages of whose items it matters what each of them led to.
    """

    known: KnownBefore
    under_way: UnderWay
    max_depth: int | None
    told_of: Collection[int]
    _further: dict[int, list[Further]] = field(default_factory=dict)  # of units that ended
    # What is not compared before its level begins, by the list that stands for it.
    _held: dict[tuple[int, int], Held] = field(default_factory=dict)

    @property
    def by_level(self) -> bool:
        """Whether what was found is held back until all that lies less deep has ended.

        Of an item that is worked on once the shortest path counts where there is a deepest level.
        """
        return self.max_depth is not None and self.known.compares

    def of(self, unit: int) -> Sequence[Further]:
        """What is to be told to the core of a unit that has ended; asked once."""
        return self._further.pop(unit, ())

    def found(
        self,
        finds: list[Find],
        offset: int,
        call: SourceCall,
        discoveries: Sequence[Discovery],
        runs: Runs,
    ) -> dict[int, More]:
        """Note what items of a list have found; give it by position, without their results."""
        mores: dict[int, More] = {}
        for one in discoveries:
            items, at = one.items.value(), 0
            finds.append(Find(offset, call, 1, one.stage, one.owners, items, one.keys, runs))
            for position, count in one.owners:
                mores[position] = More(None, items[at : at + count], one.stage)
                at += count
        return mores

    def found_by(self, finds: list[Find], unit: int, first: int) -> list[Portion]:
        """Take in what items of a unit have found: its lists are those of the unit from `first`.

        Returns:
            What a journal has of it.
        """
        if not finds:
            return []
        action = self.under_way.units[unit][0]
        assert isinstance(action, Expand | Process), "the finds of others are nobody's items"
        if not self.by_level:
            return self._follow(finds, action, unit, first)
        self._further[unit] = self._hold(finds, action, unit, first)
        return []

    def held_back(self, follow: Follow) -> list[Portion]:
        """Take in what was held back until now, as lists of unit `follow.unit`."""
        finds, action = self._held.pop((follow.found_by, follow.place))
        return self._follow(list(finds), action, follow.unit, 0)

    def _hold(
        self, finds: Sequence[Find], action: Expand | Process, unit: int, first: int
    ) -> list[Further]:
        """Hold finds back, and give what stands for them, from place `first` of the unit on."""
        by_item: dict[tuple[int, int], list[Find]] = {}
        for find in finds:
            by_item.setdefault((find.offset, find.levels), []).append(find)
        further = []
        for place, ((offset, levels), held) in enumerate(by_item.items(), first):
            # Levels are counted from there again when they are followed.
            self._held[unit, place] = Held([one._replace(levels=1) for one in held], action)
            further.append(Further(HELD, Found(1), offset, levels))
        return further

    def _follow(
        self, finds: list[Find], action: Expand | Process, unit: int, first: int
    ) -> list[Portion]:
        leads: list[Lead] = []
        further: list[Further] = []
        portions: list[Portion] = []
        together: dict[tuple[int, int, int], Lead] = {}
        most, by_level, recalled_finds = self.max_depth, self.by_level, list[Find]()
        # Of different sources, or somebody asks what came of each.
        apart = action.parent < 0 or action.stage in self.told_of
        for find in finds:  # which grows
            seen = self.known.seen
            # It may be met again where it is not too deep.
            too_deep = most is not None and find.call.depth >= most
            at = 0
            if find.stage < self.known.last:
                kind = find.offset if apart else 0, find.stage, find.levels
                lead = together.setdefault(kind, Lead([], None, []))
                new = range(len(find.items))
                fresh = set(
                    new if seen is None else seen.fresh(find.stage, find.keys, left=too_deep)
                )
                for position, count in find.owners:
                    run = find.runs.of(find.call, position)
                    for number in range(count):
                        if at in fresh:
                            lead.items.append(find.items[at])
                            lead.places.append((find.call, position, number))
                            lead.runs.append(run)
                        at += 1
                continue
            for position, count in find.owners:
                owner = find.call.item(position).deeper()
                items = find.items[at : at + count]
                keys = find.keys[at * KEY_BYTES : (at + count) * KEY_BYTES]
                at += count
                found = Found(count)
                if too_deep:
                    if seen is not None:
                        met = count - len(seen.fresh(self.known.last, keys, left=True))
                        found = Found(count, met, repeated=met)
                else:
                    share, recalled = self.known.share(
                        self.known.resuming is not None,
                        self.known.last,
                        owner,
                        count,
                        keys,
                        partial(items_token, items),
                    )
                    found = share.of(found)
                    # What a journal has led further, too.
                    portions += self.known.recalled(
                        recalled_finds if by_level else finds,
                        find.offset,
                        find.levels + 1,
                        owner,
                        recalled,
                    )
                self.known.note_keys(unit, first + len(leads), keys)
                run = find.runs.of(find.call, position)
                leads.append(Lead(items, owner, [], run=run))
                further.append(Further(self.known.last, found, find.offset, find.levels))
        for (offset, stage, levels), lead in together.items():
            if lead.items:
                leads.append(lead)
                further.append(Further(stage, Found(len(lead.items)), offset, levels))
        further += self._hold(recalled_finds, action, unit, first + len(leads))
        self.under_way.leads.add(unit, leads, first)
        self._further[unit] = further
        return portions
