"""How much may be in flight."""

from __future__ import annotations

from dataclasses import dataclass, field

from evolve_tasks.errors import IllegalEvent


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be in flight; at least one of both bounds is given.

    Args:
        in_flight: items (N >= 1); `None` bounds units alone.
        units: units (N >= 1); `None` bounds items alone.
        threads: worker threads that want work.
        busy_threads: of these, those that it can keep busy; follows from the others.
    """

    in_flight: int | None = None
    units: int | None = None
    threads: int = 1
    busy_threads: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.in_flight, self.units) if bound is not None]
        if not bounds or min(bounds) < 1:
            raise IllegalEvent(f"{self} lets nothing start, or everything at once")
        # Noted once: it is asked for with each decision.
        object.__setattr__(self, "busy_threads", max(1, min(self.threads, *bounds)))
