"""What is known of a run: what is open and where it waits, what has ended, why it stopped.

State grows with what is open: a finished list leaves counts behind, not itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from evolve_tasks.core.actions import (
    HELD,
    Action,
    Expand,
    Extra,
    Follow,
    Forget,
    Found,
    ItemDone,
    Process,
    Release,
    SourceDone,
    Turn,
)
from evolve_tasks.core.budget import FailureBudget, Standing
from evolve_tasks.core.lists import ListId, OpenList, StageTally
from evolve_tasks.core.outlook import Outlook
from evolve_tasks.core.progress import Progress
from evolve_tasks.core.suspects import Suspect, Suspects, parts
from evolve_tasks.core.window import Window

# Items in one unit at the most, where only units are bounded: beyond it nothing is gained.
LARGEST_UNIT = 100_000


class OpenTree:
    """The tree of sources, lists and items, as far as it is open, with its counts.

    Its arguments are those of `Evolution`, which says what comes of them.
    """

    # More attributes than a dictionary of an instance shares with others: a tenth of a
    # decision went into finding them.
    __slots__ = (
        "_all_waits",
        "_alone",
        "_batch",
        "_budget",
        "_buffered",
        "_expanding",
        "_expanding_units",
        "_expansions",
        "_expansions_failed",
        "_extras",
        "_extras_failed",
        "_extras_flying",
        "_flying",
        "_follows",
        "_forks",
        "_full_above",
        "_full_inline",
        "_full_places",
        "_given",
        "_giving",
        "_held",
        "_hurried",
        "_item_forks",
        "_items",
        "_items_tally",
        "_largest_unit",
        "_last",
        "_leads_on",
        "_limit_due",
        "_lists",
        "_lists_of",
        "_max_depth",
        "_max_items",
        "_next_unit",
        "_of_level",
        "_outlook",
        "_parties",
        "_places",
        "_pulling",
        "_sources_ended",
        "_sources_known",
        "_stop_due",
        "_streaming",
        "_suspects",
        "_told_of",
        "_turns",
        "_uncounted",
        "_units",
        "_waiting",
        "_waits",
        "_window",
        "limited",
        "paused",
        "roots",
        "stopped",
        "tallies",
        "too_deep",
    )

    def __init__(
        self,
        *,
        stages: int,
        window: Window,
        buffered: int,
        batch: int | None,
        budget: FailureBudget,
        sources_known: int | None = None,
        item_s: float | None = None,
        max_items: int | None = None,
        max_depth: int | None = None,
        leads_on: bool = False,
        told_of: Collection[int] = (),
        streaming: Collection[int] = (),
    ) -> None:
        self.tallies = [StageTally() for _ in range(stages)]
        self._items_tally = self.tallies[-1]
        self.roots = StageTally()  # the sources, which stand in the first of these, too
        self.too_deep = 0  # items that were left because they are below the deepest level
        self.stopped: str | None = None
        self.limited: str | None = None  # why some items were left where they are
        self._max_items = max_items
        self._max_depth = max_depth
        self._told_of = frozenset(told_of)
        # The last stage finds work, as far as anybody knows.
        self._leads_on = leads_on or max_depth is not None
        self._held: dict[int, list[ListId]] = {}  # what was found and held back, by depth
        self._of_level: deque[ListId] = deque()  # of this, what the present level has left
        self._follows: dict[int, Follow] = {}  # and what is being taken apart, by unit
        self._last = stages - 1
        self._window = window
        self._buffered = buffered
        self._batch = batch
        self._budget = budget
        self._sources_known = sources_known
        self._outlook = Outlook(stages, item_s)
        self._items = self._outlook.durations[self._last]
        self._lists: dict[ListId, OpenList] = {}
        self._lists_of: dict[int, int] = {}  # lists of a unit that are still open
        self._given: dict[int, int] = {}  # lists that a unit in flight gave
        self._streaming = frozenset(streaming)
        self._giving = [0] * (stages - 1)  # sources and items in such units, by stage
        # What is open right below a source beyond the first: lists, and the unit that expands it.
        self._forks: dict[int, int] = {}
        self._item_forks: dict[tuple[ListId, int], int] = {}  # and below items that are told of
        self._waiting: list[deque[ListId]] = [deque() for _ in range(stages)]
        self._waits = [0] * stages  # items that wait for a stage
        self._all_waits = 0
        # Of those that wait for being expanded, which the last stage has found, by stage.
        self._uncounted = [0] * stages
        self._units: dict[int, Expand | Process | Extra] = {}
        self._places = 0  # of the window that they take: those that go together take one
        self._parties: dict[int, int] = {}  # how many of these are left, by the first of them
        self._extras: deque[int] = deque()  # what was asked for, and has not begun
        self._extras_flying = 0
        self._extras_failed = 0
        self._next_unit = 0
        self._flying = 0
        self._expanding = [0] * self._last  # sources and items, by stage
        self._expanding_units = [0] * self._last
        self._expansions = 0  # all of these units; those that go together count as one
        self._expansions_failed = 0
        self._pulling = 0
        self._sources_ended = False
        self._stop_due: str | None = None
        self._limit_due = False
        self.paused = False
        # A batch that was given stays whole, also where it is larger.
        self._largest_unit = max(LARGEST_UNIT, batch or 0)
        self._turns: dict[int, Turn] = {}
        self._hurried = False
        self._suspects = Suspects()
        self._alone: int | None = None  # unit beside which nothing may be in flight
        # As long as more items wait than this no source is taken; and the longest list that was
        # worked on where it was found when that was so. Where ten thousand threads work on single
        # items most decisions are about the next one, and would ask in vain for another source.
        self._full_above: float | None = None
        self._full_inline = 0
        # Beside that, the places that batches may fill without a look at anything else; 0 where
        # there is something else. Whatever changes this comes with an event that looks at all.
        self._full_places = 0

    # -- what it can be asked ---------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is in flight, waiting or still to come."""
        over = self._sources_ended or (self.closed and not self._pulling)
        return over and not self._open

    @property
    def only_extras(self) -> bool:
        """Whether nothing is left but what was asked for beside the stages."""
        over = self._sources_ended or (self.closed and not self._pulling)
        units = len(self._units) - self._extras_flying
        if not over or units or self._lists:
            return False
        return not (self._suspects and self._suspects.any_up_to(self._last))

    @property
    def closed(self) -> bool:
        """Whether no further source is wanted."""
        return self.stopped is not None or self.limited is not None

    @property
    def left_out(self) -> str | None:
        """Why not all that is known was begun; `None` if all was."""
        reasons = [self.stopped, self.limited]
        if self.too_deep:
            deeper = f"{self.too_deep:,} item{'' if self.too_deep == 1 else 's'} lie deeper"
            reasons.append(f"limits.max_depth={self._max_depth} was reached, and {deeper}")
        return "; ".join(reason for reason in reasons if reason) or None

    @property
    def flying(self) -> int:
        """Items in flight."""
        return self._flying

    @property
    def waiting(self) -> int:
        """Items discovered and not submitted."""
        return self._all_waits

    def waiting_behind(self, stage: int) -> int:
        """Items discovered and not submitted that what a stage gives comes to, at any depth."""
        return sum(self._waits[stage + 1 :]) - sum(self._uncounted[stage + 1 :])

    def turn(self, unit: int) -> Turn:
        """When this expansion runs beside the items that were submitted before it."""
        return self._turns.get(unit, Turn.BEHIND)

    @property
    def item_s(self) -> float | None:
        """Seconds that an item of the last stage takes; `None` before any was measured."""
        return self._items.mean_s

    @property
    def probing(self) -> bool:
        """Whether work is held back until it is known how long items take."""
        if self._items.mean_s is not None or self._hurried:
            return False
        if self._batch is not None or self._window.in_flight is not None:
            return False
        return self._outlook.awaits_items

    @property
    def pulling(self) -> bool:
        """A `Pull` is not answered yet."""
        return self._pulling > 0

    @property
    def expected_items(self) -> int:
        """Items of the last stage that wait, and that known sources are expected to lead to."""
        to_come = max(0, (self._sources_known or 0) - self.roots.discovered)
        return self._below([to_come + self._waits[0], *self._waits[1:]])

    def _below(self, expandable: Sequence[int]) -> int:
        """Items that so many of each stage lead to, as far as anybody knows."""
        *inner, items = expandable
        for stage, number in enumerate(inner):
            if number:
                items += number * (self._outlook.items_below(stage) or 0)
        return items

    @property
    def progress(self) -> Progress:
        """How far it is; the one thing here that another thread may ask for."""
        roots, last = self.roots, self.tallies[self._last]
        known = roots.discovered if self._sources_ended else self._sources_known
        open_ones = [tally.discovered - tally.ended for tally in self.tallies[: self._last]]
        open_ones[0] += max(0, (known or 0) - roots.discovered)
        return Progress(
            sources=roots.discovered,
            sources_ended=roots.ended,
            sources_known=known,
            discovered=last.discovered,
            done=last.done,
            failed=last.failed,
            resumed=last.resumed,
            not_run=last.not_run,
            unseen=0 if self.closed else self._below([*open_ones, 0]),
            finished=self.finished,
        )

    @property
    def sources(self) -> int:
        """Sources that arrived."""
        return self.roots.discovered

    @property
    def standing(self) -> Standing:
        """What the failure policy looks at."""
        last = self.tallies[self._last]
        lost = self._expansions_failed + self._extras_failed
        return Standing(
            failed=last.failed + lost,
            known=last.discovered + lost,
            complete=not (any(self._expanding) or self._expandable())
            and (self._sources_ended or self.limited is not None)
            and not (self._leads_on and self.limited is None and self._open),
        )

    @property
    def _open(self) -> bool:
        """Whether anything has not ended."""
        return bool(self._units or self._lists or self._suspects or self._extras)

    @property
    def rejected(self) -> bool:
        """Whether the policy wants the run, now over, to raise."""
        return self._budget.rejects(self.standing)

    def size_of(self, unit: int, offset: int) -> int:
        """Items of a list that is open."""
        return self._lists[unit, offset].size

    # -- lists open and close ---------------------------------------------------------------

    def _goes_on(self, stage: int) -> bool:
        """Whether items of a stage are still worked on."""
        return self.stopped is None and (self.limited is None or stage == self._last)

    def _judge(self) -> None:
        # `stop` empties the queues; its actions must not be lost, so _fill delivers them.
        if self.stopped is None and (why := self._budget.exceeded(self.standing)):
            self._stop_due = why

    def _expandable(self) -> bool:
        """Whether items of an expanding stage wait."""
        inner = any(self._waiting[: self._last])
        return inner or self._suspects.expands(self._last)

    def _depth_of(self, action: Expand | Process) -> int:
        """How often the last stage has led to what a unit works on."""
        return self._lists[action.parent, action.offset].depth if action.parent >= 0 else 0

    def _take(self, size: int, ended: int) -> int:
        """Discover items within the limit; what has ended already has been discovered."""
        if self._max_items is None:
            return size
        known = sum(tally.discovered for tally in self.tallies) - self.roots.discovered
        taken = max(ended, min(size, self._max_items - known))
        if taken < size and self.limited is None:
            self.limited = f"limits.max_items={self._max_items:,} was reached, and there was more"
            self._limit_due = True
        return taken

    def _discover(
        self,
        action: Expand | Process,
        place: int,
        stage: int,
        offset: int,
        found: Found,
        depth: int,
    ) -> int:
        """Take in a list that was found, and say how many lists are open by that: one or none.

        Args:
            action: the unit that found it.
            place: its place among the lists of that unit.
            stage: the stage that is to work on it.
            offset: which of the unit's items gave it.
            found: what is in it, and what has ended.
            depth: how often the last stage has led to it.
        """
        if stage == HELD:
            return self._hold(action, place, offset, depth)
        tally = self.tallies[stage]
        ended = found.ended - found.repeated
        if self._max_depth is not None and depth > self._max_depth:
            self.too_deep += found.size - found.ended
            taken = ended
        else:
            taken = self._take(found.size - found.repeated, ended)
        self._leads_on = self._leads_on or depth > 0
        tally.discovered += taken
        tally.done += ended - found.failed - found.not_run - found.resumed
        tally.failed += found.failed
        tally.not_run += found.not_run
        tally.resumed += found.resumed
        left = taken - ended
        if not self._goes_on(stage):
            tally.not_run += left
            left = 0
        if left:
            # Where a worker died with what gave them, they may have been at work already.
            crashes = action.crashes if isinstance(action, Expand) else 0
            source, parent, position = place_of(action, offset)
            identity = action.unit, place
            self._open_list(identity, stage, source, parent, found, left, crashes, depth, position)
        return bool(left)

    def _hold(self, action: Expand | Process, place: int, offset: int, depth: int) -> bool:
        """Keep what was found until its level begins; there is nothing to do with it before."""
        self._leads_on = True
        if self.closed:
            return False  # it is left where it is
        source, parent, position = place_of(action, offset)
        identity = action.unit, place
        self._lists[identity] = OpenList(HELD, source, parent, 1, deque(), 1, 0, depth, position)
        self._lists_of[action.unit] = self._lists_of.get(action.unit, 0) + 1
        self._held.setdefault(depth, []).append(identity)
        return True

    def _drop_held(self, actions: list[Action]) -> None:
        """Leave what was held back where it is."""
        left = list(self._of_level)
        for identities in self._held.values():
            left += identities
        self._of_level.clear()
        self._held.clear()
        for identity in left:
            self._close(actions, identity, 1)

    def _open_list(
        self,
        identity: ListId,
        stage: int,
        source: int,
        parent: ListId | None,
        found: Found,
        left: int,
        crashes: int = 0,
        depth: int = 0,
        place: int = 0,
    ) -> None:
        # Items begin anew: nobody knows whether any of them was at work when the worker died.
        crashes = min(crashes, 1)
        ranges = _first(found.ranges(), left)
        todo = deque() if found.orphaned else deque(ranges)
        self._lists[identity] = OpenList(
            stage, source, parent, found.stop, todo, left, crashes, depth, place
        )
        if found.orphaned:
            for start, stop in ranges:
                lost = Suspect(stage, source, identity, start, stop, crashes + 1)
                for part in parts(lost):
                    self._suspects.add(part, self._last)
        else:
            queue = self._waiting[stage]
            (queue.appendleft if depth else queue.append)(identity)
            self._waited(self._lists[identity], left)
        unit = identity[0]
        self._lists_of[unit] = self._lists_of.get(unit, 0) + 1

    def _waited(self, entry: OpenList, items: int) -> None:
        """So many more items of a list wait; or fewer, below 0."""
        self._waits[entry.stage] += items
        self._all_waits += items
        if entry.depth and entry.stage < self._last:
            self._uncounted[entry.stage] += items

    def _close(self, actions: list[Action], identity: ListId, items: int) -> None:
        """Some items of a list have ended; close what is complete, upwards."""
        parent: ListId | None = identity
        while parent is not None:
            identity = parent
            entry = self._lists[identity]
            entry.open -= items
            if entry.open:
                return
            del self._lists[identity]
            unit = identity[0]
            if unit in self._units:
                actions.append(Forget(*identity))
            self._lists_of[unit] -= 1
            if not self._lists_of[unit]:
                del self._lists_of[unit]
                if unit not in self._units:
                    actions.append(Release(unit))
            parent, items = entry.parent, 1
            if parent is not None and self._lists[parent].stage in self._told_of:
                self._close_item(actions, parent, entry.place, 0)
        self._close_source(actions, entry.source, 0)

    def _close_item(
        self, actions: list[Action], parent: ListId, position: int, opened: int
    ) -> None:
        """Do what `_close_source` does, for an item of an inner stage."""
        others = self._item_forks.pop((parent, position), 0) + opened
        if others > 1:
            self._item_forks[parent, position] = others - 1
        elif not others:
            actions.append(ItemDone(*parent, position))

    def _close_source(self, actions: list[Action], source: int, opened: int) -> None:
        """One of what is open right below a source has ended, and has opened so many others."""
        others = self._forks.pop(source, 0) + opened
        if others > 1:
            self._forks[source] = others - 1
        elif not others:
            actions.append(SourceDone(source))

    def stop(self, reason: str) -> list[Action]:
        """Start nothing more; what waits is counted as not run, what runs is still answered."""
        if self.stopped is not None:
            return []
        self.stopped = reason
        self._extras.clear()
        actions: list[Action] = []
        for suspect in self._suspects.take_all():
            self._drop(actions, suspect)
        self._drop_held(actions)
        # Deepest first: closing an inner list may close its parents with it.
        for stage in range(self._last, -1, -1):
            self._drop_waiting(actions, stage)
        return actions

    def _limit(self) -> list[Action]:
        """Expand nothing more: it would only find what is not taken."""
        actions: list[Action] = []
        self._drop_held(actions)
        for suspect in self._suspects.take_expansions(self._last):
            self._drop(actions, suspect)
        for stage in range(self._last - 1, -1, -1):
            self._drop_waiting(actions, stage)
        return actions

    def _drop(self, actions: list[Action], suspect: Suspect) -> None:
        """Count as not run what will not run again."""
        if suspect.stage > self._last:
            return  # no item of anybody's
        self.tallies[suspect.stage].not_run += suspect.size
        if suspect.parent is None:
            self.roots.not_run += suspect.size
            for position in range(suspect.start, suspect.stop):
                self._close_source(actions, position, 0)
        else:
            if suspect.stage in self._told_of:
                for position in range(suspect.start, suspect.stop):
                    self._close_item(actions, suspect.parent, position, 0)
            self._close(actions, suspect.parent, suspect.size)

    def _drop_waiting(self, actions: list[Action], stage: int) -> None:
        """Count as not run what waits for a stage."""
        queue = self._waiting[stage]
        while queue:
            identity = queue.popleft()
            entry = self._lists[identity]
            left = entry.waiting
            entry.todo.clear()
            self._waited(entry, -left)
            self.tallies[stage].not_run += left
            self._close(actions, identity, left)


def place_of(action: Expand | Process, offset: int) -> tuple[int, ListId | None, int]:
    """Source, list and position of one of the items of a unit; no list for a source."""
    position = action.start + offset
    if action.parent < 0:
        return position, None, position
    return action.source, (action.parent, action.offset), position


def _first(ranges: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """So many of the positions in some ranges, from the first on."""
    taken: list[tuple[int, int]] = []
    for start, stop in ranges:
        if count <= 0:
            break
        taken.append((start, min(stop, start + count)))
        count -= stop - start
    return taken
