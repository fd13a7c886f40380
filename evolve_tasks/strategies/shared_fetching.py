"""Results that coroutines wait for, fetched many at a time.

To fetch a result takes two ways to the scheduler and back, whether it is one or a hundred.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Future

from evolve_tasks.answers import Answer
from evolve_tasks.strategies.fetching import Fetching

# Calls at once: a worker that does not answer holds up those that were asked for with what it
# has, and not the others.
CALLS = 2


_Asked = tuple[Future[Any], "asyncio.Future[Answer | None]"]


class SharedFetching:
    """Fetches what coroutines of one event loop ask for.

    Args:
        fetching: how results are fetched.
        leaves: whether the run is being left, and nobody waits for results any more.
    """

    def __init__(self, fetching: Fetching, leaves: Callable[[], bool]) -> None:
        self._fetching = fetching
        self._leaves = leaves
        self._asked: list[_Asked] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def take(self, future: Future[Any], *, alone: bool) -> Answer | None:
        """The result of a future that has ended, with those that others ask for meanwhile.

        Args:
            future: the future; it is released.
            alone: it is fetched by itself, because it did not come before: what is slow to come
                would hold up the others again.

        Returns:
            Its answer; `None` if the result is not there now, and the future is kept.

        Raises:
            ClusterLost, ClusterUnfit: as `Fetching.take`, whichever of them it concerned.
        """
        if alone:
            return (await asyncio.to_thread(self._fetching.take, [future], self._leaves))[0]
        taken: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._asked.append((future, taken))
        if len(self._calls) < CALLS:
            self._calls.add(asyncio.create_task(self._call()))
        return await taken

    def close(self) -> None:
        """Let go of those who wait."""
        for call in self._calls:
            call.cancel()

    async def _call(self) -> None:
        this = asyncio.current_task()
        assert this is not None, "it is a task"
        try:
            await self._take_all()
        finally:
            # Before anybody else can ask, and would take it for one that still looks.
            self._calls.discard(this)

    async def _take_all(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            # Whoever does not wait any more was cancelled: the run is over.
            if waiting := [one for one in asked if not one[1].done()]:
                await self._take(waiting)
            del asked, waiting  # with results, which may be large

    async def _take(self, waiting: Sequence[_Asked]) -> None:
        futures = [future for future, _ in waiting]
        try:
            answers = await asyncio.to_thread(self._fetching.take, futures, self._leaves)
        except asyncio.CancelledError:
            for _, taken in waiting:
                taken.cancel()
            raise
        except Exception as error:
            for _, taken in waiting:
                if not taken.done():
                    taken.set_exception(error)
            return
        for (_, taken), answer in zip(waiting, answers, strict=True):
            if not taken.done():
                taken.set_result(answer)
