"""What is a Prefect task run of its own, and what that has cost."""

from __future__ import annotations

from evolve_tasks.options import RecordMode

LENT_TO = 4  # units of nested work that may spend the record budget at the same time
UNBOUNDED = 2**31  # task runs that `record="items"` may spend


class RecordLedger:
    """Decides what is a Prefect task run of its own, and counts what that has cost.

    Args:
        mode: `options.record`.
        budget: task runs that `"auto"` may spend before it records units.
        sources_known: how many sources there are; `None` if nobody knows.
    """

    def __init__(self, mode: RecordMode, budget: int, sources_known: int | None) -> None:
        self.mode = mode
        self._left = budget
        self._lent: dict[int, int] = {}
        # Each source is one task run, and has an item at least: where that does not fit there
        # is no use in beginning with single ones.
        too_many = sources_known is not None and 2 * sources_known > budget
        self.all_units = mode == "batches" or (mode == "auto" and too_many)

    @property
    def in_units(self) -> bool:
        """Whether what is not recorded singly is recorded as a unit."""
        return self.mode in ("auto", "batches")

    @property
    def item_allowance(self) -> int:
        """How many more items may be task runs."""
        if self.mode == "items":
            return UNBOUNDED
        return max(0, self._left) if self.mode == "auto" and not self.all_units else 0

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
        self.foresee(expected)
        if not is_task or self.item_allowance < count:
            return False
        self.spent(count)
        return True

    def foresee(self, expected: int) -> None:
        """Give up single runs for good where the items that are expected do not fit."""
        if self.mode == "auto" and expected > self._left:
            self.all_units = True

    def lend(self, unit: int) -> int:
        """Take a part of what is left for a unit that decides by itself."""
        allowance = self.item_allowance
        if self.mode == "auto":
            allowance = -(-allowance // LENT_TO)
            self._lent[unit] = allowance
            self.spent(allowance)
        return allowance

    def give_back(self, unit: int, used: int) -> None:
        """Take back what a unit was lent and did not use."""
        self.spent(min(0, used - self._lent.pop(unit, used)))

    def spent(self, count: int) -> None:
        """Note that so many task runs were spent."""
        self._left -= count
