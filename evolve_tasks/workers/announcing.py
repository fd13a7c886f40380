"""When the API hears of task runs: of a start when it lasts, of an end when the next item runs.

A server on SQLite records some 80 events a second, whatever they say. That a task run had begun
says nothing any more when it has ended: its end has when it began. So most task runs of short
items cost one event in place of two, and who looks sees half a second later what runs long.

To make an event and to send it takes the interpreter some 2 ms. Between two items a thread of the
worker would wait for that; while the next one waits for a file or a database it costs nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextvars import Context, copy_context
from functools import partial
from typing import Any, NamedTuple

from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State
from prefect.events import Event
from prefect.events.worker import should_emit_events
from prefect.utilities.engine import emit_task_run_state_change_event

# Below what a person notices in the UI, which asks every few seconds.
SHOWN_AFTER_S = 0.5

# Until the next item of a unit runs, or the next unit: many ends are then told of together.
LATER_S = 0.02
# A thread that nobody needs any more stays for so long.
IDLE_S = 5.0


_logger = logging.getLogger(__name__)
UNTOLD = "The Prefect API cannot be told of task run %s: %r"


def emit(
    task_run: TaskRun, before: State[Any], state: State[Any], follows: Event | None = None
) -> Event | None:
    """Tell Prefect of a new state of a task run.

    Where the last run on this worker ends, Prefect's service for events is drained, and takes
    nothing more; who had asked for it a moment before gets another one. Prefect logs that it
    could not be told, and raises nothing.
    """
    telling = partial(
        emit_task_run_state_change_event,
        task_run,
        initial_state=before,
        validated_state=state,
        follows=follows,
    )
    event = telling()
    if event is None and should_emit_events():
        event = telling()
    return event


class Announcement:
    """That a task run has entered a state, to be told if it lasts.

    Args:
        task_run: the task run.
        before: the state that it had.
        state: the state that it has.
    """

    def __init__(self, task_run: TaskRun, before: State[Any], state: State[Any]) -> None:
        self.due = time.monotonic() + SHOWN_AFTER_S
        self._task_run = task_run
        self._states = before, state
        self._context: Context | None = copy_context()
        self._event: Event | None = None
        self._lock = threading.Lock()

    def tell(self) -> None:
        """Tell the API, unless the state has been left since."""
        with self._lock:
            if self._context is not None:
                try:
                    self._event = self._context.run(self._emit)
                except Exception as error:  # an event that is too large; others are to follow
                    _logger.warning(UNTOLD, self._task_run.id, error)
                self._context = None

    def settle(self) -> Event | None:
        """Leave the state; give the event that told of it, if there was one."""
        with self._lock:
            self._context = None
            return self._event

    def _emit(self) -> Event | None:
        return emit(self._task_run, *self._states)


class Announcer:
    """Tells what is due, in one thread for the process; it ends when nothing is left."""

    def __init__(self) -> None:
        self._waiting: deque[Announcement] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def later(self, announcement: Announcement) -> None:
        """Tell it when it is due; all wait equally long, so they come in order."""
        with self._changed:
            self._waiting.append(announcement)
            if self._thread is None:
                # A daemon: what it would tell does not outlive the process.
                self._thread = threading.Thread(
                    target=self._run, name="evolve-announcing", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    # Nobody is woken for each task run; those that come meanwhile are early.
                    self._changed.wait(SHOWN_AFTER_S)
                if not self._waiting:
                    self._thread = None
                    return
                announcement = self._waiting.popleft()
            time.sleep(max(0.0, announcement.due - time.monotonic()))
            announcement.tell()


class _Ended(NamedTuple):
    """A task run that has ended, and the context in which it did."""

    task_run: TaskRun
    before: State[Any]
    state: State[Any]
    follows: Event | None
    context: Context

    def tell(self) -> None:
        try:
            self.context.run(emit, self.task_run, self.before, self.state, self.follows)
        except Exception as error:  # an event that is too large; others are to follow
            _logger.warning(UNTOLD, self.task_run.id, error)


class Afterwards:
    """Tells of what has ended a moment later, in one thread for the process.

    The thread ends when there was nothing to tell for a while.
    """

    def __init__(self) -> None:
        self._ended: deque[_Ended] = deque()
        self._changed = threading.Condition()
        self._telling = threading.Lock()
        self._thread: threading.Thread | None = None

    def tell(
        self, task_run: TaskRun, before: State[Any], state: State[Any], follows: Event | None
    ) -> None:
        """Tell it soon; nothing of the task run changes any more."""
        ended = _Ended(task_run, before, state, follows, copy_context())
        with self._changed:
            self._ended.append(ended)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="evolve-afterwards", daemon=True
                )
                self._thread.start()
            elif len(self._ended) == 1:
                self._changed.notify()

    def drain(self) -> None:
        """Tell all that is to be told, now."""
        with self._telling:
            while self._ended:
                self._ended.popleft().tell()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._ended and not self._changed.wait_for(lambda: self._ended, IDLE_S):
                    self._thread = None
                    return
            time.sleep(LATER_S)
            self.drain()


announcer = Announcer()
afterwards = Afterwards()
