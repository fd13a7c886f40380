"""How results come to the flow: those that are there, without waiting for what was lost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from typing import Any

import distributed
from distributed import Client, Future

from evolve_tasks.answers import Answer, Lost
from evolve_tasks.errors import ClusterLost, ClusterUnfit
from evolve_tasks.serving import address_of
from evolve_tasks.strategies.ended import FAILED, LOST_S
from evolve_tasks.workers.watch import LET_GO

# How long results may be on their way to the flow before it looks after other things; after some
# that took longer, twice as long.
FETCH_S = 10.0


class Fetching:
    """Takes the results of one run.

    Args:
        client: the Dask client of the flow's task runner.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._patience_s = FETCH_S

    def take(
        self, futures: Sequence[Future[Any]], leaves: Callable[[], bool]
    ) -> list[Answer | None]:
        """Fetch the results of futures that have ended, and release them.

        A result that was lost with its worker is not waited for: Dask makes it again, which takes
        as long as the work did, or never ends where no worker is left.

        Args:
            futures: N >= 1 futures.
            leaves: whether the run is being left, and nobody waits for results any more.

        Returns:
            Their answers; `None` for one whose result is not there now, and which is kept.

        Raises:
            ClusterLost: a future was cancelled by a lost connection to the scheduler.
            ClusterUnfit: a worker lacks the code of the stages.
        """
        try:
            answers = self._fetch(futures, leaves)
        except BaseException:
            for future in futures:
                future.release()
            raise
        for future, answer in zip(futures, answers, strict=True):
            if answer is not None:
                future.release()
        return answers

    def _fetch(
        self, futures: Sequence[Future[Any]], leaves: Callable[[], bool]
    ) -> list[Answer | None]:
        due = time.monotonic() + self._patience_s
        answers: list[Answer | None] = [None] * len(futures)
        there, one_by_one = _finished(futures, range(len(futures))), False
        while there:
            try:
                found = self._gather([futures[place] for place in there], due, leaves)
            except Exception:
                one_by_one = True  # to find which of them it concerns
                break
            if found is not None:
                for place, answer in zip(there, found, strict=True):
                    answers[place] = answer
                break
            before, there = len(there), _finished(futures, there)
            if len(there) == before:
                break  # they are slow to come, or the run is left
            # A worker died: the others do not wait for what it had.
        for place, future in enumerate(futures):
            if answers[place] is not None:
                continue
            if future.status in FAILED or (one_by_one and future.status == "finished"):
                answers[place] = self._fetch_one(future, due, leaves)
        if time.monotonic() > due:
            self._patience_s *= 2
        return answers

    def _fetch_one(
        self, future: Future[Any], due: float, leaves: Callable[[], bool]
    ) -> Answer | None:
        try:
            if future.status in FAILED:
                answer: Answer = future.result()  # raises at once
                return answer
            found = self._gather([future], due, leaves)
        except (distributed.CancelledError, distributed.client.FutureCancelledError) as error:
            raise ClusterLost(
                f"Dask cancelled {future.key!r}: the connection to the scheduler at "
                f"{address_of(self._client)} was lost, or somebody cancelled the run's tasks "
                "there; see that the scheduler is up and run the flow again"
            ) from error
        except ClusterUnfit:
            raise  # it would be the same for all that come to that worker
        except Exception as error:
            return Lost(error)
        return None if found is None else found[0]

    def _gather(
        self, futures: Sequence[Future[Any]], due: float, leaves: Callable[[], bool]
    ) -> list[Answer] | None:
        """Gather results in one call; `None` as soon as one of them is gone, or time is over.

        Dask waits without a limit for what is gone. That is left behind and not cancelled: others
        may wait for the same call, and would be cancelled with it. It ends when the futures are
        released.
        """
        gathered: Any = self._client.gather(list(futures), asynchronous=True)
        gathering = self._begin(gathered)
        while not wait([gathering], LOST_S).done:
            if leaves() or time.monotonic() > due or _some_gone(futures):
                return None
        if gathering.cancelled():  # by somebody else, who waited for the same call
            return None
        answers = list(gathering.result())
        return answers if self._let_go(futures, leaves) else None

    def _let_go(self, futures: Iterable[Future[Any]], leaves: Callable[[], bool]) -> bool:
        """Have the scheduler let go of what we have, before anybody is told of it.

        What `Future.release` sends is on its way for some time. If a worker died meanwhile, what
        it had would be made again, although it may have been reported.
        """
        if self._client.status != "running":
            return True  # nothing is made again for a client that is gone
        letting_go = self._begin(self._ask_to_let_go([future.key for future in futures]))
        while not wait([letting_go], LOST_S).done:
            if leaves():
                return False
        if not letting_go.cancelled():  # the client was closed
            letting_go.result()
        return True

    async def _ask_to_let_go(self, keys: list[Any]) -> None:
        scheduler: Any = self._client.scheduler
        with suppress(OSError):  # a scheduler that has closed the connection makes nothing again
            await getattr(scheduler, LET_GO)(keys=keys, client=self._client.id)

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        loop: Any = self._client.loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)


def _finished(futures: Sequence[Future[Any]], places: Iterable[int]) -> list[int]:
    """Those places at which a future has a result."""
    return [place for place in places if futures[place].status == "finished"]


def _some_gone(futures: Iterable[Future[Any]]) -> bool:
    return any(future.status != "finished" for future in futures)
