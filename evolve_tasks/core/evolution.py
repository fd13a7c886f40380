"""The state machine of a run: what is known, what may start next, when it is over.

Rules, in the order in which they are looked at:

1. Nothing starts once the run is stopped; what is in flight is still answered.
2. What is in flight never exceeds `in_flight` (counted in items; an expansion is one).
3. Deeper before shallower: items of the last stage first, then inner expansions, then new
   sources. Within a depth, first come, first served. So memory follows one path of the
   tree, not the breadth of a level.
4. One expansion is kept in flight while the window has two places or more: strictly depth
   first, a long parse that is begun last costs up to 22 % of the run time (simulated).
5. An expansion starts only if the items it is expected to give fit into `buffered`, or if
   no other one is in flight. So at most one fan-out stands above the bound where fan-outs
   are alike. Expected is the mean so far, and `UNKNOWN_FAN_OUT` before anything is known.
6. A source is taken only when it can be submitted at once: sources are never buffered.

State grows with what is open: a finished node leaves counts behind, not itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from evolve_tasks.core.actions import Action, Expand, Process, Pull, Release, SourceDone
from evolve_tasks.core.budget import FailureBudget, Standing
from evolve_tasks.errors import IllegalEvent

# Before the first expansion has ended nobody knows a fan-out. 100 lets a hundred parses begin
# at once under the default bound of 10,000, and one at a time where the bound is below 200.
UNKNOWN_FAN_OUT = 100


@dataclass(slots=True)
class _Node:
    """The items that one expansion gave."""

    stage: int  # the stage that works on them
    source: int
    parent: int
    size: int
    cursor: int = 0  # items before it were submitted
    open: int = 0  # items that have not ended, with all that came from them


@dataclass(slots=True)
class StageTally:
    """What became of the items of one stage, while it runs."""

    discovered: int = 0
    done: int = 0
    failed: int = 0
    resumed: int = 0
    not_run: int = 0


class Evolution:
    """Events in, actions out; one thread tells it what happened and does what it answers.

    Args:
        stages: number of stages (N >= 2); all but the last expand.
        in_flight: items that may be submitted and unfinished (N >= 1).
        buffered: items that may be discovered and not submitted (N >= 1).
        batch: items of the last stage in one `Process` (N >= 1; never above `in_flight`).
        budget: the failure policy.

    Example:
        >>> from evolve_tasks.core.budget import Finish
        >>> evolution = Evolution(stages=2, in_flight=4, buffered=10, batch=2, budget=Finish())
        >>> evolution.begin()
        [Pull()]
        >>> evolution.source_arrived()[0]
        Expand(unit=0, stage=0, source=0, parent=-1, position=0)
    """

    def __init__(
        self, *, stages: int, in_flight: int, buffered: int, batch: int, budget: FailureBudget
    ) -> None:
        self.tallies = [StageTally() for _ in range(stages)]
        self.stopped: str | None = None
        self._last = stages - 1
        self._in_flight = in_flight
        self._buffered = buffered
        self._batch = batch
        self._budget = budget
        self._nodes: dict[int, _Node] = {}
        self._waiting: list[deque[int]] = [deque() for _ in range(stages)]
        self._waiting_items = 0
        self._units: dict[int, Expand | Process] = {}
        self._next_unit = 0
        self._flying = 0
        self._expanding = 0
        self._expanded_once = 0
        self._fan_out_total = 0
        self._source_failures = 0
        self._open_sources = 0
        self._pulling = False
        self._sources_ended = False
        self._stop_due: str | None = None

    # -- what it can be asked ---------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is in flight, waiting or still to come."""
        over = self._sources_ended or (self.stopped is not None and not self._pulling)
        return over and not self._units and not self._nodes

    @property
    def flying(self) -> int:
        """Items in flight."""
        return self._flying

    @property
    def waiting(self) -> int:
        """Items discovered and not submitted."""
        return self._waiting_items

    @property
    def sources(self) -> int:
        """Sources that arrived."""
        return self.tallies[0].discovered

    @property
    def standing(self) -> Standing:
        """What the failure policy looks at."""
        last = self.tallies[self._last]
        lost = self._source_failures
        return Standing(
            failed=last.failed + lost,
            known=last.discovered + lost,
            complete=self._sources_ended and not self._expanding and not self._expandable(),
        )

    @property
    def rejected(self) -> bool:
        """Whether the policy wants the run, now over, to raise."""
        return self._budget.rejects(self.standing)

    # -- events -----------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """Start: answers with what to do first."""
        return self._fill([])

    def resize(self, in_flight: int) -> list[Action]:
        """Change the window, as when workers join or leave."""
        self._in_flight = max(1, in_flight)
        return self._fill([])

    def source_arrived(self) -> list[Action]:
        """Answer a `Pull`: there is one more source."""
        self._answer_pull()
        tally = self.tallies[0]
        position = tally.discovered
        tally.discovered += 1
        actions: list[Action] = []
        if self.stopped is not None:
            tally.not_run += 1
            return [SourceDone(position)]
        self._open_sources += 1
        self._expand(actions, stage=0, source=position, parent=-1, position=position)
        return self._fill(actions)

    def sources_ended(self) -> list[Action]:
        """Answer a `Pull`: there is none left."""
        self._answer_pull()
        self._sources_ended = True
        self._judge()
        return self._fill([])

    def expanded(self, unit: int, size: int) -> list[Action]:
        """Answer an `Expand`: it gave `size` items."""
        action = self._answer_expand(unit)
        if size < 0:
            raise IllegalEvent(f"unit {unit} expanded to {size} items; a fan-out is 0 or more")
        actions: list[Action] = []
        self.tallies[action.stage].done += 1
        self._expanded_once += 1
        self._fan_out_total += size
        stage = action.stage + 1
        self.tallies[stage].discovered += size
        if size == 0:
            self._close_item(actions, action)
            actions.append(Release(unit))
        elif self.stopped is not None:
            self.tallies[stage].not_run += size
            self._close_item(actions, action)
            actions.append(Release(unit))
        else:
            self._nodes[unit] = _Node(stage, action.source, action.parent, size, open=size)
            self._waiting[stage].append(unit)
            self._waiting_items += size
        self._judge()
        return self._fill(actions)

    def ran_whole(self, unit: int, size: int, *, failed: int = 0, not_run: int = 0) -> list[Action]:
        """Answer an `Expand`: its `size` items were all worked on where they were found."""
        action = self._answer_expand(unit)
        done = size - failed - not_run
        if action.stage + 1 != self._last or failed < 0 or not_run < 0 or done < 0:
            raise IllegalEvent(
                f"unit {unit} of stage {action.stage} ran whole with {size} items, {failed} "
                f"failed and {not_run} not run"
            )
        self.tallies[action.stage].done += 1
        self._expanded_once += 1
        self._fan_out_total += size
        tally = self.tallies[self._last]
        tally.discovered += size
        tally.done += done
        tally.failed += failed
        tally.not_run += not_run
        actions: list[Action] = []
        self._close_item(actions, action)
        self._judge()
        return self._fill(actions)

    def expansion_failed(self, unit: int) -> list[Action]:
        """Answer an `Expand`: the stage failed on this item."""
        action = self._answer_expand(unit)
        actions: list[Action] = []
        self.tallies[action.stage].failed += 1
        self._source_failures += 1
        self._close_item(actions, action)
        self._judge()
        return self._fill(actions)

    def expansion_not_run(self, unit: int) -> list[Action]:
        """Answer an `Expand`: it was not begun, because the run had been stopped."""
        action = self._answer_expand(unit)
        actions: list[Action] = []
        self.tallies[action.stage].not_run += 1
        self._close_item(actions, action)
        return self._fill(actions)

    def processed(self, unit: int, *, failed: int = 0, not_run: int = 0) -> list[Action]:
        """Answer a `Process`: so many of its items failed or were not run, the rest is done."""
        action = self._answer_process(unit)
        size = action.stop - action.start
        done = size - failed - not_run
        if failed < 0 or not_run < 0 or done < 0:
            raise IllegalEvent(
                f"unit {unit} of {size} items ended with {failed} failed and {not_run} not run"
            )
        tally = self.tallies[self._last]
        tally.done += done
        tally.failed += failed
        tally.not_run += not_run
        actions: list[Action] = []
        self._close(actions, action.parent, size)
        if failed:
            self._judge()
        return self._fill(actions)

    def stop(self, reason: str) -> list[Action]:
        """Start nothing more; what waits is counted as not run, what runs is still answered."""
        if self.stopped is not None:
            return []
        self.stopped = reason
        actions: list[Action] = []
        # Deepest first: closing an inner node may close its parents with it.
        for stage in range(self._last, 0, -1):
            queue = self._waiting[stage]
            while queue:
                unit = queue.popleft()
                node = self._nodes[unit]
                left = node.size - node.cursor
                node.cursor = node.size
                self._waiting_items -= left
                self.tallies[stage].not_run += left
                self._close(actions, unit, left)
        return actions

    # -- inside -----------------------------------------------------------------------------

    def _answer_pull(self) -> None:
        if not self._pulling:
            raise IllegalEvent("a source was reported though none had been asked for")
        self._pulling = False
        self._flying -= 1
        self._expanding -= 1

    def _answer_expand(self, unit: int) -> Expand:
        action = self._units.pop(unit, None)
        if not isinstance(action, Expand):
            raise IllegalEvent(f"unit {unit} was answered as an Expand, in flight is {action!r}")
        self._flying -= 1
        self._expanding -= 1
        return action

    def _answer_process(self, unit: int) -> Process:
        action = self._units.pop(unit, None)
        if not isinstance(action, Process):
            raise IllegalEvent(f"unit {unit} was answered as a Process, in flight is {action!r}")
        self._flying -= action.stop - action.start
        return action

    def _expand(
        self, actions: list[Action], *, stage: int, source: int, parent: int, position: int
    ) -> None:
        action = Expand(self._next_unit, stage, source, parent, position)
        self._next_unit += 1
        self._units[action.unit] = action
        self._flying += 1
        self._expanding += 1
        actions.append(action)

    def _close_item(self, actions: list[Action], action: Expand) -> None:
        """One item of an expanding stage has ended, with nothing left below it."""
        if action.parent < 0:
            self._open_sources -= 1
            actions.append(SourceDone(action.source))
        else:
            self._close(actions, action.parent, 1)

    def _close(self, actions: list[Action], unit: int, items: int) -> None:
        """Some items of a node have ended; close what is complete, upwards."""
        while True:
            node = self._nodes[unit]
            node.open -= items
            if node.open:
                return
            del self._nodes[unit]
            actions.append(Release(unit))
            if node.parent < 0:
                self._open_sources -= 1
                actions.append(SourceDone(node.source))
                return
            unit, items = node.parent, 1

    def _judge(self) -> None:
        # `stop` empties the queues; its actions must not be lost, so _fill delivers them.
        if self.stopped is None and (why := self._budget.exceeded(self.standing)):
            self._stop_due = why

    def _expandable(self) -> bool:
        """Whether items of an expanding stage wait."""
        return any(self._waiting[stage] for stage in range(1, self._last))

    def _may_expand(self) -> bool:
        if not self._expanding:
            return self._waiting_items <= self._buffered
        expected = (
            -(-self._fan_out_total // self._expanded_once)
            if self._expanded_once
            else UNKNOWN_FAN_OUT
        )
        coming = (self._expanding + 1) * max(1, expected)
        return self._waiting_items + coming <= self._buffered

    def _fill(self, actions: list[Action]) -> list[Action]:
        """Use the room in the window, by the rules at the top of this file."""
        if self._stop_due is not None:
            why, self._stop_due = self._stop_due, None
            actions += self.stop(why)
        if self.stopped is not None:
            return actions
        while (room := self._in_flight - self._flying) > 0:
            leaves = self._waiting[self._last]
            keep_expanding = self._in_flight > 1 and not self._expanding
            if (keep_expanding or not leaves) and self._start_expansion(actions):
                continue
            if not leaves or not self._process(actions, leaves, room):
                break
        return actions

    def _process(self, actions: list[Action], leaves: deque[int], room: int) -> bool:
        """Submit the next batch; False if it has to wait for room, so that it stays whole."""
        unit = leaves[0]
        node = self._nodes[unit]
        start = node.cursor
        size = min(self._batch, node.size - start, self._in_flight)
        if size > room:
            return False
        node.cursor = start + size
        self._waiting_items -= size
        if node.cursor == node.size:
            leaves.popleft()
        action = Process(self._next_unit, self._last, node.source, unit, start, start + size)
        self._next_unit += 1
        self._units[action.unit] = action
        self._flying += size
        actions.append(action)
        return True

    def _start_expansion(self, actions: list[Action]) -> bool:
        """Expand the deepest item that waits, or ask for a source; False if neither may be."""
        may_expand = self._may_expand()
        # Inner items above the bound can only become fewer by being expanded: one at a time.
        if not may_expand and (self._expanding or self._waiting[self._last]):
            return False
        for stage in range(self._last - 1, 0, -1):
            queue = self._waiting[stage]
            if queue:
                unit = queue[0]
                node = self._nodes[unit]
                position = node.cursor
                node.cursor += 1
                self._waiting_items -= 1
                if node.cursor == node.size:
                    queue.popleft()
                self._expand(
                    actions, stage=stage, source=node.source, parent=unit, position=position
                )
                return True
        if not may_expand or self._sources_ended or self._pulling:
            return False
        # The place of the expansion to come is taken now, so that nothing else fills it.
        self._pulling = True
        self._flying += 1
        self._expanding += 1
        actions.append(Pull())
        return True
