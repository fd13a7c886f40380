"""Units as Dask futures that end in any order: what `as_completed` and `nested` share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from evolve_tasks.answers import Answer
from evolve_tasks.core.actions import Expand, Extra, Process
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.feeding import SourceFeed
from evolve_tasks.serving import IDLE_S
from evolve_tasks.strategies.chunk_feed import chunk_feed
from evolve_tasks.strategies.ended import Ended
from evolve_tasks.strategies.fetching import Fetching
from evolve_tasks.strategies.leaving import abandon
from evolve_tasks.strategies.submitting import Submitter
from evolve_tasks.strategies.together import Member, apart, by_itself, parties
from evolve_tasks.workers.calls import (
    CollectCall,
    CombineCall,
    ExpandCall,
    Measure,
    NestedResult,
    ProcessCall,
)
from evolve_tasks.workers.nested import PROBING_S


class FutureCarrier:
    """Carries units out as Dask futures that end in any order."""

    def __init__(self, run: EvolvingRun, submitter: Submitter) -> None:
        self.submitter = submitter
        self._run = run
        self._fetching = Fetching(submitter.client)
        self.ended = Ended()
        self._parties: dict[int, list[Member]] = {}  # by the first of those that go together
        self._feed = SourceFeed(run.sources, self.ended.tell)
        run.wake = lambda: self.ended.tell(None)
        self._chunks = chunk_feed(submitter, run, self.ended.tell_chunk)

    def pull(self, most: int) -> None:
        self._feed.request(most)

    def expand(self, action: Expand, call: ExpandCall) -> None:
        self.ended.add(
            action.unit,
            self.submitter.expand(
                action.unit,
                call,
                turn=self._run.core.turn(action.unit),
                parent=action.parent,
            ),
        )

    def process(self, action: Process, call: ProcessCall) -> None:
        self.ended.add(action.unit, self.submitter.process(action, call))

    def together(self, actions: Sequence[Expand | Process]) -> None:
        turn = self._run.core.turn(actions[0].unit)
        for party in parties(self._run.sending, actions):
            if len(party) == 1:
                self._alone(*party[0])
                continue
            first = party[0].action.unit
            self._parties[first] = party
            self.ended.add(first, self.submitter.together(party, turn=turn))

    def _alone(self, action: Expand | Process, call: ExpandCall | ProcessCall) -> None:
        if isinstance(action, Process):
            assert isinstance(call, ProcessCall), "it processes"
            self.process(action, call)
        else:
            assert isinstance(call, ExpandCall), "it expands"
            self.expand(action, call)

    def _each(self, unit: int, answer: Answer) -> Iterator[tuple[int, Answer]]:
        """The answers of all that went together with a unit, or its own."""
        party = self._parties.pop(unit, None)
        if party is None:
            yield unit, answer
            return
        for member, one in zip(party, apart(party, answer), strict=True):
            if one is None:
                self.submitter.release(member.action.unit)
                self._alone(*by_itself(self._run.sending, member))
            else:
                yield member.action.unit, one

    def extra(self, action: Extra, call: CollectCall | CombineCall) -> None:
        self.ended.add(action.unit, self.submitter.extra(action.unit, call))

    def release(self, unit: int) -> None:
        self.submitter.release(unit)

    def answers(self) -> Iterable[tuple[int, Answer]]:
        ended, answers = self.ended.wait(PROBING_S if self._run.core.probing else IDLE_S)
        if ended:
            taken = self._fetching.take(
                [future for _, future in ended], lambda: self._run.interrupted
            )
            for (unit, future), answer in zip(ended, taken, strict=True):
                if answer is None:
                    self.ended.again(unit, future)
                    continue
                for member, one in self._each(unit, answer):
                    if isinstance(one, Measure):
                        self.submitter.measured(member, one)
                    elif isinstance(one, NestedResult) and one.orphans:
                        self.submitter.given_back(member, one.orphans)
                    answers.append((member, one))
        if not answers and self.ended.under_way():
            self.submitter.require_workers(self.ended.under_way())
        return answers

    def stop(self) -> None:
        self.submitter.stop()

    def pause(self, paused: bool) -> None:
        self.submitter.pause(paused)

    def permit(self, unit: int, offset: int, number: int) -> None:
        self.submitter.permit(unit, offset, number)

    def close(self) -> None:
        self._feed.close()
        self._chunks.close()

    def abandon(self) -> None:
        abandon(self.submitter, self.ended)
