"""What a run does beside its stages: sources are collected, and results are combined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any
from uuid import UUID, uuid4

from evolve_tasks.answers import Lost
from evolve_tasks.collecting import Collecting, Ended
from evolve_tasks.core.actions import Action, Expand, Extra, ItemDone
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.outcome import Failure
from evolve_tasks.record_ledger import RecordLedger
from evolve_tasks.reducing import Combination, Index, Reducing
from evolve_tasks.report import Story
from evolve_tasks.resuming import Resuming
from evolve_tasks.stages import Stage
from evolve_tasks.telling import tell_beside
from evolve_tasks.unreadable import RULE
from evolve_tasks.workers.calls import (
    CollectCall,
    Collected,
    CombineCall,
    Combined,
    Parts,
    Recorded,
    Recording,
    SourceCall,
    collect_run_id,
)
from evolve_tasks.workers.failing import failure_from
from evolve_tasks.workers.transport import Packed


@dataclass(slots=True)
class Beside:
    """Asks the core for what is to be done beside the stages, and takes what came of it.

    Args:
        core: the core of the run.
        ledger: decides what Prefect sees.
        story: is told of what was done, and of what failed.
        collecting: what is called with each source that has ended; `None` for nothing.
        reducing: what combines results; `None` for nothing.
        resuming: the journal of the run; `None` if it has none.
        give_up: has the API know that there is no result of something.
    """

    core: Evolution
    ledger: RecordLedger
    story: Story
    collecting: Collecting | None = None
    reducing: Reducing | None = None
    resuming: Resuming | None = None
    give_up: Callable[..., UUID | None] = lambda *_, **__: None
    _asked: dict[int, Ended | Combination] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=count)
    _sources: int = 0  # that have ended
    _reduced: list[Any] | None = None  # what all of it comes to, if anything

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The functions, as stages after the others."""
        collecting = () if self.collecting is None else self.collecting.stages
        return collecting if self.reducing is None else (*collecting, self.reducing.stage)

    @property
    def values_wanted(self) -> bool:
        """Whether results are kept; where they are combined they are not."""
        return self.reducing is None

    def gather(self, portions: Sequence[Portion]) -> None:
        """Take in what units gave; results that nobody keeps are let go of."""
        if self.collecting is not None:
            self.collecting.gather(portions)
        if self.reducing is not None:
            for portion in portions:
                portion.values = []

    def begun(self, action: Expand, calls: Sequence[SourceCall]) -> None:
        """Inner items are about to be expanded."""
        if self.collecting is not None:
            self.collecting.begun(action, calls)

    def expanded(
        self, action: Expand, offset: int, call: SourceCall, item: Any, run: UUID | None
    ) -> None:
        """Note that something was expanded; it may have given nothing.

        Args:
            action: the unit that it was in.
            offset: which of its items it was.
            call: what stood for it.
            item: an inner item itself, where these are collected.
            run: its task run, if it has one.
        """
        if self.collecting is not None:
            self.collecting.expanded(action, offset, call, item, run)

    def parts(self, index: Index, parts: Parts | None) -> None:
        """Take what consecutive items came to."""
        if self.reducing is None or parts is None:
            return
        if parts.failure is not None:
            if self.reducing.failure is None:
                self.reducing.failure = parts.failure
                label = parts.failure.item
                run_id = self._not_combined(self.reducing.stage, parts.failure, label)
                tell_beside(self.story, None, parts.failure, run_id)
                self.core.failed_beside()
            return
        self.reducing.take(index, parts.blocks)
        for position, part in parts.own:
            self.reducing.take_own((*index, position), part)

    def known(self, index: Index, start: int, values: Sequence[Any], leading: set[int]) -> None:
        """Take results that a journal has; what led further stands alone."""
        if self.reducing is None:
            return
        for place, value in enumerate(values, start):
            if place in leading:
                self.reducing.take_own((*index, place), Packed.of([value]))
            else:
                self.reducing.take_values(index, place, [value])

    def item_ended(self, done: ItemDone, source_of: Callable[[SourceCall], Any]) -> list[Action]:
        """Ask for what is to be done with an inner item that has ended."""
        ended = None if self.collecting is None else self.collecting.item_ended(done, source_of)
        return [] if ended is None else self._collect(ended)

    def source_ended(self, position: int, source: Any, call: SourceCall) -> list[Action]:
        """Ask for what is to be done with a source that has ended."""
        actions: list[Action] = []
        self._sources += 1
        if self.collecting is not None:
            ended = self.collecting.source_ended(source, call)
            if ended is not None:
                actions += self._collect(ended)
        if self.reducing is not None:
            self.reducing.source_ended(position)
        return actions + self.go_on()

    def go_on(self) -> list[Action]:
        """Ask for what can be combined now; asked after each step."""
        actions: list[Action] = []
        if self.reducing is None or self.reducing.failure is not None:
            return actions
        # The core may be further than we are: all sources have to have been heard of here.
        if self.core.only_extras and self._sources == self.core.sources:
            self.reducing.over()
            self._read()
        for combination in self.reducing.wanted():
            actions += self._ask(combination)
        return actions

    def _read(self) -> None:
        """Unpack what all of it comes to, once there is that."""
        reducing = self.reducing
        if reducing is None or reducing.value is None or self._reduced is not None:
            return
        try:
            self._reduced = reducing.value.value()
        except Exception as error:
            said = TypeError(
                "what all results come to cannot be unpickled in the flow's process "
                f"({type(error).__name__}: {error}); {RULE}"
            )
            reducing.failure = failure_from(
                said, stage=reducing.stage.name, index=(0,), item="what was combined"
            )
            run_id = self._not_combined(reducing.stage, reducing.failure, "all")
            tell_beside(self.story, None, reducing.failure, run_id)
            self.core.failed_beside()

    def call(self, action: Extra) -> CollectCall | CombineCall | Lost:
        """What to send for an `Extra`; `Lost` if it cannot travel."""
        asked = self._asked[action.number]
        if isinstance(asked, Ended):
            each = self.ledger.beside(asked.by.stage.task is not None, of_source=True)
            recording = Recording(each=each, upstream=asked.run)
            try:
                given = Packed.of(asked.given)
            except Exception as error:
                return Lost(
                    TypeError(
                        f"what {asked.by.stage.name} is to be called with cannot be pickled "
                        f"({type(error).__name__}: {error}), so it cannot be sent to a worker; "
                        "give sources that are plain values"
                    )
                )
            return CollectCall(asked.by.of, asked.call, given, recording, action.crashes)
        assert self.reducing is not None, "it was asked for"
        is_task = self.reducing.stage.task is not None
        unit = uuid4() if self.ledger.beside(is_task, of_source=False) else None
        return CombineCall(
            [group.blocks for group in asked.groups],
            _label_of(asked),
            next((group.path for group in asked.groups if group.path), (0,)),
            Recording(unit=unit),
            action.crashes,
        )

    def answered(
        self,
        action: Extra,
        recording: Recording,
        answer: Any,
        lost: Failure | None,
    ) -> tuple[list[Portion], list[Recorded]]:
        """Take what came of it: a failure is part of the outcome.

        Args:
            action: what was asked for.
            recording: what Prefect saw of it.
            answer: how it has ended.
            lost: why there is no answer.
        """
        asked = self._asked.pop(action.number)
        if isinstance(asked, Ended):
            assert self.collecting is not None, "it was asked for"
            portions, recorded = self.collecting.answered(asked, answer, lost)
            if self.resuming is not None and asked.kept is not None and not portions:
                _, value = self.collecting.values[asked.by.of][asked.call.index]
                self.resuming.note_collected(asked.kept, value)
            failures = [one for portion in portions for one in portion.failures]
            failure = failures[0] if failures else None
            run_id = recorded[0].run_id if recorded else None
            if failure is not None and run_id is None:
                run_id = self.give_up(
                    asked.by.stage,
                    collect_run_id(asked.call),
                    asked.call.label,
                    asked.run,
                    failure,
                    told=None if recording.each else False,
                )
            self._tell(answer, failure, run_id)
            return portions, recorded
        assert self.reducing is not None, "it was asked for"
        failure, recorded = lost, []
        if isinstance(answer, Combined):
            failure = answer.failure
            if answer.recorded and recording.unit is not None:
                stage = self.reducing.stage
                error = None if failure is None else str(failure)
                label = _label_of(asked)
                recorded = [Recorded(recording.unit, stage.position, label, error)]
            if failure is None:
                self.reducing.combined(asked, answer.parts)
        # Of what cannot be combined the outcome has the first failure; so has the report.
        first = failure if self.reducing.failure is None else None
        run_id = recorded[0].run_id if recorded else None
        if first is not None and run_id is None:
            run_id = self._not_combined(self.reducing.stage, first, _label_of(asked), recording)
        self._tell(answer, first, run_id)
        self.reducing.failure = self.reducing.failure or failure
        return [], recorded

    def _tell(self, answer: Any, failure: Failure | None, run_id: UUID | None) -> None:
        span = answer.span if isinstance(answer, Collected | Combined) else None
        tell_beside(self.story, span, failure, run_id)

    def name_of(self, action: Extra) -> str:
        """Name of the function that an `Extra` calls."""
        asked = self._asked[action.number]
        if isinstance(asked, Ended):
            return asked.by.stage.name
        return "" if self.reducing is None else self.reducing.stage.name

    def _not_combined(
        self, stage: Stage, failure: Failure, label: str, recording: Recording | None = None
    ) -> UUID | None:
        """The task run that says so; `None` where only sources have one."""
        if self.ledger.mode == "sources":
            return None
        unit = None if recording is None else recording.unit
        told = False if unit is None else None
        return self.give_up(stage, unit or uuid4(), label, None, failure, told=told)

    def index_of(self, action: Extra) -> Index:
        """Where its failure stands in the outcome."""
        asked = self._asked[action.number]
        if isinstance(asked, Ended):
            return asked.call.index
        return next((group.path for group in asked.groups if group.path), (0,))

    def reduced(self) -> Any:
        """What all results come to; `None` if there are none, or they were not all combined."""
        reducing = self.reducing
        if reducing is None or reducing.failure is not None:
            return None
        return self._reduced[0] if self._reduced else None

    def failures(self) -> list[Failure]:
        """Why results could not be combined."""
        reducing = self.reducing
        if reducing is None or reducing.failure is None:
            return []
        return [replace(reducing.failure, source=None)]

    def _collect(self, ended: Ended) -> list[Action]:
        """Ask for what is collected, unless a journal has it: of the same, by the same code."""
        if self.resuming is None:
            return self._ask(ended)
        assert self.collecting is not None, "it is what has ended"
        ended.kept = self.resuming.kept(ended.call.index, ended.by.stage, ended.given)
        for value in self.resuming.collected(ended.kept):
            self.collecting.known(ended, value)
            return []
        return self._ask(ended)

    def _ask(self, what: Ended | Combination) -> list[Action]:
        if self.core.stopped is not None:
            return []
        number = next(self._numbers)
        self._asked[number] = what
        return self.core.add_extra(number)


def _label_of(combination: Combination) -> str:
    return f"{sum(len(group.blocks) for group in combination.groups)} parts"
