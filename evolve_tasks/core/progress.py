"""How far a run is: a share that rises, of a whole that may still grow."""

from __future__ import annotations

from dataclasses import dataclass

# As long as nobody knows how many sources there are, the first half of the bar is all there is:
# a share of what is known says nothing of what is to come.
UNKNOWN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Args:
        sources: sources that have arrived, N >= 0.
        sources_ended: of these, expanded, failed, resumed or not begun.
        sources_known: how many sources there are; `None` if nobody knows.
        discovered: items of the last stage that are known.
        done: of these, succeeded now.
        failed: of these, failed.
        resumed: of these, taken from a journal.
        not_run: of these, not begun, because the run ends early.
        unseen: items that the sources which are left are expected to give.
        finished: nothing is in flight, waiting or still to come.

    Example:
        >>> progress = Progress(sources=2, sources_ended=2, sources_known=2, discovered=10, done=4)
        >>> progress.percent
        50.0
    """

    sources: int = 0
    sources_ended: int = 0
    sources_known: int | None = None
    discovered: int = 0
    done: int = 0
    failed: int = 0
    resumed: int = 0
    not_run: int = 0
    unseen: int = 0
    finished: bool = False

    @property
    def ended(self) -> int:
        """Items that have ended."""
        return self.done + self.failed + self.resumed + self.not_run

    @property
    def left(self) -> int:
        """Items that are still to end, those of sources to come as far as they are expected."""
        return max(0, self.discovered - self.ended) + self.unseen

    @property
    def percent(self) -> float:
        """Share of sources and items that have ended, 0 to 100; 100 only if the run is finished.

        An expansion counts as one item does. Items of sources that were not expanded yet are
        counted in with the fan-out that the others had.
        """
        if self.finished:
            return 100.0
        sources = self.sources if self.sources_known is None else self.sources_known
        whole = max(sources, self.sources) + self.ended + self.left
        share = (self.sources_ended + self.ended) / whole if whole else 0.0
        if self.sources_known is None:
            share *= UNKNOWN_SHARE
        return min(99.0, 100.0 * share)
