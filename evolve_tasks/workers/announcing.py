"""Task runs that have begun: the API hears of one when it has run for a moment.

A server on SQLite records some 80 events a second, whatever they say. That a task run had begun
says nothing any more when it has ended: its end has when it began. So most task runs of short
items cost one event in place of two, and who looks sees half a second later what runs long.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextvars import Context, copy_context
from typing import Any

from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State
from prefect.events import Event
from prefect.utilities.engine import emit_task_run_state_change_event

# Below what a person notices in the UI, which asks every few seconds.
SHOWN_AFTER_S = 0.5


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
                self._event = self._context.run(self._emit)
                self._context = None

    def settle(self) -> Event | None:
        """Leave the state; give the event that told of it, if there was one."""
        with self._lock:
            self._context = None
            return self._event

    def _emit(self) -> Event | None:
        before, state = self._states
        return emit_task_run_state_change_event(
            self._task_run, initial_state=before, validated_state=state
        )


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


announcer = Announcer()
