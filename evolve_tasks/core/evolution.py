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
   sources. Within a depth, first come, first served. So memory follows a few paths of the
   tree, not the breadth of a level.
4. Nobody knows which parse is long, and all threads wait for one that is begun last. So beside
   items that wait an expansion is kept in flight for every other thread, as long as fewer
   than `AHEAD` lists for each thread wait. One thread has nothing to gain: strictly depth first.
   Where no item waits `AHEAD` expansions for each thread are in flight. They take their turn
   among the items (`keeps`). Up to `FEW` threads the window is filled, behind all items.
5. An expansion starts only if the items it is expected to give fit into `buffered`, or if
   no other one is in flight. So at most one fan-out stands above the bound where fan-outs
   are alike. Expected is the mean so far, and `UNKNOWN_FAN_OUT` before anything is known.
   Where only units are bounded, lists that are worked on where they are found do not wait:
   expected is then what such expansions have left.
6. A source is taken only when it can be submitted at once: sources are never buffered.
   One that comes in a pause, or while something has to run alone (8), waits until that is over.
7. How much goes into one unit is decided in `batching`, unless a number was given.
8. What a dead worker took down goes before all else, in the parts and with the care that
   `suspects` says: first beside everything, then alone.
9. No more than `max_items` items are discovered. What is found beyond them is left where it is,
   and nothing is expanded any more; what was discovered is worked on.

State grows with what is open: a finished list leaves counts behind, not itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace

from evolve_tasks.core.actions import (
    Action,
    Expand,
    Found,
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
        max_items: items of all stages but the first that may be discovered (N >= 1).

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
    ) -> None:
        self.tallies = [StageTally() for _ in range(stages)]
        self.stopped: str | None = None
        self.limited: str | None = None  # why some items were left where they are
        self._max_items = max_items
        self._last = stages - 1
        self._window = window
        self._buffered = buffered
        self._batch = batch
        self._budget = budget
        self._sources_known = sources_known
        self._outlook = Outlook(stages, item_s)
        self._lists: dict[ListId, OpenList] = {}
        self._lists_of: dict[int, int] = {}  # lists of a unit that are still open
        self._waiting: list[deque[ListId]] = [deque() for _ in range(stages)]
        self._waits = [0] * stages  # items that wait for a stage
        self._units: dict[int, Expand | Process] = {}
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
        self._kept: set[int] = set()
        self._hurried = False
        self._suspects = Suspects()
        self._alone: int | None = None  # unit beside which nothing may be in flight

    # -- what it can be asked ---------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is in flight, waiting or still to come."""
        over = self._sources_ended or (self.closed and not self._pulling)
        return over and not (self._units or self._lists or self._suspects)

    @property
    def closed(self) -> bool:
        """Whether no further source is wanted."""
        return self.stopped is not None or self.limited is not None

    @property
    def flying(self) -> int:
        """Items in flight."""
        return self._flying

    @property
    def waiting(self) -> int:
        """Items discovered and not submitted."""
        return sum(self._waits)

    def keeps(self, unit: int) -> bool:
        """Whether this expansion takes its turn among the items, or else waits behind them all."""
        return unit in self._kept

    @property
    def item_s(self) -> float | None:
        """Seconds that an item of the last stage takes; `None` before any was measured."""
        return self._outlook.item_s

    @property
    def probing(self) -> bool:
        """Whether work is held back until it is known how long items take."""
        if self._hurried or self._batch is not None or self._window.in_flight is not None:
            return False
        return self.item_s is None and self._outlook.awaits_items

    @property
    def pulling(self) -> bool:
        """A `Pull` is not answered yet."""
        return self._pulling > 0

    @property
    def expected_items(self) -> int:
        """Items of the last stage that wait, and that known sources are expected to lead to."""
        to_come = max(0, (self._sources_known or 0) - self.tallies[0].discovered)
        return self._below([to_come, *self._waits[1:]])

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
        first, last = self.tallies[0], self.tallies[self._last]
        known = self.tallies[0].discovered if self._sources_ended else self._sources_known
        ended = first.ended
        open_ones = [tally.discovered - tally.ended for tally in self.tallies[1 : self._last]]
        to_come = max(0, max(first.discovered, known or 0) - ended)
        return Progress(
            sources=first.discovered,
            sources_ended=ended,
            sources_known=known,
            discovered=last.discovered,
            done=last.done,
            failed=last.failed,
            resumed=last.resumed,
            not_run=last.not_run,
            unseen=0 if self.closed else self._below([to_come, *open_ones, 0]),
            finished=self.finished,
        )

    @property
    def sources(self) -> int:
        """Sources that arrived."""
        return self.tallies[0].discovered

    @property
    def standing(self) -> Standing:
        """What the failure policy looks at."""
        last = self.tallies[self._last]
        lost = self._expansions_failed
        return Standing(
            failed=last.failed + lost,
            known=last.discovered + lost,
            complete=not (any(self._expanding) or self._expandable())
            and (self._sources_ended or self.limited is not None),
        )

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
            left = found.size - found.ended
            self._open_list(unit, offset, self._last, offset, None, found, left)
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
        tally = self.tallies[0]
        start = tally.discovered
        tally.discovered += count
        self._sources_ended = self._sources_ended or ended
        actions: list[Action] = []
        if count and self.closed:
            tally.not_run += count
            actions += [SourceDone(start + number) for number in range(count)]
        elif count and (self._quarantine or self.paused):
            waiting = Suspect(0, start, None, start, start + count, crashes=0)
            self._suspects.add(waiting, self._last)
        elif count:
            self._expand(actions, 0, start, None, start, start + count)
        if ended or self.limited is not None:
            self._judge()
        return self._fill(actions)

    def expanded(
        self, unit: int, found: Sequence[Found], *, seconds: float = 0.0, inline_s: float = 0.0
    ) -> list[Action]:
        """Answer an `Expand`: what each of its items gave.

        Args:
            unit: the unit.
            found: one entry for each item, in order.
            seconds: what expanding took, all of them together.
            inline_s: what working on items on the spot took, all of them together.
        """
        action = self._answer_expand(unit)
        size = action.stop - action.start
        if len(found) != size:
            raise IllegalEvent(f"unit {unit} of {size} items was answered with {len(found)}")
        for one in found:
            if not one.adds_up():
                raise IllegalEvent(f"unit {unit} found {one}, which does not add up")
        self._answered(action)
        actions: list[Action] = []
        tally, below = self.tallies[action.stage], self.tallies[action.stage + 1]
        begun = worked_on = 0
        for offset, one in enumerate(found):
            taken = self._take(one)
            if one.lost:
                tally.failed += 1
                self._expansions_failed += 1
            elif one.skipped:
                tally.not_run += 1
            else:
                tally.done += not one.known
                tally.resumed += one.known
            if one.size or not (one.lost or one.skipped):
                self._outlook.gave(action.stage, one.size)
                below.discovered += taken
                below.done += one.ended - one.failed - one.not_run - one.resumed
                below.failed += one.failed
                below.not_run += one.not_run
                below.resumed += one.resumed
                worked_on += one.ended - one.not_run - one.resumed
                if action.inline:
                    self._outlook.fan_outs[action.stage].add_left(one.size - one.ended)
            begun += not (one.skipped or one.known)
            source = action.start + offset if action.stage == 0 else action.source
            parent = None if action.stage == 0 else (action.parent, action.offset)
            left = taken - one.ended
            if left and self._goes_on(action.stage + 1):
                self._open_list(
                    unit, offset, action.stage + 1, source, parent, one, left, action.crashes
                )
            else:
                below.not_run += left
                self._close_item(actions, source, parent)
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
        self, unit: int, *, failed: int = 0, not_run: int = 0, seconds: float = 0.0
    ) -> list[Action]:
        """Answer a `Process`: so many of its items failed or were not run, the rest is done."""
        action = self._answer_process(unit)
        size = action.stop - action.start
        done = size - failed - not_run
        if failed < 0 or not_run < 0 or done < 0:
            raise IllegalEvent(
                f"unit {unit} of {size} items ended with {failed} failed and {not_run} not run"
            )
        self._answered(action)
        tally = self.tallies[self._last]
        tally.done += done
        tally.failed += failed
        tally.not_run += not_run
        self._outlook.durations[self._last].add(done + failed, seconds)
        actions: list[Action] = []
        self._close(actions, (action.parent, action.offset), size)
        if failed:
            self._judge()
        return self._fill(actions)

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
        if running is not None and not set(running) <= set(range(action.start, action.stop)):
            raise IllegalEvent(f"unit {unit} ran {running}, which are not in {action}")
        if self.gives_up(unit, running):
            if isinstance(action, Expand):
                return self.expansion_lost(unit)
            return self.processed(unit, failed=1)
        self._answered(action)
        actions: list[Action] = []
        if isinstance(action, Expand):
            actions.append(Release(unit))
        parent = None if action.parent < 0 else (action.parent, action.offset)
        lost = Suspect(
            action.stage, action.source, parent, action.start, action.stop, action.crashes
        )
        self._again(actions, lost, running)
        return self._fill(actions)

    def stop(self, reason: str) -> list[Action]:
        """Start nothing more; what waits is counted as not run, what runs is still answered."""
        if self.stopped is not None:
            return []
        self.stopped = reason
        actions: list[Action] = []
        for suspect in self._suspects.take_all():
            self._drop(actions, suspect)
        # Deepest first: closing an inner list may close its parents with it.
        for stage in range(self._last, 0, -1):
            self._drop_waiting(actions, stage)
        return actions

    # -- inside -----------------------------------------------------------------------------

    def _answer_expand(self, unit: int) -> Expand:
        action = self._units.get(unit)
        if not isinstance(action, Expand):
            raise IllegalEvent(f"unit {unit} was answered as an Expand, in flight is {action!r}")
        return action

    def _answer_process(self, unit: int) -> Process:
        action = self._units.get(unit)
        if not isinstance(action, Process):
            raise IllegalEvent(f"unit {unit} was answered as a Process, in flight is {action!r}")
        return action

    @property
    def _quarantine(self) -> bool:
        """Whether something has to run alone, or does."""
        return self._alone is not None or bool(self._suspects.single)

    def _answered(self, action: Expand | Process) -> None:
        """A unit is not in flight any more."""
        size = action.stop - action.start
        del self._units[action.unit]
        self._flying -= size
        if isinstance(action, Expand):
            self._kept.discard(action.unit)
            self._expansions -= 1
            self._expanding[action.stage] -= size
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
        self.tallies[suspect.stage].not_run += suspect.size
        if suspect.parent is None:
            actions += [SourceDone(position) for position in range(suspect.start, suspect.stop)]
        else:
            self._close(actions, suspect.parent, suspect.size)

    def _open_list(
        self,
        unit: int,
        offset: int,
        stage: int,
        source: int,
        parent: ListId | None,
        found: Found,
        left: int,
        crashes: int = 0,
    ) -> None:
        if not left:
            return
        # Items begin anew: nobody knows whether any of them was at work when the worker died.
        crashes = min(crashes, 1)
        identity = unit, offset
        ranges = _first(found.ranges(), left)
        if found.orphaned:
            self._lists[identity] = OpenList(stage, source, parent, found.size, deque(), left)
            for start, stop in ranges:
                lost = Suspect(stage, source, identity, start, stop, crashes + 1)
                for part in parts(lost):
                    self._suspects.add(part, self._last)
        else:
            self._lists[identity] = OpenList(
                stage, source, parent, found.size, deque(ranges), left, crashes
            )
            self._waiting[stage].append(identity)
            self._waits[stage] += left
        self._lists_of[unit] = self._lists_of.get(unit, 0) + 1

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
        if self._expansions <= AHEAD * self._threads():
            self._kept.add(action.unit)
        actions.append(action)

    def _close_item(self, actions: list[Action], source: int, parent: ListId | None) -> None:
        """One item of an expanding stage has ended, with nothing left below it."""
        if parent is None:
            actions.append(SourceDone(source))
        else:
            self._close(actions, parent, 1)

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
            self._lists_of[unit] -= 1
            if not self._lists_of[unit]:
                del self._lists_of[unit]
                actions.append(Release(unit))
            parent, items = entry.parent, 1
        actions.append(SourceDone(entry.source))

    def _goes_on(self, stage: int) -> bool:
        """Whether items of a stage are still worked on."""
        return self.stopped is None and (self.limited is None or stage == self._last)

    def _take(self, found: Found) -> int:
        """Discover items within the limit; what has ended already has been discovered."""
        if self._max_items is None:
            return found.size
        known = sum(tally.discovered for tally in self.tallies[1:])
        taken = max(found.ended, min(found.size, self._max_items - known))
        if taken < found.size and self.limited is None:
            self.limited = f"limits.max_items={self._max_items:,} was reached, and there was more"
            self._limit_due = True
        return taken

    def _limit(self) -> list[Action]:
        """Expand nothing more: it would only find what is not taken."""
        actions: list[Action] = []
        for suspect in self._suspects.take_expansions(self._last):
            self._drop(actions, suspect)
        for stage in range(self._last - 1, 0, -1):
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
            self._waits[stage] -= left
            self.tallies[stage].not_run += left
            self._close(actions, identity, left)

    def _judge(self) -> None:
        # `stop` empties the queues; its actions must not be lost, so _fill delivers them.
        if self.stopped is None and (why := self._budget.exceeded(self.standing)):
            self._stop_due = why

    def _expandable(self) -> bool:
        """Whether items of an expanding stage wait."""
        inner = any(self._waiting[stage] for stage in range(1, self._last))
        return inner or self._suspects.expands(self._last)

    def _room(self) -> int:
        """Items that may still be submitted."""
        window = self._window
        units = window.units
        if units is not None and self.probing:
            units = min(units, AHEAD * self._threads())
        if units is not None and len(self._units) + bool(self._pulling) >= units:
            return 0
        if window.in_flight is not None:
            return window.in_flight - self._flying
        # A batch that was given stays whole, also where it is larger.
        return max(LARGEST_UNIT, self._batch or 0)

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
        if self._quarantine:
            if self._suspects.single and not self._units:
                self._alone = self._next_unit
                self._run_again(actions, self._suspects.single.popleft())
            return actions
        while (room := self._room()) > 0:
            if self._start_again(actions, room):
                continue
            if self._suspects.items:
                break  # they wait for room, and nothing takes it from them
            leaves = self._waiting[self._last]
            more = self._expansions + bool(self._pulling) < self._most_expansions(len(leaves))
            more = more and not self._suspects.expansions
            if more and self._start_expansion(actions, room):
                continue
            if not leaves or not self._process(actions, leaves, room):
                break
        return actions

    def _threads(self) -> int:
        """Threads that the window can keep busy."""
        window = self._window
        bounds = (window.threads, window.in_flight, window.units)
        return max(1, min(bound for bound in bounds if bound is not None))

    def _most_probes(self) -> int:
        """Units of items that may be in flight before it is known how long an item takes."""
        # Lists are at different workers, and items where their list is.
        return max(self._threads(), self._outlook.fan_outs[-1].known)

    def _most_expansions(self, lists: int) -> int:
        """Expansions that may be in flight while the items of so many lists wait."""
        threads = self._threads()
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
        if self.probing and len(self._units) - self._expansions >= self._most_probes():
            return False
        identity = leaves[0]
        entry = self._lists[identity]
        start, stop = entry.todo[0]
        if self._batch is None:
            waiting, threads = self._waits[self._last], self._window.threads
            size = unit_size(self.item_s, waiting, threads, self._ceiling())
        else:
            size = self._largest_batch()
        size = min(size, stop - start)
        if size > room:
            return False
        entry.take(size)
        self._waits[self._last] -= size
        if not entry.todo:
            leaves.popleft()
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
        if one.stage < self._last:
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
        free = self._buffered - self.waiting
        if not any(self._expanding):
            return 0 if free < 0 else max(1, self._fitting(stage, free))
        free -= sum(
            number * self._to_wait(other) for other, number in enumerate(self._expanding) if number
        )
        return 0 if free < 0 else self._fitting(stage, free)

    def _fitting(self, stage: int, free: int) -> int:
        expected = self._to_wait(stage)
        return free // expected if expected else LARGEST_UNIT

    def _may_expand_again(self, stage: int) -> int:
        """The same for those that have begun before; there is no other way on than through them."""
        alone = not any(self._expanding) and not self._waiting[self._last]
        return max(self._may_expand(stage), int(alone))

    def _start_expansion(self, actions: list[Action], room: int) -> bool:
        """Expand the deepest items that wait, or ask for sources; False if neither may be."""
        for stage in range(self._last - 1, 0, -1):
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
                self._waits[stage] -= stop - start
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
            left = max(1, self._sources_known - self.tallies[0].discovered)
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


def _first(ranges: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """So many of the positions in some ranges, from the first on."""
    taken: list[tuple[int, int]] = []
    for start, stop in ranges:
        if count <= 0:
            break
        taken.append((start, min(stop, start + count)))
        count -= stop - start
    return taken
