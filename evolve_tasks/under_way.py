"""What of a run has begun and not ended: its sources, and its units with what they work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from evolve_tasks.core.actions import Expand, Extra, Process
from evolve_tasks.leads import Leads
from evolve_tasks.stages import Stage
from evolve_tasks.workers.calls import Recording, SourceCall


@dataclass(slots=True)
class UnderWay:
    """Knows a source until it has ended, and a unit until no list of it is open.

    Args:
        sources: each source that is open, and what stands for it, by position.
        units: what is in flight, and what Prefect sees of it, by unit.
        calls: what each unit expanded whose lists may be open.
        unit_runs: the task run of each unit that has open lists.
        leads: the lists that came to the flow.
    """

    sources: dict[int, tuple[Any, SourceCall]] = field(default_factory=dict)
    units: dict[int, tuple[Expand | Process | Extra, Recording]] = field(default_factory=dict)
    calls: dict[int, tuple[SourceCall, ...]] = field(default_factory=dict)
    unit_runs: dict[int, UUID] = field(default_factory=dict)
    leads: Leads = field(default_factory=Leads)

    def source(self, call: SourceCall) -> Any:
        """The source from which something comes."""
        return self.sources[call.position][0]

    def parent(self, action: Expand | Process) -> SourceCall:
        """What gave the items of a unit."""
        lead = self.leads.get(action.parent, action.offset)
        if lead is not None and lead.owner is not None:
            return lead.owner
        return self.calls[action.parent][action.offset]

    def parent_run(
        self, action: Expand | Process, parent: SourceCall, stages: Sequence[Stage]
    ) -> UUID | None:
        """The task run that gave the items of a unit; a plain function has none.

        Args:
            action: the unit.
            parent: what gave its items.
            stages: all stages.
        """
        if (unit_run := self.unit_runs.get(action.parent)) is not None:
            return unit_run
        gave = [stages[action.stage - 1]]
        if self.leads.get(action.parent, action.offset) is not None:
            gave.append(stages[-1])  # or else it was given on the way
        return parent.run_id if any(stage.task is not None for stage in gave) else None

    def released(self, unit: int) -> None:
        """Forget a unit, none of whose lists is open."""
        self.unit_runs.pop(unit, None)
        self.calls.pop(unit, None)
        self.leads.release(unit)
