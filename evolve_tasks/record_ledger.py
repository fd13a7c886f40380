"""What is a Prefect task run of its own, and what that has cost."""

from __future__ import annotations

import time
from collections.abc import Callable

from evolve_tasks.core.pace import Pace
from evolve_tasks.options import RecordMode

LENT_TO = 4  # units of nested work that may spend the record budget at the same time
UNBOUNDED = 2**31  # task runs that `record="items"` may spend

# What the API gets of a task run: that it runs, if it does for a moment, and that it has ended.
EVENTS = 2


class RecordLedger:
    """Decides what is a Prefect task run of its own, and counts what that has cost.

    Args:
        mode: `options.record`.
        budget: task runs that `"auto"` may spend before it records units.
        sources_known: how many sources there are; `None` if nobody knows.
        each: task runs that a source and one item of it are, where each is one: 0 to 2.
        events_per_minute: pace that `"auto"` keeps.
        clock: gives the time, in seconds.
    """

    def __init__(
        self,
        mode: RecordMode,
        budget: int,
        sources_known: int | None,
        each: int,
        events_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mode = mode
        self._left = budget
        self._budget = f"the {budget:,} task runs of record_budget"
        self._clock = clock
        self._pace = Pace(events_per_minute / EVENTS, clock())
        self._paced = f"the {events_per_minute:,} events a minute of events_per_minute"
        self._lent: dict[int, int] = {}
        # Each source has an item at least: where that does not fit there is no use in beginning
        # with single ones.
        too_many = sources_known is not None and each * sources_known > budget
        self.all_units = mode == "batches" or (mode == "auto" and too_many)
        self.degraded: str | None = None  # why some items are no task runs of their own
        self._reason = f"{self._budget} are spent, or set aside for sources under way"
        self.unseen_units = 0  # that were no task runs, to keep the pace
        if too_many:
            self._reason = f"{sources_known:,} sources and their items are more than {self._budget}"

    @property
    def item_allowance(self) -> int:
        """How many more items may be task runs."""
        if self.mode == "items":
            return UNBOUNDED
        if self.mode != "auto" or self.all_units:
            return 0
        return max(0, min(self._left, int(self._pace.left(self._clock()))))

    def each_source(self, count: int, is_task: bool) -> bool:
        """Whether each of some sources is a task run."""
        return is_task and (self.mode == "sources" or self.each_item(count, is_task))

    def each_item(self, count: int, is_task: bool, expected: int = 0) -> bool:
        """Whether each of some items is a task run.

        Args:
            count: how many there are.
            is_task: whether their stage is a task at all.
            expected: items that are still to be worked on, as far as is known. Where they do
                not fit there is no use in beginning: single runs are slow.
        """
        if not is_task:
            return False
        self.foresee(expected)
        if self.item_allowance >= count:
            self.spent(count)
            return True
        if not self.all_units and self._left >= count:
            self._reason = f"{self._paced} are spent"
        return False

    def unit(self, is_task: bool) -> bool:
        """Whether a unit, of which not each part is a task run, is one as a whole."""
        if self.mode == "batches":
            return True
        if self.mode != "auto":
            return False
        if not is_task:
            return True
        self._degrade()
        if self._pace.take(1, self._clock()):
            return True
        self.unseen_units += 1
        return False

    def beside(self, is_task: bool, *, of_source: bool) -> bool:
        """Whether something beside the stages is a task run of its own.

        Args:
            is_task: whether its function is a task at all.
            of_source: it is done once for each source, or else for parts of many.
        """
        if not is_task or self.mode == "sources":
            return is_task and of_source
        if self.mode != "auto":
            return True
        if of_source and self._left < 1:
            return False
        if not self._pace.take(1, self._clock()):
            self.unseen_units += 1
            return False
        self._left -= of_source
        return True

    def shared(self) -> None:
        """Take back what a unit was to cost that is part of a task run of others."""
        if self.mode == "auto":
            self._pace.spend(-1)

    def foresee(self, expected: int) -> None:
        """Give up single runs for good where the items that are expected do not fit."""
        if self.mode == "auto" and expected > self._left and not self.all_units:
            self.all_units = True
            self._reason = f"{expected:,} items are expected, which is more than {self._budget}"

    def _degrade(self) -> None:
        if self.degraded is None:
            self.degraded = self._reason

    def lend(self, unit: int) -> tuple[int, float]:
        """Take a part of what is left for a unit that decides by itself.

        Returns:
            How many of its items may be task runs, and how many batches in a minute.
        """
        allowance = self.item_allowance
        if self.mode != "auto":
            return allowance, UNBOUNDED if self.mode == "batches" else 0.0
        allowance = -(-allowance // LENT_TO)
        self._lent[unit] = allowance
        self.spent(allowance)
        # A pace is shared by those that are under way, as far as is known when one begins.
        return allowance, self._pace.per_minute / max(LENT_TO, len(self._lent))

    def give_back(self, unit: int, items: int = 0, batches: int = 0, unseen: int = 0) -> None:
        """Take back what a unit was lent and did not use.

        Args:
            unit: the unit.
            items: how many of its items were task runs.
            batches: how many of its batches were.
            unseen: how many of its batches were none, to keep the pace.
        """
        if unit not in self._lent:
            return
        more = items - self._lent.pop(unit)
        self.spent(min(0, more))
        # A batch of one is the task run of its item.
        self._pace.spend(batches + max(0, more))
        self.unseen_units += unseen
        if batches or unseen:
            self._degrade()

    def spent(self, count: int) -> None:
        """Note that so many task runs were spent."""
        self._left -= count
        self._pace.spend(count)
