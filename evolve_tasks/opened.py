"""A run from when it was opened until the API knows all of it: driven, closed, judged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

import anyio
import anyio.from_thread
import httpx
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger

from evolve_tasks.core.assembly import Portion
from evolve_tasks.errors import RunCancelled
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.monitoring.cancelling import is_cancelled
from evolve_tasks.monitoring.counted import tell_counts
from evolve_tasks.monitoring.crashes import (
    SETTLED_S,
    end_what_died,
    record_given_up,
    tell_for_the_dead,
)
from evolve_tasks.monitoring.events import RunEvents
from evolve_tasks.monitoring.recording import FAILED, unrecorded_after, wait_until_recorded
from evolve_tasks.monitoring.shown import Shown
from evolve_tasks.naming import LABEL, one_line
from evolve_tasks.options import EvolveOptions
from evolve_tasks.outcome import EvolveFailed, Failure, Outcome
from evolve_tasks.runner import EvolveTaskRunner
from evolve_tasks.strategies.as_completed import run_as_completed
from evolve_tasks.strategies.asynchronous import run_async
from evolve_tasks.strategies.choice import Choice
from evolve_tasks.strategies.nested import run_adaptive, run_nested
from evolve_tasks.strategies.sequential import run_sequential
from evolve_tasks.strategies.submitting import Submitter
from evolve_tasks.workers.calls import GivenUp, RunSpec
from evolve_tasks.workers.context import on_worker
from evolve_tasks.workers.task_runs import task_runs_are_of

# How long the API is given to record what workers said that have died since; without progress.
DEAD_S = 8.0

# Events that are sent together: a server with 10,000 of them waiting loses some.
TOLD_AT_ONCE = 1_000

# Vanished sources that a log line names.
SHOWN = 5


def flow_run_id() -> UUID:
    """Id of the flow run around the caller."""
    context = FlowRunContext.get()
    assert context is not None, "it was checked before"
    assert context.flow_run is not None, "it was checked before"
    return context.flow_run.id


@dataclass
class Opened:
    """A run that has been opened, and has to be closed.

    Args:
        options: its options.
        choice: the strategy, and why.
        runner: the flow's task runner.
        run: the run.
        spec: what the workers know of it.
        shown: what the Prefect UI shows of it.
        events: what automations hear of it.
        gone: sources that earlier runs had and this one has not, once it is closed.
    """

    options: EvolveOptions
    choice: Choice
    runner: Any
    run: EvolvingRun
    spec: RunSpec
    _submitter: Submitter | None
    _stack: ExitStack
    shown: Shown
    events: RunEvents
    _threads: int
    gone: list[str] = field(default_factory=list)
    _degraded: bool = False
    _adapted: bool = False
    _ended: str = "running"
    _logger: Any = field(default_factory=get_run_logger)
    _flow_run_id: UUID = field(default_factory=flow_run_id)

    @property
    def submitter(self) -> Submitter:
        assert self._submitter is not None, "a sequential run submits nothing"
        return self._submitter

    def portions(self) -> Generator[Portion, None, None]:
        """Run, in whatever way was chosen."""
        match self.choice.strategy:
            case "sequential":
                portions = run_sequential(self.run, self.spec)
            case "as_completed" if self.choice.adapts:
                portions = run_adaptive(self.run, self.submitter, self._threads)
            case "as_completed":
                portions = run_as_completed(self.run, self.submitter)
            case "nested":
                portions = run_nested(self.run, self.submitter, self._threads)
            case _:
                portions = _in_own_loop(run_async(self.run, self.submitter))
        with closing(portions):
            for portion in portions:
                self.heed()
                yield portion

    def heed(self) -> None:
        """Say at once what somebody may have to act on; called after each step."""
        ledger = self.run.ledger
        if ledger.degraded is not None and not self._degraded:
            self._degraded = True
            used = len(self.run.recorded)
            self.events.degraded(ledger.degraded, used)
            self._logger.info("Items are recorded by the batch: %s", ledger.degraded)
        if self.run.adapted is not None and not self._adapted:
            self._adapted = True
            self._logger.info("The strategy changes: %s", self.run.adapted)

    def vanished(self) -> list[str]:
        """Say which sources are gone since an earlier run, once all have been taken."""
        run = self.run
        named = isinstance(self.options.journal, str)
        if run.resuming is None or not named or not run.core.finished or run.core.closed:
            return []
        if run.source_error is not None:
            return []
        gone = run.resuming.vanished()
        if gone:
            shown = ", ".join(one_line(name, LABEL) for name in gone[:SHOWN])
            more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
            self._logger.warning(
                "%d sources of earlier runs are gone: %s%s", len(gone), shown, more
            )
        run.keep()
        return gone

    def close(self, error: BaseException | None) -> None:
        """Wait until the API knows what ran, then leave the cluster as it was found.

        Args:
            error: what has ended it, if it has not ended by itself.
        """
        with self._stack:
            run = self.run
            self._ended = self._state(error)
            task_runs_are_of(run.run)
            self.shown.ended(self._ended)
            self._tell_events(self._ended)
            self.gone = self.vanished()
            crashed = [one for one in run.losses.given_up if one.crashed]
            unread = {one.run_id: one for one in run.losses.given_up if not one.crashed}
            unheard = {run_id for run_id, one in unread.items() if not one.told}
            # Of these nobody may ever have told.
            recorded = [one.run_id for one in run.recorded if one.run_id not in unheard]
            if run.deaths and not run.unseen:
                missing = unrecorded_after(recorded, self._logger, DEAD_S)
                with self._api_may_be_away():
                    tell_for_the_dead(run.recorded, set(missing), run.all_stages, self._logger)
            recorded += self._record(crashed)
            if run.unseen:
                unrecorded = len(recorded)  # they went with their flow run
            else:
                unrecorded = wait_until_recorded(recorded, self._logger)
                ended = self._perhaps_ended([one for one in unread.values() if one.told is None])
                unrecorded += self._tell_unread([*unread.values()])
                recorded = [*{*recorded, *ended, *unread}]
            if run.deaths and not run.unseen and not run.left:
                # Asked when the others are known: events come to the API one after another.
                ended = []
                with self._api_may_be_away():
                    ended = end_what_died(self._flow_run_id, run.run, set(recorded), self._logger)
                unrecorded += wait_until_recorded(ended, self._logger)
                recorded += ended
            if run.left and not run.unseen and isinstance(self.runner, EvolveTaskRunner):
                self.runner.end_at_end()
            self.shown.told(
                vanished=self.gone,
                recording={
                    "task_runs": len(recorded),
                    "unrecorded": unrecorded,
                    "degraded": run.ledger.degraded,
                    "unseen_batches": run.ledger.unseen_units,
                },
            )

    def _record(self, given_up: Sequence[GivenUp]) -> list[UUID]:
        """Tell the API of what is given up; the ids of its task runs."""
        recorded: list[UUID] = []
        with self._api_may_be_away():
            recorded += record_given_up(given_up)
        return recorded

    def _perhaps_ended(self, unread: Sequence[GivenUp]) -> list[UUID]:
        """Wait for ends that workers may have told of what did not come back; those of units.

        Args:
            unread: what failed on its way. The API has to know before when it ran.
        """
        units = self.run.losses.units
        told = [*units, *(one.run_id for one in unread)]
        missing = set(unrecorded_after(told, self._logger, SETTLED_S))
        return [run_id for run_id in units if run_id not in missing]

    def _tell_unread(self, unread: Sequence[GivenUp]) -> int:
        """Tell the API what failed on its way, also where a worker told that it was done.

        Returns:
            Of how many the API does not know it.
        """
        for start in range(0, len(unread), TOLD_AT_ONCE):
            some = unread[start : start + TOLD_AT_ONCE]
            told = self._record(some)
            missing = len(some) - len(told)
            missing += wait_until_recorded(told, self._logger, ends=FAILED)
            if missing:  # it would be the same with the others
                return missing + len(unread) - start - len(some)
        return 0

    @contextmanager
    def _api_may_be_away(self) -> Iterator[None]:
        """What ran is not undone by an API that does not answer at its end."""
        try:
            yield
        except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound) as error:
            self._logger.warning(
                "The Prefect API cannot be told of task runs whose workers died, or whose results "
                "did not arrive (%s: %s); the UI may show them as running, or as completed",
                type(error).__name__,
                error,
            )

    def _tell_events(self, state: str) -> None:
        self.heed()
        counts = asdict(self.run.counts())
        if state == "failed":
            self.events.exceeded(self.run.core.stopped, counts)
        self.events.finished(
            state=state,
            counts=counts,
            strategy=self.choice.strategy,
            duration_s=round(self.shown.duration_s, 3),
        )

    def _state(self, error: BaseException | None) -> str:
        """How it has ended, in the words of its report."""
        run = self.run
        if run.cancelled:
            return "cancelled"
        if run.core.finished and not run.left:
            return "failed" if run.core.rejected or run.source_error is not None else "finished"
        # A loop that is left, a signal, or somebody who cancels the flow run: that may end its
        # process, and leaves no time to hear why.
        if isinstance(error, Exception) and not is_cancelled(self._flow_run_id):
            return "ended early"
        return "cancelled"

    def judged(self, by_source: list[tuple[Any, list[Any]]], failures: list[Failure]) -> Outcome:
        """Make the outcome, and raise if it is not accepted."""
        run = self.run
        if self._ended == "cancelled":
            message = f"the flow run was cancelled after {run.counts()}; what was finished is " + (
                "in the journal" if run.resuming else "lost, as there is no journal="
            )
            if isinstance(self.runner, EvolveTaskRunner):
                self.runner.acknowledge_at_end(self._flow_run_id, message)
            raise RunCancelled(message)
        collecting = run.beside.collecting
        collected = {}
        if collecting is not None:
            collected = {
                run.stages[of].name: collecting.collected(of) for of in collecting.collectors
            }
        outcome = Outcome(
            results=[value for _, values in by_source for value in values],
            by_source=by_source,
            failures=failures + run.beside.failures(),
            counts=run.counts(),
            strategy=self.choice.strategy,
            reason="; ".join(filter(None, [self.choice.reason, run.adapted])),
            duration_s=self.shown.duration_s,
            stopped=run.core.left_out,
            error=run.source_error,
            vanished=self.gone,
            collected=collecting.collected(0) if collecting is not None else [],
            collected_by_stage=collected,
            reduced=run.beside.reduced(),
            facts=self.shown.report(),
        )
        if run.core.rejected or run.source_error is not None:
            raise EvolveFailed(outcome) from run.source_error
        if not on_worker():
            left_out = f"; {outcome.stopped}" if outcome.stopped else ""
            tell_counts(f"{outcome.counts}{left_out}")
        self._logger.info(
            "Evolved in %.1f s (%s): %s", outcome.duration_s, outcome.strategy, outcome.counts
        )
        return outcome


def _in_own_loop(portions: AsyncGenerator[Portion, None]) -> Generator[Portion, None, None]:
    """Read an async iterator from sync code, also where this thread's loop is busy with us."""
    over = object()

    async def following() -> Any:
        return await anext(portions, over)

    with anyio.from_thread.start_blocking_portal() as portal:
        try:
            while True:
                under_way = portal.start_task_soon(following)
                try:
                    portion = under_way.result()
                except BaseException:
                    # Raised here, by a signal: the step has to end before it can be closed.
                    under_way.cancel()
                    raise
                if portion is over:
                    return
                assert isinstance(portion, Portion)
                yield portion
        finally:
            portal.call(_closed, portions)


async def _closed(portions: AsyncGenerator[Portion, None]) -> None:
    while True:
        try:
            await portions.aclose()
        except RuntimeError:  # its last step is still being cancelled
            await anyio.sleep(0.01)
        else:
            return
