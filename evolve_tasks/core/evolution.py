"""The state machine of a run: what is known, what may start next, when it is over.

Rules, in the order in which they are looked at:

1. Nothing starts once the run is stopped, or while it is paused; what is in flight is still
   answered.
2. What is in flight never exceeds the window: `in_flight` items (an expansion counts as one
   for each item it expands), `units` units. Where units alone are bounded and their sizes follow
   durations, the first ones find these out (`probing`): `AHEAD` of them for each thread, and no
   more of items than threads or lists, because small units are dear. If nothing ends for a moment
   (`waited`) what runs is long, and nothing is held back: a cluster that grows with its work has
   to see it.
3. Deeper before shallower: items of the last stage first, then inner expansions, then new
   sources. Within a depth, first come, first served; what the last stage has found goes before
   what was there (last come, first served). So memory follows a few paths of the tree, not the
   breadth of a level.
4. Nobody knows which parse is long, and all threads wait for one that is begun last. So beside
   items that wait an expansion is kept in flight for every other thread, as long as fewer
   than `AHEAD` lists for each thread wait. One thread has nothing to gain: strictly depth first.
   Where no item waits `AHEAD` expansions for each thread are in flight. They take their turn
   among the items (`keeps`). Up to `FEW` threads the window is filled, behind all items.
5. An expansion starts only if the items it is expected to give fit into `buffered`, or if
   no other one is in flight. So at most one fan-out stands above the bound where fan-outs
   are alike. Expected is the mean so far, and `UNKNOWN_FAN_OUT` before anything is known.
   Where only units are bounded, lists that are worked on where they are found do not wait:
   expected is then what such expansions have left. An inner list that is longer than the bound
   does not hold itself up: the bound is above it. What the last stage has found, and an earlier
   one is to expand, is not counted: nobody can hold it back.
6. A source is taken only when it can be submitted at once: sources are never buffered.
   One that comes in a pause, or while something has to run alone (8), waits until that is over.
7. How much goes into one unit is decided in `batching`, unless a number was given.
8. What a dead worker took down goes before all else, in the parts and with the care that
   `suspects` says: first beside everything, then alone. What gives on the way is alone until
   it gives something, and by that shows that it has got further. What was asked for beside the
   stages (`add_extra`) comes next, and counts as one item.
9. No more than `max_items` items are discovered. What is found beyond them is left where it is,
   and nothing is expanded any more; what was discovered is worked on. What the last stage finds
   below `max_depth` is left, too.

State grows with what is open: a finished list leaves counts behind, not itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace

from evolve_tasks.core.actions import (
    Action,
    Expand,
    Extra,
    Forget,
    Found,
    Further,
    Process,
    Pull,
    Release,
    SourceDone,
)
from evolve_tasks.core.batching import inline_items, unit_size
from evolve_tasks.core.budget import FailureBudget, Standing
from evolve_tasks.core.lists import ListId, OpenList, StageTally
from evolve_tasks.core.outlook import Outlook
from evolve_tasks.core.progress import Progress
from evolve_tasks.core.suspects import Suspect, Suspects, divided, guilty, parts
from evolve_tasks.core.window import Window
from evolve_tasks.errors import IllegalEvent

# Expansions in flight for each thread, where no item waits: one that runs, and one behind it while
# the flow is told. And lists that wait for each thread: enough work to hide a long parse behind.
AHEAD = 2

# On so few threads a long parse that is begun late costs little, and they may be the first of a
# cluster that grows with its work: it has to see all that the window holds.
FEW = 2

# Sources in one unit at the most: their names and results still make a readable, small answer.
LARGEST_GROUP = 1_000

# Items in one unit at the most, where only units are bounded: beyond it nothing is gained.
LARGEST_UNIT = 100_000


class Evolution:
    """Events in, actions out; one thread tells it what happened and does what it answers.

    Args:
        stages: number of stages (N >= 2); all but the last expand.
        window: how much may be in flight.
        buffered: items that may be discovered and not submitted (N >= 1).
        batch: items of the last stage in one `Process` (N >= 1; never above `in_flight`), and
            one source in each `Expand`; `None` lets measured durations decide both.
        budget: the failure policy.
        sources_known: how many sources there are, if that is known beforehand.
        item_s: seconds that an item of the last stage takes, if somebody has measured it.
        max_items: items, beside the sources, that may be discovered (N >= 1).
        max_depth: how often the last stage may lead further, one below the other (N >= 1).

    Example:
        >>> from evolve_tasks.core.budget import Finish
        >>> window = Window(in_flight=4)
        >>> evolution = Evolution(stages=2, window=window, buffered=10, batch=2, budget=Finish())
        >>> evolution.begin()
        [Pull(most=1)]
        >>> evolution.sources_arrived(1)[0].stop
        1
    """

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
    ) -> None:
        self.tallies = [StageTally() for _ in range(stages)]
        self._items_tally = self.tallies[-1]
        self.roots = StageTally()  # the sources, which stand in the first of these, too
        self.too_deep = 0  # items that were left because they are below the deepest level
        self.stopped: str | None = None
        self.limited: str | None = None  # why some items were left where they are
        self._max_items = max_items
        self._max_depth = max_depth
        self._leads_on = max_depth is not None  # the last stage finds work
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
        # What is open right below a source beyond the first: lists, and the unit that expands it.
        self._forks: dict[int, int] = {}
        self._waiting: list[deque[ListId]] = [deque() for _ in range(stages)]
        self._waits = [0] * stages  # items that wait for a stage
        self._all_waits = 0
        self._uncounted = 0  # of those that wait for being expanded: the last stage found them
        self._units: dict[int, Expand | Process | Extra] = {}
        self._extras: deque[int] = deque()  # what was asked for, and has not begun
        self._extras_flying = 0
        self._extras_failed = 0
        self._next_unit = 0
        self._flying = 0
        self._expanding = [0] * self._last  # sources and items, by stage
        self._expansions = 0  # units of what is expanding
        self._expansions_failed = 0
        self._pulling = 0
        self._sources_ended = False
        self._stop_due: str | None = None
        self._limit_due = False
        self.paused = False
        # A batch that was given stays whole, also where it is larger.
        self._largest_unit = max(LARGEST_UNIT, batch or 0)
        self._kept: set[int] = set()
        self._hurried = False
        self._suspects = Suspects()
        self._alone: int | None = None  # unit beside which nothing may be in flight

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
        return over and not (units or self._lists or self._suspects)

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

    def keeps(self, unit: int) -> bool:
        """Whether this expansion takes its turn among the items, or else waits behind them all."""
        return unit in self._kept

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

    def gives_up(self, unit: int, running: Collection[int] | None = None) -> bool:
        """Whether a unit in flight is given up if its worker dies; else it runs again.

        Args:
            unit: the unit.
            running: positions that threads of the worker were at; `None` if nobody knows.
        """
        action = self._units[unit]
        if isinstance(action, Extra):
            return guilty(1, action.crashes + 1)
        if unit in self._given:
            return False  # it has come further than the time before
        begun = running is None or action.start in running
        return begun and guilty(action.stop - action.start, action.crashes + 1)

    # -- events -----------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """Start: answers with what to do first."""
        return self._fill([])

    def adopt(self, lists: Sequence[Found]) -> list[Action]:
        """Start with lists that somebody else has found, and no sources to come.

        Only items that have not ended are taken over; what did is in the finder's counts.
        """
        self._sources_ended = True
        actions: list[Action] = []
        unit = self._next_unit
        self._next_unit += 1
        for offset, found in enumerate(lists):
            self.tallies[self._last].discovered += found.size - found.ended
            if left := found.size - found.ended:
                self._open_list((unit, offset), self._last, offset, None, found, left)
        return self._fill(actions)

    def waited(self) -> list[Action]:
        """Nothing has ended for a moment: what runs is long, and nothing is held back for it."""
        self._hurried = True
        return self._fill([])

    def resize(self, window: Window) -> list[Action]:
        """Change the window, as when workers join or leave, or somebody asks for it."""
        self._window = window
        return self._fill([])

    def pause(self) -> list[Action]:
        """Begin nothing more until `resume`; what is in flight is still answered."""
        self.paused = True
        return []

    def resume(self) -> list[Action]:
        """Go on after a pause."""
        self.paused = False
        return self._fill([])

    def sources_arrived(
        self, count: int, *, ended: bool | None = None, awaited: bool = False
    ) -> list[Action]:
        """Answer a `Pull`: so many sources came.

        Args:
            count: how many.
            ended: there are no more; if not given, fewer than asked for means that.
            awaited: one more is being awaited; its place stays taken, and it is told of by
                another call.
        """
        if not self._pulling:
            raise IllegalEvent(f"{count} sources were reported though none had been asked for")
        if not 0 <= count <= self._pulling:
            raise IllegalEvent(f"{count} sources were reported, asked for were {self._pulling}")
        self._flying -= self._pulling
        self._expanding[0] -= self._pulling
        if ended is None:
            ended = count < self._pulling
        self._pulling = int(awaited)
        self._flying += self._pulling
        self._expanding[0] += self._pulling
        start = self.roots.discovered
        self.roots.discovered += count
        self.tallies[0].discovered += count
        self._sources_ended = self._sources_ended or ended
        actions: list[Action] = []
        if count and self.closed:
            self.roots.not_run += count
            self.tallies[0].not_run += count
            actions += [SourceDone(start + number) for number in range(count)]
        elif count and (self._quarantine or self.paused):
            waiting = Suspect(0, start, None, start, start + count, crashes=0)
            self._suspects.add(waiting, self._last)
        elif count:
            self._expand(actions, 0, start, None, start, start + count)
        if ended or self.limited is not None:
            self._judge()
        return self._fill(actions)

    def gave(self, unit: int, offset: int, found: Found) -> list[Action]:
        """Note what an `Expand` has given so far of one of its items; more may follow.

        Args:
            unit: the unit, which stays in flight. Each of these is one of its lists, from the
                number of its items on.
            offset: which of its items gave them.
            found: the items, from `found.start` on.
        """
        action = self._answer_expand(unit)
        size = action.stop - action.start
        if not 0 <= offset < size:
            raise IllegalEvent(f"unit {unit} of {size} items gave something for item {offset}")
        self._check(unit, [found])
        actions: list[Action] = []
        if self._alone == unit:
            self._alone = None  # what it gives has to be worked on, or it could not go on
        place = size + self._given.get(unit, 0)
        self._given[unit] = place + 1 - size
        depth = self._depth_of(action)
        if self._discover(action, place, action.stage + 1, offset, found, depth):
            source, parent = _place(action, offset)
            if parent is not None:
                self._lists[parent].open += 1
            else:
                self._forks[source] = self._forks.get(source, 0) + 1
        return self._fill(actions)

    def expanded(
        self,
        unit: int,
        found: Sequence[Found],
        *,
        seconds: float = 0.0,
        inline_s: float = 0.0,
        further: Sequence[Further] = (),
    ) -> list[Action]:
        """Answer an `Expand`: what each of its items gave.

        Args:
            unit: the unit.
            found: one entry for each item, in order.
            seconds: what expanding took, all of them together.
            inline_s: what working on items on the spot took, all of them together.
            further: what items that ended on the spot have found. Its lists are those of the
                unit after the ones of `found` and of `gave`.
        """
        action = self._answer_expand(unit)
        size = action.stop - action.start
        if len(found) != size:
            raise IllegalEvent(f"unit {unit} of {size} items was answered with {len(found)}")
        self._check(unit, [*found, *(one.found for one in further)])
        if not all(0 <= one.offset < size for one in further):
            raise IllegalEvent(f"unit {unit} of {size} items found {further} for others")
        depth = self._depth_of(action)
        first = size + self._given.get(unit, 0)
        self._answered(action)
        actions: list[Action] = []
        lists = [0] * size  # open ones, by the item that gave them
        begun = worked_on = 0
        for offset, one in enumerate(found):
            self._count_expansion(action, one)
            begun += not (one.skipped or one.known)
            if one.size or not (one.lost or one.skipped):
                worked_on += one.ended - one.not_run - one.resumed - one.repeated
                self._outlook.gave(action.stage, one.stop - one.repeated)
                if action.inline:
                    self._outlook.fan_outs[action.stage].add_left(one.size - one.ended)
                lists[offset] = self._discover(action, offset, action.stage + 1, offset, one, depth)
        for place, more in enumerate(further, first):
            lists[more.offset] += self._discover(
                action, place, more.stage, more.offset, more.found, depth + more.levels
            )
        for offset, opened in enumerate(lists):
            source, parent = _place(action, offset)
            if parent is not None:
                self._lists[parent].open += opened
                self._close(actions, parent, 1)
            else:
                self._close_source(actions, source, opened)
        if unit not in self._lists_of:
            actions.append(Release(unit))
        self._outlook.durations[action.stage].add(begun, seconds)
        if action.stage + 1 == self._last:
            self._outlook.durations[self._last].add(worked_on, inline_s)
        self._judge()
        return self._fill(actions)

    def expansion_lost(self, unit: int) -> list[Action]:
        """Answer an `Expand`: all of it failed at once, as when its worker died."""
        action = self._answer_expand(unit)
        size = action.stop - action.start
        return self.expanded(unit, [Found(lost=True)] * size)

    def processed(
        self,
        unit: int,
        *,
        failed: int = 0,
        not_run: int = 0,
        seconds: float = 0.0,
        further: Sequence[Further] = (),
    ) -> list[Action]:
        """Answer a `Process`: so many of its items failed or were not run, the rest is done.

        Args:
            unit: the unit.
            failed: how many failed.
            not_run: how many were not begun.
            seconds: what working on them took, all of them together.
            further: what they have found; its lists are those of the unit, in this order.
        """
        action = self._units.get(unit)
        if not isinstance(action, Process):
            raise IllegalEvent(f"unit {unit} was answered as a Process, in flight is {action!r}")
        size = action.stop - action.start
        done = size - failed - not_run
        if failed < 0 or not_run < 0 or done < 0:
            raise IllegalEvent(
                f"unit {unit} of {size} items ended with {failed} failed and {not_run} not run"
            )
        if further:
            self._check(unit, [one.found for one in further])
        self._answered(action)
        tally = self._items_tally
        tally.done += done
        tally.failed += failed
        tally.not_run += not_run
        self._items.add(done + failed, seconds)
        actions: list[Action] = []
        identity = action.parent, action.offset
        items = self._lists[identity]
        if further:
            for place, more in enumerate(further):
                depth = items.depth + more.levels
                items.open += self._discover(action, place, more.stage, 0, more.found, depth)
            if unit not in self._lists_of:
                actions.append(Release(unit))
        if items.open > size:
            items.open -= size
        else:
            self._close(actions, identity, size)
        if failed or further or self._leads_on:
            self._judge()
        return self._fill(actions)

    def add_extra(self, number: int) -> list[Action]:
        """Ask for something beside the stages; once the run is stopped nothing comes of it."""
        if self.stopped is None:
            self._extras.append(number)
        return self._fill([])

    def extra_ended(self, unit: int, *, failed: bool = False) -> list[Action]:
        """Answer an `Extra`: it is done, or it has failed."""
        action = self._units.get(unit)
        if not isinstance(action, Extra):
            raise IllegalEvent(f"unit {unit} was answered as an Extra, in flight is {action!r}")
        self._answered(action)
        self._extras_failed += failed
        if failed or self._leads_on:
            self._judge()
        return self._fill([])

    def failed_beside(self) -> None:
        """Note a failure of what goes with the items, and is none of theirs."""
        self._extras_failed += 1
        self._judge()

    def crashed(self, unit: int, running: Collection[int] | None = None) -> list[Action]:
        """Answer an `Expand` or a `Process`: its worker died, and with it all that it did.

        What was in it runs again (rule 8); a single one that `gives_up` named has failed.

        Args:
            unit: the unit.
            running: positions that threads of the worker were at; `None` if nobody knows.
        """
        action = self._units.get(unit)
        if action is None:
            raise IllegalEvent(f"unit {unit} crashed, and is not in flight")
        if isinstance(action, Extra):
            return self._extra_crashed(action)
        if running is not None and not set(running) <= set(range(action.start, action.stop)):
            raise IllegalEvent(f"unit {unit} ran {running}, which are not in {action}")
        if self.gives_up(unit, running):
            if isinstance(action, Expand):
                return self.expansion_lost(unit)
            return self.processed(unit, failed=1)
        crashes = 0 if unit in self._given else action.crashes
        self._answered(action)
        actions: list[Action] = []
        if isinstance(action, Expand) and unit not in self._lists_of:
            actions.append(Release(unit))
        parent = None if action.parent < 0 else (action.parent, action.offset)
        lost = Suspect(action.stage, action.source, parent, action.start, action.stop, crashes)
        self._again(actions, lost, running)
        self._judge()  # what is dropped finds nothing any more
        return self._fill(actions)

    def stop(self, reason: str) -> list[Action]:
        """Start nothing more; what waits is counted as not run, what runs is still answered."""
        if self.stopped is not None:
            return []
        self.stopped = reason
        self._extras.clear()
        actions: list[Action] = []
        for suspect in self._suspects.take_all():
            self._drop(actions, suspect)
        # Deepest first: closing an inner list may close its parents with it.
        for stage in range(self._last, -1, -1):
            self._drop_waiting(actions, stage)
        return actions

    # -- inside -----------------------------------------------------------------------------

    def _answer_expand(self, unit: int) -> Expand:
        action = self._units.get(unit)
        if not isinstance(action, Expand):
            raise IllegalEvent(f"unit {unit} was answered as an Expand, in flight is {action!r}")
        return action

    @property
    def _quarantine(self) -> bool:
        """Whether something has to run alone, or does."""
        return self._alone is not None or bool(self._suspects.single)

    def _extra_crashed(self, action: Extra) -> list[Action]:
        if self.gives_up(action.unit):
            return self.extra_ended(action.unit, failed=True)
        self._answered(action)
        if self.stopped is None:
            number = action.number
            lost = Suspect(self._last + 1, number, None, number, number + 1, action.crashes + 1)
            self._suspects.add(lost, self._last)
        return self._fill([])

    def _answered(self, action: Expand | Process | Extra) -> None:
        """A unit is not in flight any more."""
        del self._units[action.unit]
        if isinstance(action, Process):
            self._flying -= action.stop - action.start
        elif isinstance(action, Expand):
            size = action.stop - action.start
            self._flying -= size
            self._kept.discard(action.unit)
            self._expansions -= 1
            self._given.pop(action.unit, None)
            self._expanding[action.stage] -= size
        else:
            self._flying -= 1
            self._extras_flying -= 1
        if self._alone == action.unit:
            self._alone = None

    def _again(self, actions: list[Action], lost: Suspect, running: Collection[int] | None) -> None:
        """Let what a dead worker took down run again, unless it would be for nothing."""
        if not self._goes_on(lost.stage):
            self._drop(actions, lost)
            return
        for part in divided(lost, running, self._outlook.durations[lost.stage].mean_s):
            self._suspects.add(part, self._last)

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
            self._close(actions, suspect.parent, suspect.size)

    def _check(self, unit: int, found: Sequence[Found]) -> None:
        for one in found:
            if not one.adds_up():
                raise IllegalEvent(f"unit {unit} found {one}, which does not add up")

    def _count_expansion(self, action: Expand, one: Found) -> None:
        """Write down how the expansion of one item ended."""
        tallies = [self.tallies[action.stage]]
        if action.parent < 0:
            tallies.append(self.roots)
        for tally in tallies:
            if one.lost:
                tally.failed += 1
            elif one.skipped:
                tally.not_run += 1
            else:
                tally.done += not one.known
                tally.resumed += one.known
        self._expansions_failed += one.lost

    def _depth_of(self, action: Expand | Process) -> int:
        """How often the last stage has led to what a unit works on."""
        return self._lists[action.parent, action.offset].depth if action.parent >= 0 else 0

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
            source, parent = _place(action, offset)
            identity = action.unit, place
            self._open_list(identity, stage, source, parent, found, left, crashes, depth)
        return bool(left)

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
    ) -> None:
        # Items begin anew: nobody knows whether any of them was at work when the worker died.
        crashes = min(crashes, 1)
        ranges = _first(found.ranges(), left)
        todo = deque() if found.orphaned else deque(ranges)
        self._lists[identity] = OpenList(
            stage, source, parent, found.stop, todo, left, crashes, depth
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
            self._uncounted += items

    def _expand(
        self,
        actions: list[Action],
        stage: int,
        source: int,
        parent: ListId | None,
        start: int,
        stop: int,
        crashes: int = 0,
    ) -> None:
        inline = 0
        unbounded = self._batch is None and self._max_items is None
        # Where a worker died, items are kept apart from their source: one of them may be guilty.
        if unbounded and stage + 1 == self._last and not crashes:
            inline = inline_items(self.item_s)
        unit, offset = parent or (-1, 0)
        action = Expand(self._next_unit, stage, source, unit, offset, start, stop, inline, crashes)
        self._next_unit += 1
        self._units[action.unit] = action
        self._flying += stop - start
        self._expanding[stage] += stop - start
        self._expansions += 1
        if self._expansions <= AHEAD * self._window.busy_threads:
            self._kept.add(action.unit)
        actions.append(action)

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
        self._close_source(actions, entry.source, 0)

    def _close_source(self, actions: list[Action], source: int, opened: int) -> None:
        """One of what is open right below a source has ended, and has opened so many others."""
        others = self._forks.pop(source, 0) + opened
        if others > 1:
            self._forks[source] = others - 1
        elif not others:
            actions.append(SourceDone(source))

    def _goes_on(self, stage: int) -> bool:
        """Whether items of a stage are still worked on."""
        return self.stopped is None and (self.limited is None or stage == self._last)

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

    def _limit(self) -> list[Action]:
        """Expand nothing more: it would only find what is not taken."""
        actions: list[Action] = []
        for suspect in self._suspects.take_expansions(self._last):
            self._drop(actions, suspect)
        for stage in range(self._last - 1, -1, -1):
            self._drop_waiting(actions, stage)
        return actions

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

    def _judge(self) -> None:
        # `stop` empties the queues; its actions must not be lost, so _fill delivers them.
        if self.stopped is None and (why := self._budget.exceeded(self.standing)):
            self._stop_due = why

    def _expandable(self) -> bool:
        """Whether items of an expanding stage wait."""
        inner = any(self._waiting[: self._last])
        return inner or self._suspects.expands(self._last)

    def _room(self) -> int:
        """Items that may still be submitted."""
        window = self._window
        units = window.units
        if units is not None:
            if self._items.mean_s is None and self.probing:
                units = min(units, AHEAD * window.busy_threads)
            if len(self._units) + (self._pulling > 0) >= units:
                return 0
        if window.in_flight is not None:
            return window.in_flight - self._flying
        return self._largest_unit

    def _fill(self, actions: list[Action]) -> list[Action]:
        """Use the room in the window, by the rules at the top of this file."""
        if self._limit_due and self.stopped is None:
            self._limit_due = False
            actions += self._limit()
            self._judge()  # nothing more can be found now
        if self._stop_due is not None:
            why, self._stop_due = self._stop_due, None
            actions += self.stop(why)
        if self.stopped is not None or self.paused:
            return actions
        suspects, leaves = self._suspects, self._waiting[self._last]
        if self._alone is not None or suspects.single:
            if suspects.single and not self._units:
                self._alone = self._next_unit
                self._run_again(actions, suspects.single.popleft())
            return actions
        while (room := self._room()) > 0:
            if suspects.items or suspects.expansions:
                if self._start_again(actions, room):
                    continue
                if suspects.items:
                    break  # they wait for room, and nothing takes it from them
            if self._extras:
                self._do_extra(actions, self._extras.popleft(), 0)
                continue
            expansions = self._expansions + (self._pulling > 0)
            more = expansions < self._most_expansions(len(leaves)) and not suspects.expansions
            # Where items of the last stage alone are above the bound there is nothing to look for.
            inner = self._all_waits - self._waits[self._last]
            more = more and (inner > 0 or self._all_waits <= self._buffered)
            if more and self._start_expansion(actions, room):
                continue
            if not leaves or not self._process(actions, leaves, room):
                break
        return actions

    def _most_probes(self) -> int:
        """Units of items that may be in flight before it is known how long an item takes."""
        # Lists are at different workers, and items where their list is.
        return max(self._window.busy_threads, self._outlook.fan_outs[-1].known)

    def _most_expansions(self, lists: int) -> int:
        """Expansions that may be in flight while the items of so many lists wait."""
        threads = self._window.busy_threads
        if not lists:
            return AHEAD * threads if self._window.threads > FEW else LARGEST_UNIT
        if lists >= AHEAD * threads:
            return 0
        most = threads // 2
        if self._window.in_flight is not None:
            # A batch that waits must find its room, however large it is.
            most = min(most, self._window.in_flight - self._largest_batch())
        return most

    def _ceiling(self) -> int:
        """Largest unit that leaves something for every thread."""
        if self._window.in_flight is None:
            return LARGEST_UNIT
        return max(1, self._window.in_flight // (2 * max(1, self._window.threads)))

    def _largest_batch(self) -> int:
        """Items in one batch at the most."""
        if self._batch is None:
            return self._ceiling()
        return min(self._batch, self._window.in_flight or self._batch)

    def _process(self, actions: list[Action], leaves: deque[ListId], room: int) -> bool:
        """Submit the next batch; False if it has to wait for room, so that it stays whole."""
        item_s = self._items.mean_s
        if item_s is None and self.probing:
            batches = len(self._units) - self._expansions - self._extras_flying
            if batches >= self._most_probes():
                return False
        identity = leaves[0]
        entry = self._lists[identity]
        start, stop = entry.todo[0]
        if self._batch is None:
            threads, ceiling = self._window.threads, self._ceiling()
            size = unit_size(item_s, self._waits[self._last], threads, ceiling)
        else:
            size = self._largest_batch()
        if size > stop - start:
            size = stop - start
        if size > room:
            return False
        if start + size < stop:
            entry.todo[0] = start + size, stop
        else:
            entry.todo.popleft()
            if not entry.todo:
                leaves.popleft()
        self._waits[self._last] -= size
        self._all_waits -= size
        self._submit(actions, entry.source, identity, start, start + size, entry.crashes)
        return True

    def _submit(
        self,
        actions: list[Action],
        source: int,
        parent: ListId,
        start: int,
        stop: int,
        crashes: int,
    ) -> None:
        unit, offset = parent
        action = Process(self._next_unit, self._last, source, unit, offset, start, stop, crashes)
        self._next_unit += 1
        self._units[action.unit] = action
        self._flying += stop - start
        actions.append(action)

    def _do_extra(self, actions: list[Action], number: int, crashes: int) -> None:
        action = Extra(self._next_unit, number, crashes)
        self._next_unit += 1
        self._units[action.unit] = action
        self._flying += 1
        self._extras_flying += 1
        actions.append(action)

    def _start_again(self, actions: list[Action], room: int) -> bool:
        """Run the next part that was lost with a worker; False if none may begin."""
        items, expansions = self._suspects.items, self._suspects.expansions
        if items:
            if items[0].size > room and self._units:
                return False  # it stays whole, like any batch
            self._run_again(actions, self._cut(items, room))
            return True
        if expansions and (most := min(room, self._may_expand_again(expansions[0].stage))) > 0:
            self._run_again(actions, self._cut(expansions, most))
            return True
        return False

    def _cut(self, queue: deque[Suspect], most: int) -> Suspect:
        """Take the first of a queue, or as much of it as may begin."""
        first = queue.popleft()
        if first.size > most:
            queue.appendleft(replace(first, start=first.start + most))
            first = replace(first, stop=first.start + most)
        return first

    def _run_again(self, actions: list[Action], one: Suspect) -> None:
        source = one.source if one.parent is not None else one.start
        if one.stage > self._last:
            self._do_extra(actions, one.start, one.crashes)
        elif one.stage < self._last:
            self._expand(actions, one.stage, source, one.parent, one.start, one.stop, one.crashes)
        elif one.parent is not None:
            self._submit(actions, source, one.parent, one.start, one.stop, one.crashes)

    def _to_wait(self, stage: int) -> int:
        """Items that an expansion is expected to leave waiting."""
        in_passing = self._batch is None and self._window.in_flight is None
        in_passing = in_passing and self._max_items is None
        return self._outlook.to_wait(stage, in_passing=in_passing)

    def _may_expand(self, stage: int) -> int:
        """Expansions that may begin: the items that they give are expected to fit."""
        free = self._buffered - self._all_waits + self._uncounted
        if free < 0 and (free := free + self._above_the_bound()) < 0:
            return 0
        if not any(self._expanding):
            return max(1, self._fitting(stage, free))
        free -= sum(
            number * self._to_wait(other) for other, number in enumerate(self._expanding) if number
        )
        return 0 if free < 0 else self._fitting(stage, free)

    def _above_the_bound(self) -> int:
        """Room for what stands above the bound at once: the list that is expanded next."""
        inner = self._all_waits - self._waits[self._last] - self._uncounted
        if inner <= self._buffered:
            return 0
        first = next(queue[0] for queue in reversed(self._waiting[: self._last]) if queue)
        return self._lists[first].size

    def _fitting(self, stage: int, free: int) -> int:
        expected = self._to_wait(stage)
        return free // expected if expected else LARGEST_UNIT

    def _may_expand_again(self, stage: int) -> int:
        """The same for those that have begun before; there is no other way on than through them."""
        alone = not any(self._expanding) and not self._waiting[self._last]
        return max(self._may_expand(stage), int(alone))

    def _start_expansion(self, actions: list[Action], room: int) -> bool:
        """Expand the deepest items that wait, or ask for sources; False if neither may be."""
        for stage in range(self._last - 1, -1, -1):
            queue = self._waiting[stage]
            if queue:
                # Inner items above the bound can only become fewer by being expanded.
                may = self._may_expand_again(stage)
                if may < 1:
                    return False
                identity = queue[0]
                entry = self._lists[identity]
                most = min(self._group(stage, self._waits[stage]), may, room)
                start, stop = entry.take(most)
                self._waited(entry, start - stop)
                if not entry.todo:
                    queue.popleft()
                self._expand(actions, stage, entry.source, identity, start, stop, entry.crashes)
                return True
        may = self._may_expand(0)
        if may < 1 or self._sources_ended or self._pulling or self.closed:
            return False
        # The places of the expansions to come are taken now, so that nothing else fills them.
        left = None
        if self._sources_known is not None:
            left = max(1, self._sources_known - self.roots.discovered)
        count = min(self._group(0, left), may, room)
        self._pulling = count
        self._flying += count
        self._expanding[0] += count
        actions.append(Pull(count))
        return True

    def _group(self, stage: int, left: int | None) -> int:
        """How many sources, or items of an inner stage, go into the next unit.

        Args:
            stage: the stage that expands them.
            left: how many of them there are; `None` if nobody knows.
        """
        outlook, threads = self._outlook, self._window.threads
        parse_s, item_s = outlook.durations[stage].mean_s, outlook.item_s
        if self._batch is not None or parse_s is None:
            return 1
        leads = stage + 1 == self._last
        # Lists are worked on where they are found only once the duration of an item is known.
        if leads and item_s is None and outlook.fan_outs[stage].total:
            return 1
        here = outlook.short(stage)
        ceiling = min(LARGEST_GROUP, self._ceiling())
        if left is not None and not here and not (leads and item_s is None):
            # Dask gives items to the worker that has their list: lists have to be spread.
            ceiling = min(ceiling, -(-left // (AHEAD * threads)))
        # Something whose items are worked on elsewhere costs the unit its parse alone.
        here_s = outlook.fan_outs[stage].expected * item_s if here and item_s is not None else 0.0
        return unit_size(parse_s + here_s, left, threads, ceiling)


def _place(action: Expand | Process, offset: int) -> tuple[int, ListId | None]:
    """Source and list of one of the items of a unit; no list for a source."""
    if action.parent < 0:
        return action.start + offset, None
    return action.source, (action.parent, action.offset)


def _first(ranges: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """So many of the positions in some ranges, from the first on."""
    taken: list[tuple[int, int]] = []
    for start, stop in ranges:
        if count <= 0:
            break
        taken.append((start, min(stop, start + count)))
        count -= stop - start
    return taken
