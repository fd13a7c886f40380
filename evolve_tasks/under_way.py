"""What of a run has begun and not ended: its sources, and its units with what they work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from evolve_tasks.core.actions import Expand, Extra, Follow, Process
from evolve_tasks.leads import Leads
from evolve_tasks.workers.calls import Recording, SourceCall


@dataclass(slots=True)
class UnderWay:
    """Knows a source until it has ended, and a unit until no list of it is open.

    Args:
        sources: each source that is open, and what stands for it, by position.
        units: what is in flight, and what Prefect sees of it, by unit.
        calls: what each unit expanded whose lists may be open.
        unit_runs: the task run of each unit that may have open lists.
        each: units that may have open lists, and each part of which has a task run of its own.
        leads: the lists that came to the flow.
    """

    sources: dict[int, tuple[Any, SourceCall]] = field(default_factory=dict)
    units: dict[int, tuple[Expand | Process | Extra | Follow, Recording]] = field(
        default_factory=dict
    )
    calls: dict[int, tuple[SourceCall, ...]] = field(default_factory=dict)
    unit_runs: dict[int, UUID] = field(default_factory=dict)
    each: set[int] = field(default_factory=set)
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

    def parent_run(self, action: Expand | Process) -> UUID | None:
        """The task run that gave the items of a unit; not everything has one."""
        if action.parent < 0:
            return None
        lead = self.leads.get(action.parent, action.offset)
        if lead is not None:
            return lead.run_above(action.start)
        return self.run_of(action.parent, self.calls[action.parent][action.offset])

    def run_of(self, unit: int, call: SourceCall) -> UUID | None:
        """The task run of something that a unit has expanded, if it had one."""
        return call.run_id if unit in self.each else self.unit_runs.get(unit)

    def note_runs(self, unit: int, recording: Recording) -> None:
        """Note what of an expanding unit is a task run, before anything is asked of it."""
        if (run_id := recording.unit or recording.within) is not None:
            self.unit_runs[unit] = run_id
        elif recording.each:
            self.each.add(unit)

    def released(self, unit: int) -> None:
        """Forget a unit, none of whose lists is open."""
        self.unit_runs.pop(unit, None)
        self.each.discard(unit)
        self.calls.pop(unit, None)
        self.leads.release(unit)
