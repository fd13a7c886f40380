"""Futures of submitted tasks, and how their results come to the flow: many at a time.

Dask's `result()` asks the scheduler for one result, which takes 2 to 14 ms; a flow that goes
through the futures of a `map` would spend more time on that than the tasks take.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import UUID

from distributed import Client, Future, KilledWorker
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.results import ResultRecord  # type: ignore[attr-defined]
from prefect.states import Crashed
from prefect_dask.task_runners import PrefectDaskFuture

from evolve_tasks.serving import IDLE_S, Serving
from evolve_tasks.workers.context import on_worker
from evolve_tasks.workers.seceding import secede_for_good, seceded
from evolve_tasks.workers.submitted import small_states

_logger = logging.getLogger(__name__)

# Further results that come along with one that is asked for: so many at the most, and each no
# larger than what a message costs anyway. Large ones stay where they are until they are wanted.
AT_ONCE = 256
SMALL_BYTES = 10_000


class EvolveFuture(PrefectDaskFuture[Any]):
    """The future of a submitted task; waiting for it on a worker holds no thread there.

    Args:
        run_id: id of its task run.
        future: Dask's future of the final state.
        ended: futures of the same runner that have ended; `None` where the future has come from
            another process, as the result of a task.
    """

    def __init__(
        self, run_id: UUID, future: Future[Any], ended: EndedFutures | None = None
    ) -> None:
        super().__init__(task_run_id=run_id, wrapped_future=future)
        self._ended = ended

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task run has ended, or for `timeout` seconds.

        Raises:
            ClusterLost, ClusterUnfit: as `result`.
        """
        with self._aside():
            self._fetch(timeout)
            super().wait(timeout)
            self._note_death()

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """Give the result of the task run, as soon as it has ended.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds.
            CrashedRun: each worker that it ran on died.
            ClusterLost: without a `timeout`, there has been no worker for as long as Dask's
                `distributed.scheduler.no-workers-timeout` says; for 300 s if it says nothing.
            ClusterUnfit: for as long no worker has been able to run it, or what it waits for.
            Exception: what the task raised, unless `raise_on_failure` is false.
        """
        with self._aside():
            self._fetch(timeout)
            self._note_death()
            state = self._final_state
            if state is not None and state.is_completed() and isinstance(state.data, ResultRecord):
                return state.data.result  # it is here; Prefect's own way there takes 2 ms
            return super().result(timeout, raise_on_failure)

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        """Have `fn` called with this future when it has ended.

        Prefect's `wait` and `as_completed` do that before they wait in a way that nobody sees
        the end of; a task on a worker that does so gives its place in the thread pool away.
        """
        if on_worker():
            secede_for_good()
        super().add_done_callback(fn)

    def _aside(self) -> AbstractContextManager[None]:
        # One that has come from elsewhere knows its client only when Dask asks for it.
        here = self._ended is not None and self._wrapped_future.done()
        return nullcontext() if here or not on_worker() else seceded()

    def _fetch(self, timeout: float | None) -> None:
        if self._ended is None or self._final_state is not None or timeout is not None:
            return  # with a time limit Dask's own way is exact, and nobody waits for many
        self._ended.wait(self._wrapped_future)
        if self._wrapped_future.status == "finished":
            self._ended.fetch(self)

    def _note_death(self) -> None:
        """Take a task whose workers died for crashed, as Prefect calls it."""
        if self._final_state is None and (death := death_of(self._wrapped_future)) is not None:
            self._final_state = Crashed(message=death)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without what belongs to this process."""
        return {**self.__dict__, "_ended": None}

    def ended_with(self, state: State[Any]) -> None:
        """Take the final state, which somebody has fetched."""
        self._final_state = state

    @property
    def known(self) -> bool:
        """Whether the final state is here."""
        return self._final_state is not None


class EndedFutures:
    """Futures that have ended and whose results may be fetched together.

    Args:
        client: the client that they belong to.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._futures: deque[weakref.ref[EvolveFuture]] = deque()
        self._serving = Serving(client, {})

    def add(self, future: EvolveFuture) -> None:
        """Take in a future that was submitted; it is known from when it has ended."""
        reference = weakref.ref(future)
        future.wrapped_future.add_done_callback(lambda _: self._futures.append(reference))

    def wait(self, future: Future[Any]) -> None:
        """Wait until a future has ended, and fetch no result; Dask may wait for ever.

        Raises:
            ClusterLost, ClusterUnfit: as `Serving.require_for`.
        """
        while True:
            try:
                future.exception(timeout=IDLE_S)
                return
            except TimeoutError:
                self._serving.require_for(future.key)

    def fetch(self, wanted: EvolveFuture) -> None:
        """Fetch the state of one that has finished, and others with it."""
        others = [one for one in self._take() if one is not wanted]
        if not others:
            return  # alone it comes in Dask's own way
        futures = {one.wrapped_future.key: one for one in (wanted, *others)}
        # Not by `gather`: one result among them that cannot be pickled would make it fail, and
        # Dask take its worker for lost.
        # Whatever does not come along is fetched when it is asked for alone.
        holders = self._client.who_has([one.wrapped_future for one in futures.values()])
        workers = {address for addresses in holders.values() for address in addresses}
        if not workers:
            return
        found: dict[str, Any] = self._client.run(
            small_states, list(futures), SMALL_BYTES, workers=list(workers), on_error="ignore"
        )
        for key, packed in (pair for states in found.values() for pair in states.items()):
            try:
                futures[key].ended_with(packed.value())
            except Exception as error:  # unpickling raises whatever its class does
                # Who asks for it alone is told: it is left where it is until then.
                _logger.debug("The result of %s did not come along: %r", key, error)

    def _take(self) -> Iterator[EvolveFuture]:
        for _ in range(min(AT_ONCE, len(self._futures))):
            try:
                future = self._futures.popleft()()
            except IndexError:  # another thread was faster
                return
            if future is not None and not future.known and _finished(future):
                yield future


def death_of(future: Future[Any]) -> str | None:
    """What happened to a submitted task whose workers died with it, in words; `None` if none."""
    if future.status != "error":
        return None
    error = future.exception()
    if not isinstance(error, KilledWorker):
        return None
    return (
        f"each worker that ran it died ({error.allowed_failures + 1}), the last one at "
        f"{error.last_worker.address}: it was out of memory, or its code ends the process; the "
        "worker's own log may say more"
    )


def _finished(future: EvolveFuture) -> bool:
    return bool(future.wrapped_future.status == "finished")
