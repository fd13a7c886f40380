"""What may start next.

Rules, in the order in which they are looked at:

1. Nothing starts once the run is stopped, or while it is paused; what is in flight is still
   answered.
2. What is in flight never exceeds the window: `in_flight` items (an expansion counts as one
   for each item it expands), `units` units. Where units alone are bounded and their sizes follow
   durations, the first ones find these out (`probing`): `AHEAD` of them for each thread, and no
   more of items than threads or lists, because small units are dear. If nothing ends for a moment
   (`waited`) what runs is long, and nothing is held back: a cluster that grows with its work has
   to see it. What gives on the way may wait for its items, which need room as well: it gets half
   of the window at the most, and where nothing else is in flight one batch goes beside it.
3. Deeper before shallower: items of the last stage first, then inner expansions, then new
   sources. Within a depth, first come, first served; what the last stage has found goes before
   what was there (last come, first served). So memory follows a few paths of the tree, not the
   breadth of a level.
4. Nobody knows which parse is long, and all threads wait for one that is begun last. So beside
   items that wait an expansion is kept in flight for every other thread, as long as fewer
   than `AHEAD` lists for each thread wait. One thread has nothing to gain: strictly depth first.
   Where no item waits `AHEAD` expansions for each thread are in flight. They take their turn
   among the items, and those that take no longer than a batch go before them (`turn`): lists have
   to be there before the last item is. Up to `FEW` threads the window is filled, behind all items.
5. An expansion starts only if the items it is expected to give fit into `buffered`, or if
   no other one is in flight. So at most one fan-out stands above the bound where fan-outs
   are alike. Expected is the mean so far, and `UNKNOWN_FAN_OUT` before anything is known; and
   no more begin on such a mean than what it is of makes credible (`GROWTH` for each that may be
   ahead): the first lists may be empty, and the others long.
   Where only units are bounded, lists that are worked on where they are found do not wait:
   expected is then what such expansions have left. An inner list that is longer than the bound
   does not hold itself up: the bound is above it. What the last stage has found, and an earlier
   one is to expand, is not counted: nobody can hold it back. Nor is what an expansion may still
   give that has given something: the shell bounds it.
6. A source is taken only when it can be submitted at once: sources are never buffered.
   One that comes in a pause, or while something has to run alone (8), waits until that is over.
   So does one whose place has been taken by what was asked for beside the stages: a source may be
   long in coming, and where the window has nothing but its place that is not held up by it.
7. How much goes into one unit is decided in `batching`, unless a number was given. A group of
   sources is no larger than what has been expanded so far makes credible (`GROWTH`): the first
   ones may be short, and the others long. While that makes it small, no more than `AHEAD` for each
   thread are in flight, however few threads there are (`_grows`).
8. What a dead worker took down goes before all else, in the parts and with the care that
   `suspects` says: first beside everything, then alone: beside nothing but what has given
   something and may wait. What gives on the way is alone until it gives something, and by that
   shows that it has got further. What was asked for beside the
   stages (`add_extra`) comes next, and counts as one item.
9. No more than `max_items` items are discovered. What is found beyond them is left where it is,
   and nothing is expanded any more; what was discovered is worked on. What the last stage finds
   below `max_depth` is left, too.
10. Where equal items are worked on once and there is a deepest level the shell holds back what
    the last stage finds (`HELD`) until all above it has ended, and compares it only then, within
    the bound of `buffered`. So an item counts for its shortest path, and what is reached does not
    depend on what ends first.
11. What the last stage finds are many short lists: an item leads to a few others. A unit of such a
    list that is not as large as it should be takes the next ones along (`beside`), where they fit
    as a whole and no worker has died with them. Together they take one place of `units`. Their
    items count as if each took `ALONG_S` at least.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from evolve_tasks.core.actions import Action, Expand, Extra, Follow, Process, Pull, Turn
from evolve_tasks.core.batching import INLINE_S, TARGET_S, inline_items, unit_size
from evolve_tasks.core.fan_outs import UNKNOWN_FAN_OUT
from evolve_tasks.core.lists import ListId, OpenList
from evolve_tasks.core.open_tree import LARGEST_UNIT, OpenTree
from evolve_tasks.core.suspects import Suspect

# Expansions in flight for each thread, where no item waits: one that runs, and one behind it while
# the flow is told. And lists that wait for each thread: enough work to hide a long parse behind.
AHEAD = 2

# On so few threads a long parse that is begun late costs little, and they may be the first of a
# cluster that grows with its work: it has to see all that the window holds.
FEW = 2

# Sources in one unit at the most: their names and results still make a readable, small answer.
LARGEST_GROUP = 1_000


# What each of several lists that go together costs, beside its items: seconds.
ALONG_S = 0.0005

# What the groups of all threads may have together, over what has been expanded so far; `AHEAD`
# times as much may be in flight.
GROWTH = 8


# A named tuple at a third of what its own constructor costs.
_new = tuple.__new__

# So many are taken apart at once: the flow does it itself, and has other things to do.
MOST_FOLLOWS = 50


class Filling(OpenTree):
    """Uses the room in the window, by the rules at the top of this file."""

    __slots__ = ()

    def _fill(self, actions: list[Action], *, fewer: bool = False) -> list[Action]:
        """Use the room in the window, by the rules at the top of this file.

        Args:
            actions: what has been decided already.
            fewer: nothing has changed since the last time but that some items have ended.
        """
        if self._full_above is not None:
            if not (fewer and self._inline_is_as_it_was()):
                self._full_above = None
            elif self._only_batches(actions, self._full_above):
                return actions
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
        if self._alone is not None or (suspects.single and not self._too_many_give):
            if suspects.single and len(self._units) == len(self._given):
                self._alone = self._next_unit
                self._run_again(actions, suspects.single.popleft())
            return actions
        if self._held and self._level_is_over:
            self._of_level.extend(self._held.pop(min(self._held)))
        if self._of_level:
            self._follow(actions)
        if self._extras and self._pulling and not (self._units or suspects):
            self._do_extra(actions, self._extras.popleft(), 0)
        while (room := self._room()) > 0:
            if suspects.items or suspects.expansions:
                if self._start_again(actions, room):
                    continue
                if suspects.items:
                    break  # they wait for room, and nothing takes it from them
            if self._extras:
                self._do_extra(actions, self._extras.popleft(), 0)
                continue
            if self._full_above is not None and self._all_waits > self._full_above:
                if not leaves or not self._process(actions, leaves, room):
                    break
                if self._places == self._window.units and not self._given:
                    break  # as `_room` has it; this happens for each batch
                continue
            # What has given something has left its thread.
            expansions = self._expansions - len(self._given) + (self._pulling > 0)
            more = expansions < self._most_expansions(len(leaves)) and not (
                suspects.expansions and self._may_stream(suspects.expansions[0].stage) > 0
            )
            # Where items of the last stage alone are above the bound there is nothing to look for.
            inner = self._all_waits - self._waits[self._last]
            more = more and (inner > 0 or self._all_waits <= self._buffered)
            if more and self._start_expansion(actions, room):
                continue
            if not leaves or not self._process(actions, leaves, room):
                break
        return actions

    def _only_batches(self, actions: list[Action], above: float) -> bool:
        """Go the short way through `_fill`; False if there is more to be looked at."""
        places = self._full_places
        if self._places >= places or self._stop_due is not None:
            return False
        if self.stopped is not None or self.paused:
            return True
        leaves = self._waiting[self._last]
        while self._all_waits > above:
            if not leaves or not self._process(actions, leaves, self._largest_unit):
                return True
            if self._places >= places:
                return True
        return False

    def _inline_is_as_it_was(self) -> bool:
        """Whether `inline_items` says the same as when no source could be taken."""
        item_s, items = self._items.mean_s, self._full_inline
        return item_s is not None and items * item_s <= INLINE_S < (items + 1) * item_s

    def _room(self) -> int:
        """Items that may still be submitted."""
        window = self._window
        units = window.units
        if units is not None:
            if self._items.mean_s is None and self.probing:
                units = min(units, AHEAD * window.busy_threads + len(self._given))
            if self._places + (self._pulling > 0) >= units:
                return self._largest_batch() if self._given and self._all_give else 0
        if window.in_flight is None:
            return self._largest_unit
        room = window.in_flight - self._flying
        if self._given and self._all_give:
            return max(room, self._largest_batch())
        return room

    @property
    def _level_is_over(self) -> bool:
        """Whether nothing is left that might find what is held back on a shorter path."""
        if self._all_waits or self._suspects or self._of_level or self._follows:
            return False
        if len(self._units) > self._extras_flying:
            return False
        # An iterator may be endless, or long in coming: what comes of it later is compared later.
        return self._sources_known is None or self._sources_ended

    def _follow(self, actions: list[Action]) -> None:
        """Have taken apart what was found on this level and held back, as there is room for it."""
        while (
            self._of_level
            and len(self._follows) < MOST_FOLLOWS
            and self._all_waits <= self._buffered
        ):
            action = Follow(self._next_unit, *self._of_level.popleft())
            self._next_unit += 1
            self._follows[action.unit] = action
            actions.append(action)

    def _taken_meanwhile(self, sources: int) -> bool:
        """Whether what was asked for beside the stages has the place of sources that came."""
        window = self._window
        if not self._extras_flying:
            return False
        if window.in_flight is not None and self._flying + sources > window.in_flight:
            return True
        return window.units is not None and self._places + 1 > window.units

    @property
    def _all_give(self) -> bool:
        """Whether all units in flight have given something, and may wait until it is done."""
        return len(self._units) == len(self._given) > 0

    def _may_stream(self, stage: int) -> int:
        """Expansions of a stage that may begin: each may wait for items, which need room, too."""
        if stage not in self._streaming:
            return LARGEST_UNIT
        window, stages = self._window, len(self._streaming)
        if window.units is not None:
            # A unit gives of one of its sources at a time.
            units = self._expanding_units[stage] + (self._pulling > 0 and stage == 0)
            if units >= max(1, window.units // (2 * stages)):
                return 0
        if (in_flight := window.in_flight) is None:
            return LARGEST_UNIT
        items = (in_flight - self._largest_batch()) // stages
        return max(1, min(in_flight // (2 * stages), items)) - self._expanding[stage]

    @property
    def _too_many_give(self) -> bool:
        """Whether what has to run alone waits, because it might give as others do already."""
        stage = self._suspects.single[0].stage
        return bool(stage < self._last and self._given and self._may_stream(stage) < 1)

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
        if self._given and self._window.units is not None:
            most = min(most, self._window.units - len(self._given) - 1)
        if self._window.in_flight is not None:
            # A batch that waits must find its room, however large it is.
            room = self._window.in_flight - sum(self._giving)
            most = min(most, room - self._largest_batch())
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
        if self._batch is not None:
            size = self._largest_batch()
        elif item_s is not None and item_s > TARGET_S / 2:
            size = 1  # as `unit_size` has it
        else:
            window = self._window
            ceiling = LARGEST_UNIT if window.in_flight is None else self._ceiling()
            each_s = item_s
            if entry.depth and item_s is not None and item_s < ALONG_S:
                each_s = ALONG_S
            size = unit_size(each_s, self._waits[self._last], window.threads, ceiling)
        wanted = size
        if size > stop - start:
            size = stop - start
        if size > room:
            return False
        if (end := start + size) < stop:
            entry.todo[0] = end, stop
        else:
            entry.todo.popleft()
            if not entry.todo:
                leaves.popleft()
        self._waits[self._last] -= size
        self._all_waits -= size
        self._submit(actions, entry.source, identity, start, end, entry.crashes)
        if size < wanted and item_s is not None and self._goes_together(entry):
            self._take_along(actions, self._last, min(wanted, room) - size)
        return True

    def _goes_together(self, entry: OpenList) -> bool:
        """Whether a unit of a list may be one of several that go together."""
        return entry.depth > 0 and self._batch is None and not entry.crashes

    def _take_along(self, actions: list[Action], stage: int, most: int) -> None:
        """Let lists that wait go together with the unit that began last, up to so many items."""
        queue, first = self._waiting[stage], self._next_unit - 1
        while queue:
            identity = queue[0]
            entry = self._lists[identity]
            start, stop = entry.todo[0]
            if stop - start > most or not self._goes_together(entry):
                return
            most -= stop - start
            entry.todo.popleft()
            if not entry.todo:
                queue.popleft()
            self._waited(entry, start - stop)
            if stage == self._last:
                self._submit(actions, entry.source, identity, start, stop, 0, first)
            else:
                self._expand(actions, stage, entry.source, identity, start, stop, 0, first)

    def _submit(
        self,
        actions: list[Action],
        source: int,
        parent: ListId,
        start: int,
        stop: int,
        crashes: int,
        beside: int = -1,
    ) -> None:
        number, (unit, offset) = self._next_unit, parent
        # As `Process` and `_begin` have it; this happens for each batch.
        action = _new(
            Process, (number, self._last, source, unit, offset, start, stop, crashes, beside)
        )
        self._next_unit += 1
        self._units[number] = action
        if beside < 0:
            self._places += 1
        else:
            self._parties[beside] = self._parties.get(beside, 1) + 1
        self._flying += stop - start
        actions.append(action)

    def _begin(self, action: Expand | Process | Extra, beside: int) -> None:
        """Note that a unit is in flight, and with which one it goes."""
        self._next_unit += 1
        self._units[action.unit] = action
        if beside < 0:
            self._places += 1
        else:
            self._parties[beside] = self._parties.get(beside, 1) + 1

    def _do_extra(self, actions: list[Action], number: int, crashes: int) -> None:
        action = Extra(self._next_unit, number, crashes)
        self._begin(action, -1)
        self._flying += 1
        self._extras_flying += 1
        actions.append(action)

    def _start_again(self, actions: list[Action], room: int) -> bool:
        """Run the next part that was lost with a worker; False if none may begin."""
        items, expansions = self._suspects.items, self._suspects.expansions
        if items:
            if items[0].size > room and len(self._units) > len(self._given):
                return False  # it stays whole, like any batch
            self._run_again(actions, self._cut(items, room))
            return True
        if expansions:
            stage = expansions[0].stage
            most = min(room, self._may_expand_again(stage), self._may_stream(stage))
            if most > 0:
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
        free = self._buffered - self._all_waits + sum(self._uncounted)
        if free < 0 and (free := free + self._above_the_bound()) < 0:
            return 0
        expecting = self._expecting(stage)
        if not any(expecting):
            return max(1, self._fitting(stage, free, 0))
        free -= sum(
            number * self._to_wait(other) for other, number in enumerate(expecting) if number
        )
        return 0 if free < 0 else self._fitting(stage, free, expecting[stage])

    def _expecting(self, stage: int) -> list[int]:
        """Expansions in flight, by stage, for whose items room is kept before `stage` expands."""
        if not (self._given or (stage and self._pulling)):
            return self._expanding
        # What gives on the way does so within bounds of its own, and the next source may be long
        # in coming: neither may hold up the items that are there.
        expecting = [
            number - giving for number, giving in zip(self._expanding, self._giving, strict=True)
        ]
        if stage:
            expecting[0] -= self._pulling
        return expecting

    @property
    def _beside_batches(self) -> bool:
        """Whether `_fill` has to look at something beside batches and expansions."""
        return bool(
            self._suspects
            or self._alone is not None
            or self._extras
            or self._held
            or self._of_level
            or self._given
        )

    def _fits_at(self) -> float | None:
        """How few items have to wait for a source to be taken, if nothing else changes.

        Returns:
            The number; below 0 if no number will do, `None` where that is not easily told.
        """
        if any(self._uncounted):
            return None
        if self._sources_ended or self._pulling or self.closed or self._may_stream(0) < 1:
            return -1
        expecting = self._expecting(0)
        if not any(expecting) or self._fitting(0, self._buffered, expecting[0]) < 1:
            return None
        expected = [self._to_wait(stage) for stage in range(self._last)]
        reserved = sum(number * each for number, each in zip(expecting, expected, strict=True))
        return self._buffered - reserved - expected[0]

    def _above_the_bound(self) -> int:
        """Room for what stands above the bound at once: the list that is expanded next."""
        inner = self._all_waits - self._waits[self._last] - sum(self._uncounted)
        if inner <= self._buffered:
            return 0
        first = next(queue[0] for queue in reversed(self._waiting[: self._last]) if queue)
        return self._lists[first].size

    def _fitting(self, stage: int, free: int, in_flight: int) -> int:
        """Expansions that may begin beside so many, by the mean of those that have ended."""
        expected, known = self._to_wait(stage), self._outlook.fan_outs[stage].known
        credible = max(self._buffered // UNKNOWN_FAN_OUT, AHEAD * GROWTH * known) - in_flight
        return min(credible, free // expected) if expected else credible

    def _may_expand_again(self, stage: int) -> int:
        """The same for those that have begun before; there is no other way on than through them."""
        alone = not any(self._expecting(stage)) and not self._waiting[self._last]
        return max(self._may_expand(stage), int(alone))

    def _start_expansion(self, actions: list[Action], room: int) -> bool:
        """Expand the deepest items that wait, or ask for sources; False if neither may be."""
        for stage in range(self._last - 1, -1, -1):
            queue = self._waiting[stage]
            if queue:
                # Inner items above the bound can only become fewer by being expanded.
                may = min(self._may_expand_again(stage), self._may_stream(stage))
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
                # What gives on the way waits by itself.
                if stage not in self._streaming and self._goes_together(entry):
                    self._take_along(actions, stage, most - (stop - start))
                return True
        may = min(self._may_expand(0), self._may_stream(0))
        if may < 1 or self._sources_ended or self._pulling or self.closed:
            self._full_above, self._full_inline = self._fits_at(), inline_items(self._items.mean_s)
            window = self._window
            if window.units is None or window.in_flight is not None or self._beside_batches:
                self._full_places = 0
            else:
                self._full_places = window.units - (self._pulling > 0)
            return False
        self._full_above = None
        # The places of the expansions to come are taken now, so that nothing else fills them.
        left = None
        if self._sources_known is not None:
            left = max(1, self._sources_known - self.roots.discovered)
        group = self._group(0, left)
        under_way = self._expansions - len(self._given)
        if under_way >= AHEAD * self._window.busy_threads and self._grows(group, left):
            return False
        count = min(group, may, room)
        self._pulling = count
        self._flying += count
        self._expanding[0] += count
        actions.append(Pull(count))
        return True

    def _expand(
        self,
        actions: list[Action],
        stage: int,
        source: int,
        parent: ListId | None,
        start: int,
        stop: int,
        crashes: int = 0,
        beside: int = -1,
    ) -> None:
        inline, self._full_above = 0, None
        unbounded = self._batch is None and self._max_items is None
        # Where a worker died, items are kept apart from their source: one of them may be guilty.
        if unbounded and stage + 1 == self._last and not crashes:
            inline = inline_items(self.item_s)
        number, (unit, offset) = self._next_unit, parent or (-1, 0)
        action = Expand(number, stage, source, unit, offset, start, stop, inline, crashes, beside)
        self._begin(action, beside)
        self._flying += stop - start
        self._expanding[stage] += stop - start
        actions.append(action)
        if beside >= 0:
            return
        self._expanding_units[stage] += 1
        self._expansions += 1
        if self._expansions <= AHEAD * self._window.busy_threads:
            brief = self._brief(stage, stop - start)
            self._turns[action.unit] = Turn.BEFORE if brief else Turn.AMONG

    def _brief(self, stage: int, count: int) -> bool:
        """Whether so many expansions take no longer than a batch of the items that go elsewhere.

        However long those batches are: a thread is not taken from them for long.
        """
        parse_s, item_s = self._outlook.durations[stage].mean_s, self._outlook.item_s
        if parse_s is None or item_s is None or self._outlook.short(stage):
            return False
        batch = self._batch or unit_size(item_s, None, self._window.threads, self._ceiling())
        return count * parse_s <= min(batch * item_s, 2 * TARGET_S)

    def _grows(self, group: int, left: int | None) -> bool:
        """Whether a group of sources is small because few have been expanded so far, and brief.

        Small units are dear, and those in flight say how large the next ones may be.
        """
        outlook, threads = self._outlook, self._window.threads
        parse_s, item_s = outlook.durations[0].mean_s, outlook.item_s
        if self._hurried or self._batch is not None or parse_s is None or item_s is None:
            return False
        if not outlook.short(0):
            return False
        each_s = parse_s + outlook.fan_outs[0].expected * item_s
        ceiling = min(LARGEST_GROUP, self._ceiling())
        return group < unit_size(each_s, left, threads, ceiling)

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
        # Those to come may be unlike the first: no more is bet on a mean than what it is of allows.
        known = GROWTH * outlook.fan_outs[stage].known // max(1, threads)
        ceiling = min(LARGEST_GROUP, self._ceiling(), max(1, known))
        if left is not None and not here and not (leads and item_s is None):
            # Dask gives items to the worker that has their list: lists have to be spread.
            ceiling = min(ceiling, -(-left // (AHEAD * threads)))
        # Something whose items are worked on elsewhere costs the unit its parse alone.
        here_s = outlook.fan_outs[stage].expected * item_s if here and item_s is not None else 0.0
        return unit_size(parse_s + here_s, left, threads, ceiling)
