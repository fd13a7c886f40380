"""The state machine of a run: it is told what happened, and answers with what to do next.

What may start, and when, is ruled in `filling`; what is open is kept in `open_tree`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from evolve_tasks.core.actions import (
    Action,
    Expand,
    Extra,
    Found,
    Further,
    Process,
    Release,
    SourceDone,
)
from evolve_tasks.core.filling import Filling
from evolve_tasks.core.open_tree import place_of
from evolve_tasks.core.suspects import Suspect, divided, guilty
from evolve_tasks.core.window import Window
from evolve_tasks.errors import IllegalEvent


class Evolution(Filling):
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
        leads_on: whether the last stage is expected to lead further. If it does so all the same,
            that is known from the first time on.
        told_of: inner stages (1 to N - 2) of whose items it is said when all that came from
            them has ended.
        streaming: expanding stages (0 to N - 2) that may give something before they have ended.

    Example:
        >>> from evolve_tasks.core.budget import Finish
        >>> window = Window(in_flight=4)
        >>> evolution = Evolution(stages=2, window=window, buffered=10, batch=2, budget=Finish())
        >>> evolution.begin()
        [Pull(most=1)]
        >>> evolution.sources_arrived(1)[0].stop
        1
    """

    __slots__ = ()

    # -- events -----------------------------------------------------------------------------

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
        elif count and (self._quarantine or self.paused or self._taken_meanwhile(count)):
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
        if unit not in self._given:
            self._giving[action.stage] += size
        place = size + self._given.get(unit, 0)
        self._given[unit] = place + 1 - size
        depth = self._depth_of(action)
        if self._discover(action, place, action.stage + 1, offset, found, depth):
            source, parent, position = place_of(action, offset)
            if parent is not None:
                self._lists[parent].open += 1
                if action.stage in self._told_of:
                    one = parent, position
                    self._item_forks[one] = self._item_forks.get(one, 0) + 1
            else:
                self._forks[source] = self._forks.get(source, 0) + 1
        if found.failed:
            self._expansions_failed += found.failed * (action.stage + 1 < self._last)
            self._judge()
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
            source, parent, position = place_of(action, offset)
            if parent is not None:
                self._lists[parent].open += opened
                if action.stage in self._told_of:
                    self._close_item(actions, parent, position, opened)
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
        _, _, _, parent, offset, start, stop, _, _ = action
        size = stop - start
        done = size - failed - not_run
        if failed < 0 or not_run < 0 or done < 0:
            raise IllegalEvent(
                f"unit {unit} of {size} items ended with {failed} failed and {not_run} not run"
            )
        if further:
            self._check(unit, [one.found for one in further])
        # As `_answered` has it; this happens for each batch.
        del self._units[unit]
        self._flying -= size
        if self._parties:
            self._leave(action)
        else:
            self._places -= 1
        if self._alone == unit:
            self._alone = None
        tally = self._items_tally
        tally.done += done
        if done < size:
            tally.failed += failed
            tally.not_run += not_run
        self._items.add(done + failed, seconds)
        actions: list[Action] = []
        identity = parent, offset
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
        return self._fill(actions, fewer=not further)

    def followed(self, unit: int, further: Sequence[Further] = ()) -> list[Action]:
        """Answer a `Follow`: what was held back is so much, after it was compared.

        Args:
            unit: the unit.
            further: the lists of the unit, in this order; their levels are counted from the items
                that found what was held back.
        """
        if unit not in self._follows:
            raise IllegalEvent(f"unit {unit} was answered as a Follow, and is none")
        self._check(unit, [one.found for one in further])
        follow = self._follows.pop(unit)
        actions: list[Action] = []
        identity = follow.found_by, follow.place
        held = self._lists[identity]
        # In the name of the item that found it.
        place = held.source if held.parent is None else held.place
        above = held.parent or (-1, 0)
        item = Process(unit, self._last, held.source, *above, place, place + 1)
        opened = 0
        for offset, more in enumerate(further):
            depth = held.depth - 1 + more.levels
            opened += self._discover(item, offset, more.stage, 0, more.found, depth)
        if held.parent is None:
            self._forks[held.source] = self._forks.get(held.source, 0) + opened
        else:
            self._lists[held.parent].open += opened
            if self._lists[held.parent].stage in self._told_of:
                one = held.parent, held.place
                self._item_forks[one] = self._item_forks.get(one, 0) + opened
        if unit not in self._lists_of:
            actions.append(Release(unit))
        self._close(actions, identity, 1)
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
        over = self._leave(action)
        if isinstance(action, Process):
            self._flying -= action.stop - action.start
        elif isinstance(action, Expand):
            size = action.stop - action.start
            self._flying -= size
            self._turns.pop(action.unit, None)
            self._expansions -= over
            self._expanding_units[action.stage] -= over
            if self._given.pop(action.unit, None) is not None:
                self._giving[action.stage] -= size
            self._expanding[action.stage] -= size
        else:
            self._flying -= 1
            self._extras_flying -= 1
        if self._alone == action.unit:
            self._alone = None

    def _leave(self, action: Expand | Process | Extra) -> bool:
        """Leave those with which a unit went together; True for the last one."""
        if self._parties and not isinstance(action, Extra):
            first = action.beside if action.beside >= 0 else action.unit
            if (left := self._parties.pop(first, 1) - 1) > 0:
                self._parties[first] = left
                return False
        self._places -= 1
        return True

    def _again(self, actions: list[Action], lost: Suspect, running: Collection[int] | None) -> None:
        """Let what a dead worker took down run again, unless it would be for nothing."""
        if not self._goes_on(lost.stage):
            self._drop(actions, lost)
            return
        for part in divided(lost, running, self._outlook.durations[lost.stage].mean_s):
            self._suspects.add(part, self._last)

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
