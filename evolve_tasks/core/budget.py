"""The failure budget: when failures mean that nothing more may start, and how a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Standing:
    """What a policy may look at.

    Args:
        failed: failed sources and items so far.
        known: sources that failed plus items of the last stage discovered.
        complete: nothing can be discovered any more.
    """

    failed: int
    known: int
    complete: bool


class FailureBudget(Protocol):
    """A policy: asked after each failure, and once more when everything has ended."""

    def exceeded(self, standing: Standing) -> str | None:
        """Say why nothing more may start, or `None` to go on."""
        ...

    def rejects(self, standing: Standing) -> bool:
        """Whether the run, now over, has to raise."""
        ...


@dataclass(frozen=True, slots=True)
class Finish:
    """Run everything else, then raise."""

    def exceeded(self, standing: Standing) -> str | None:
        """Never: the rest is run."""
        return None

    def rejects(self, standing: Standing) -> bool:
        """Any failure."""
        return standing.failed > 0


@dataclass(frozen=True, slots=True)
class FailFast:
    """Start nothing more after the first failure."""

    def exceeded(self, standing: Standing) -> str | None:
        """On the first failure."""
        return "the first failure (on_failure='fail_fast')" if standing.failed else None

    def rejects(self, standing: Standing) -> bool:
        """Any failure."""
        return standing.failed > 0


@dataclass(frozen=True, slots=True)
class Ignore:
    """Accept every failure."""

    def exceeded(self, standing: Standing) -> str | None:
        """Never."""
        return None

    def rejects(self, standing: Standing) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, slots=True)
class Bounded:
    """Accept up to `count` failures and up to the share `ratio` of all that is known."""

    count: int | None
    ratio: float | None

    def exceeded(self, standing: Standing) -> str | None:
        """As soon as a bound is broken for certain.

        The share is judged early only once nothing more can be discovered: until then a
        growing total may still bring it back below the bound.
        """
        if self.count is not None and standing.failed > self.count:
            return f"{standing.failed} failures, of which {self.count} are tolerated"
        if self.ratio is not None and standing.complete and self._above_ratio(standing):
            return f"{standing.failed} of {standing.known} failed, tolerated is {self.ratio:.1%}"
        return None

    def rejects(self, standing: Standing) -> bool:
        """If either bound is broken."""
        too_many = self.count is not None and standing.failed > self.count
        return too_many or (self.ratio is not None and self._above_ratio(standing))

    def _above_ratio(self, standing: Standing) -> bool:
        # Divided, not multiplied: 29 of 100 is exactly 0.29, but 0.29 * 100 is below 29.
        if self.ratio is None or not standing.known:
            return False
        return standing.failed / standing.known > self.ratio
