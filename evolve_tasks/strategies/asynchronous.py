"""`async`: one coroutine for each source lives its life, from the parse to its last item."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import anyio
from distributed import Future

from evolve_tasks.answers import FOLLOWED, PULLED, Answer, Lost, readable
from evolve_tasks.core.actions import (
    Action,
    Expand,
    Extra,
    Follow,
    Forget,
    ItemDone,
    Process,
    Pull,
    Release,
    SourceDone,
    Turn,
)
from evolve_tasks.core.assembly import Portion
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.feeding import Arrival, SourceFeed
from evolve_tasks.serving import IDLE_S
from evolve_tasks.strategies.chunk_feed import chunk_feed
from evolve_tasks.strategies.ended import LOST_S, OVER, Ended
from evolve_tasks.strategies.fetching import Fetching
from evolve_tasks.strategies.leaving import abandon
from evolve_tasks.strategies.shared_fetching import SharedFetching
from evolve_tasks.strategies.submitting import Submitter
from evolve_tasks.strategies.together import Member, apart, by_itself, gone_along, parties
from evolve_tasks.workers.calls import ExpandCall, Measure, ProcessCall
from evolve_tasks.workers.nested import PROBING_S
from evolve_tasks.workers.streaming import Chunk


async def run_async(run: EvolvingRun, submitter: Submitter) -> AsyncGenerator[Portion, None]:
    """Let a coroutine live for each source; they share the window of the run."""
    sources = _Sources(run, submitter)
    over = False
    try:
        async for portion in sources.portions():
            yield portion
        over = run.core.finished
    finally:
        sources.cancel()
        if not over:
            run.abandon()
            # Whoever cancels us must not cut this short, or queued work goes on without us.
            with anyio.CancelScope(shield=True):
                await asyncio.to_thread(abandon, submitter, sources.ended)


class _Sources:
    def __init__(self, run: EvolvingRun, submitter: Submitter) -> None:
        self.ended = Ended()
        self._run = run
        self._submitter = submitter
        self._fetching = SharedFetching(Fetching(submitter.client), self._is_left)
        self._answers: asyncio.Queue[tuple[int, Answer] | BaseException | None] = asyncio.Queue()
        self._granted: dict[int, asyncio.Queue[Process | None]] = {}
        self._coroutines: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._feed = SourceFeed(run.sources, self._deliver)
        run.wake = lambda: self._deliver(None)
        self._chunks = chunk_feed(submitter, run, self._deliver_chunk)

    async def portions(self) -> AsyncGenerator[Portion, None]:
        """Bring answers to the core and what it answers to the coroutines."""
        run = self._run
        told = closed = False
        self._carry_out(run.core.begin())
        while True:
            # Looked at each time: what wakes us stands behind all that has ended before.
            if run.cancelled:
                return
            if run.interrupted:
                raise asyncio.CancelledError("the run was interrupted")
            paused = run.core.paused
            self._carry_out(run.steered())
            if run.core.paused != paused:
                await asyncio.to_thread(self._submitter.pause, run.core.paused)
            if run.core.stopped is not None and not told:
                told = True
                await asyncio.to_thread(self._submitter.stop)
            if run.core.closed and not closed:
                closed = True
                self._carry_out(run.tell(PULLED, Arrival([], ended=True)))
            if run.core.finished:
                return
            answered = await self._next()
            if isinstance(answered, BaseException):
                raise answered
            if answered is None:
                continue
            for unit, answer in run.complete([(answered[0], readable(answered[1]))]):
                portions = run.portions(unit, answer)
                run.keep()
                for portion in portions:
                    yield portion
                actions = run.tell(unit, answer)
                # Who takes what ended may be slow, and the run may have been cancelled meanwhile.
                if not run.interrupted:
                    self._carry_out(actions)
            if not run.interrupted:
                for permit in run.permits():
                    await asyncio.to_thread(self._submitter.permit, *permit)

    async def _next(self) -> tuple[int, Answer] | BaseException | None:
        while True:
            with anyio.move_on_after(PROBING_S if self._run.core.probing else IDLE_S):
                return await self._answers.get()
            self._carry_out(self._run.core.waited())
            if under_way := self.ended.under_way():
                await asyncio.to_thread(self._submitter.require_workers, under_way)

    def cancel(self) -> None:
        """End the coroutines that are left."""
        self._feed.close()
        self._chunks.close()
        for coroutine in self._coroutines:
            coroutine.cancel()
        self._fetching.close()

    def _deliver(self, arrival: Arrival | None) -> None:
        self._put(None if arrival is None else (PULLED, arrival))

    def _deliver_chunk(self, chunk: Chunk) -> None:
        self._put((chunk.unit, chunk))

    def _put(self, news: tuple[int, Answer] | None) -> None:
        # The loop may be closed: the run is over, and somebody's source has come late.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answers.put_nowait, news)

    def _carry_out(self, actions: list[Action]) -> None:
        todo = deque(actions)
        while todo:
            match todo.popleft():
                case Expand() | Process() as first if len(along := gone_along(todo, first)) > 1:
                    for party in parties(self._run.sending, along):
                        self._start(self._go_together(party, self._run.core.turn(first.unit)))
                case Pull(most):
                    self._feed.request(most)
                case Expand() as action:
                    call = self._run.sending.expand(action)
                    if isinstance(call, ExpandCall):
                        self._start(self._live(action, call))
                    else:
                        self._answers.put_nowait((action.unit, call))
                case Process() as action if action.parent in self._granted:
                    self._granted[action.parent].put_nowait(action)
                case Process() as action:  # of what an item has found
                    self._start(self._work_on(action, self._run.sending.process(action)))
                case Forget(unit, place):
                    self._run.forget(unit, place)
                case Release(unit):
                    if granted := self._granted.pop(unit, None):
                        granted.put_nowait(None)
                    self._run.released(unit)
                    self._submitter.release(unit)
                case Extra() as action:
                    self._start(self._do_extra(action))
                case Follow() as action:
                    self._run.follow(action)
                    self._answers.put_nowait((action.unit, FOLLOWED))
                case ItemDone() as action:
                    todo.extend(self._run.item_done(action))
                case SourceDone(source):
                    todo.extend(self._run.source_done(source))

    async def _live(self, action: Expand, call: ExpandCall) -> None:
        """The life of a source: its list, then its items as the window has room for them."""
        turn = self._run.core.turn(action.unit)
        future = self._submitter.expand(action.unit, call, turn=turn, parent=action.parent)
        await self._grant(action, await self._answer(action.unit, future))

    async def _grant(self, action: Expand, answer: Answer) -> None:
        """The life of a source that has its list."""
        unit = action.unit
        if isinstance(answer, Measure):
            self._submitter.measured(unit, answer)
        granted: asyncio.Queue[Process | None] = asyncio.Queue()
        # The core answers with what may be granted, and at last that there is no more.
        self._granted[unit] = granted
        self._answers.put_nowait((unit, answer))
        while (batch := await granted.get()) is not None:
            self._start(self._work_on(batch, self._run.sending.process(batch)))

    async def _work_on(self, action: Process, call: ProcessCall) -> None:
        future = self._submitter.process(action, call)
        answer = await self._answer(action.unit, future)
        self._answers.put_nowait((action.unit, answer))

    async def _alone(self, action: Expand | Process, call: ExpandCall | ProcessCall) -> None:
        if isinstance(action, Process):
            assert isinstance(call, ProcessCall), "it processes"
            await self._work_on(action, call)
        else:
            assert isinstance(call, ExpandCall), "it expands"
            await self._live(action, call)

    async def _go_together(self, party: Sequence[Member], turn: Turn) -> None:
        """The lives of several that go together as far as their lists, or their results."""
        if len(party) == 1:
            await self._alone(*party[0])
            return
        future = self._submitter.together(party, turn=turn)
        answer = await self._answer(party[0].action.unit, future)
        for member, one in zip(party, apart(party, answer), strict=True):
            if one is None:
                self._submitter.release(member.action.unit)
                self._start(self._alone(*by_itself(self._run.sending, member)))
            elif isinstance(member.action, Expand):
                self._start(self._grant(member.action, one))
            else:
                self._answers.put_nowait((member.action.unit, one))

    async def _do_extra(self, action: Extra) -> None:
        call = self._run.extra_call(action)
        if isinstance(call, Lost):
            self._answers.put_nowait((action.unit, call))
            return
        future = self._submitter.extra(action.unit, call)
        self._answers.put_nowait((action.unit, await self._answer(action.unit, future)))

    async def _answer(self, unit: int, future: Future[Any]) -> Answer:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        self.ended.watch(unit, future)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(over.set))
        await over.wait()
        answer = await self._taken(future, alone=False)
        while answer is None:
            await asyncio.sleep(LOST_S)  # it was lost with its worker, and is made again
            answer = await self._taken(future, alone=True)
        self.ended.forget(unit)
        return answer

    async def _taken(self, future: Future[Any], *, alone: bool) -> Answer | None:
        if future.status not in OVER:
            return None
        return await self._fetching.take(future, alone=alone)

    def _is_left(self) -> bool:
        return self._run.interrupted or self._run.left

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._coroutines.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._coroutines.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._answers.put_nowait(error)
