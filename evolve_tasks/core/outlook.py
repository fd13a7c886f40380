"""What durations and fan-outs were so far, stage by stage, and what is expected from them."""

from __future__ import annotations

from math import prod

from evolve_tasks.core.batching import Durations, inline_items
from evolve_tasks.core.fan_outs import FanOuts


class Outlook:
    """What a run has seen of its stages.

    Args:
        stages: number of stages (N >= 2).
        item_s: seconds that an item of the last stage takes, if somebody has measured it.

    Example:
        >>> outlook = Outlook(stages=3)
        >>> outlook.gave(0, 4), outlook.gave(1, 10)
        (None, None)
        >>> outlook.items_below(0), outlook.items_below(1)
        (40, 10)
    """

    def __init__(self, stages: int, item_s: float | None = None) -> None:
        self._last = stages - 1
        self.durations = [Durations() for _ in range(stages)]
        self.fan_outs = [FanOuts() for _ in range(self._last)]
        if item_s is not None:
            self.durations[self._last].add(1, item_s)

    def gave(self, stage: int, size: int) -> None:
        """Take in what an expansion gave."""
        self.fan_outs[stage].add(size)

    @property
    def item_s(self) -> float | None:
        """Seconds that an item of the last stage takes; `None` before any was measured."""
        return self.durations[self._last].mean_s

    @property
    def awaits_items(self) -> bool:
        """Whether items of the last stage have come, or may still come."""
        for durations, fan_outs in zip(self.durations, self.fan_outs, strict=False):
            if durations.mean_s is None:
                return True
            if not fan_outs.total:
                return False  # what gives nothing leaves nothing to measure
        return True

    def items_below(self, stage: int) -> int | None:
        """Items of the last stage that an expansion leads to; `None` if nobody knows."""
        below = self.fan_outs[stage:]
        if not all(fan_outs.known for fan_outs in below):
            return None
        return prod(fan_outs.expected for fan_outs in below)

    def short(self, stage: int) -> bool:
        """Whether the lists that a stage gives are worked on where they are found."""
        fits = self.fan_outs[stage].expected <= inline_items(self.item_s)
        return stage + 1 == self._last and fits

    def to_wait(self, stage: int, *, in_passing: bool) -> int:
        """Items that an expansion is expected to leave waiting.

        Args:
            stage: its stage.
            in_passing: short lists are worked on where they are found.
        """
        fan_outs = self.fan_outs[stage]
        return fan_outs.expected_left if in_passing and self.short(stage) else fan_outs.expected
