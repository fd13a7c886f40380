"""Let a function run for a limited time, also one that blocks: in a thread of its own.

Prefect ends a sync task whose time is over by an exception that it raises in its thread. On the
main thread a signal brings it, which a C call need not notice; in any other thread it waits
until the blocking call has come back, which may be never. Here the function gets a thread of
its own, which is left behind when its time is over. Nothing can end such a thread; it is a
daemon, and what it gives in the end goes nowhere.

Where the caller is a thread of a Dask worker's pool, the other one takes its place there: the
function may secede and rejoin, submit and wait, as it may without a limit.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.threadpoolexecutor import threads_lock
from distributed.worker import thread_state as task_state  # type: ignore[attr-defined]
from prefect.task_engine import TaskRunTimeoutError

from evolve_tasks.workers.failing import own_frames

R = TypeVar("R")

OVERRAN = "evolve-overran"  # how the names of threads begin that were left behind


class TimedThreads:
    """Threads in which functions run that have to end in time.

    A caller has one at a time to itself. It goes to the next caller, so that what a function
    keeps in `threading.local` lasts, as it does in the threads of a worker.

    Example:
        >>> threads = TimedThreads()
        >>> threads.call(lambda: 6 * 7, 10.0, name="multiply", logger=logging.getLogger())
        42
        >>> threads.close()
    """

    def __init__(self) -> None:
        self._free: list[_Thread] = []
        self._lock = threading.Lock()
        self._closed = False
        self._told: dict[str, int] = {}  # how many were left behind when it was said last

    def call(
        self,
        function: Callable[[], R],
        timeout_s: float,
        *,
        name: str,
        logger: logging.Logger | Any,
    ) -> R:
        """Call a function, in a copy of the caller's context variables.

        Args:
            function: what to call.
            timeout_s: seconds that it may take.
            name: the task that it belongs to, for the log.
            logger: gets a warning when threads are left behind: at the first one, then each
                time that they have become twice as many.

        Returns:
            What it returned.

        Raises:
            TaskRunTimeoutError: it did not end in time; a note says where it was. It runs on,
                and nobody hears of it.
            BaseException: what it raised.
        """
        with self._lock:
            thread = self._free.pop() if self._free else _Thread()
        place = _Place.of_caller()
        answer = thread.begin(partial(copy_context().run, function), place)
        try:
            wait([answer], timeout_s)
        finally:
            # Looked at after the wait: an answer at the last moment counts. Whatever else
            # interrupts it, as Ctrl-C does, leaves the thread behind as well.
            ended = answer.done()
            if place is not None:
                place.back(thread)
            if ended:
                self._keep(thread)
            else:
                thread.end()
        try:
            if not ended:
                raise self._overran(thread, timeout_s, name, logger)
            if (error := answer.exception()) is not None:
                raise error  # not by result(): its frames are no part of the user's traceback
            return answer.result()
        finally:
            del answer  # it holds the error, which holds this frame
            error = None

    def close(self) -> None:
        """End the threads that nobody uses, and the others as soon as nobody does."""
        with self._lock:
            self._closed = True
            idle, self._free = self._free, []
        for thread in idle:
            thread.end()

    def _keep(self, thread: _Thread) -> None:
        with self._lock:
            if not self._closed and thread.usable():
                self._free.append(thread)
                return
        thread.end()

    def _overran(
        self, thread: _Thread, timeout_s: float, name: str, logger: logging.Logger | Any
    ) -> TaskRunTimeoutError:
        error = TaskRunTimeoutError(f"{name} did not end within {timeout_s:g} s")
        if where := thread.where():
            error.add_note(f"When its time was over, it was here:\n{where}")
        thread.name = mine = f"{OVERRAN} {name}"
        left = sum(one.name == mine for one in threading.enumerate())
        with self._lock:
            tell = left >= 2 * self._told.get(name, 0) and left > 0
            if tell:
                self._told[name] = left
        if tell:
            logger.warning(
                "%d call%s of task %r in this process went on after the timeout of %g s: a thread "
                "cannot be interrupted, so each keeps its memory, and a CPU if it computes, until "
                "it returns by itself. Give the blocking call a timeout of its own, make the task "
                "async, or let it work in a process that it kills; restart the workers to be rid "
                "of these.",
                left,
                "" if left == 1 else "s",
                name,
                timeout_s,
            )
        return error


class _Thread(threading.Thread):
    """Does one call after another until it is told to end."""

    def __init__(self) -> None:
        super().__init__(name="evolve-timed", daemon=True)
        self._calls: SimpleQueue[tuple[Callable[[], Any], _Place | None, _State, Future[Any]]]
        self._calls = SimpleQueue()
        self._over = threading.Event()
        self.start()

    def begin(self, function: Callable[[], R], place: _Place | None) -> Future[R]:
        """Begin a call; the caller's place in its pool goes to this thread."""
        answer: Future[R] = Future()
        if place is not None:
            place.lend(self)
        self._calls.put((function, place, dict(vars(task_state)), answer))
        return answer

    def end(self) -> None:
        """End when the present call does."""
        self._over.set()
        self._calls.put((lambda: None, None, {}, Future()))  # wakes it up

    def where(self) -> str:
        """Where the function is right now, from the user's code on."""
        frame = sys._current_frames().get(self.ident or 0)
        if frame is None:
            return ""
        return "".join(traceback.format_list(own_frames(traceback.extract_stack(frame))))

    def run(self) -> None:
        """Wait for calls, and do them."""
        while self._one():
            pass

    def usable(self) -> bool:
        """Whether it does another call."""
        return not self._over.is_set()

    def _one(self) -> bool:
        """Do one call; nothing of it stays in this frame while the thread waits for the next."""
        function, place, state, answer = self._calls.get()
        if not self.usable():
            return False
        # What Dask's functions find out about the task that they are called in.
        vars(task_state).update(state)
        vars(pool_state).clear()
        if place is not None:
            place.enter()
        value: Any = None
        try:
            try:
                value = function()
            finally:
                vars(task_state).clear()
                # Of a pool that is being shut down somebody may be waiting for this thread.
                if place is not None and place.executor._shutdown:
                    self._over.set()
            answer.set_result(value)
        except BaseException as error:
            answer.set_exception(error)
        # The traceback of an error holds this frame, and with it whatever is named here.
        del function, place, state, answer, value
        return self.usable()


_State = dict[str, Any]


@dataclass(slots=True)
class _Place:
    """The place of a thread in the pool of a Dask worker.

    Args:
        executor: the pool.
        owner: the thread.
    """

    executor: Any
    owner: threading.Thread
    _lent: _State = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _returned: bool = False

    @staticmethod
    def of_caller() -> _Place | None:
        """That of this thread, if it is in a pool and has not seceded."""
        if not getattr(pool_state, "proceed", False):
            return None
        return _Place(pool_state.executor, threading.current_thread())

    def lend(self, thread: threading.Thread) -> None:
        """Let another thread be in the pool instead."""
        with threads_lock:
            self.executor._threads.discard(self.owner)
            self.executor._threads.add(thread)

    def enter(self) -> None:
        """Note in the other thread that it is in the pool."""
        with self._lock:
            if not self._returned:
                pool_state.executor = self.executor
                pool_state.proceed = True
                self._lent = vars(pool_state)

    def back(self, thread: threading.Thread) -> None:
        """Take the place back, in the thread that owns it.

        If the other one has seceded, the pool has a new thread already and the owner leaves it
        when its task ends, as it would if it had seceded itself.
        """
        pool = self.executor
        with self._lock:
            # From now on seceding and rejoining fail there: they would cost the pool a thread.
            self._returned = True
            self._lent.pop("executor", None)
        with threads_lock, pool._rejoin_lock:
            waiting = [event for one, event in pool._rejoin_list if one is thread]
            pool._rejoin_list[:] = [one for one in pool._rejoin_list if one[0] is not thread]
            mine = thread in pool._threads
            if mine:
                pool._threads.remove(thread)
                pool._threads.add(self.owner)
        for event in waiting:
            event.set()
        pool_state.proceed = mine
