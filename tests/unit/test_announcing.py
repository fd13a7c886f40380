"""Ends of task runs are told a moment later, in order, and before anybody waits for them."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

import pytest
from prefect.client.schemas import TaskRun
from prefect.states import Completed, Running

from evolve_tasks.workers import announcing
from evolve_tasks.workers.announcing import Afterwards

where: ContextVar[str] = ContextVar("where", default="nowhere")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """What was told: of which task run, in which context, in which thread."""
    events: list[tuple[str, str, str]] = []

    def emit(task_run: TaskRun, **_: Any) -> object:
        events.append((task_run.name, where.get(), threading.current_thread().name))
        return task_run

    monkeypatch.setattr(announcing, "emit_task_run_state_change_event", emit)
    return events


def tell(afterwards: Afterwards, name: str) -> None:
    task_run = TaskRun(task_key="task", dynamic_key="0", name=name)
    where.set(f"at {name}")
    afterwards.tell(task_run, Running(), Completed(), None)


def test_they_are_told_in_order_each_in_its_context(told: list[tuple[str, str, str]]) -> None:
    afterwards = Afterwards()
    for name in ("a", "b", "c"):
        tell(afterwards, name)
    afterwards.drain()
    assert [(name, context) for name, context, _ in told] == [
        ("a", "at a"),
        ("b", "at b"),
        ("c", "at c"),
    ]


def test_a_thread_tells_them_if_nobody_else_does(
    told: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcing, "IDLE_S", 0.05)
    afterwards = Afterwards()
    for name in ("a", "b"):  # the second one finds the thread of the first, or none any more
        tell(afterwards, name)
        thread = next(
            (one for one in threading.enumerate() if one.name == "evolve-afterwards"), None
        )
        if thread is not None:
            thread.join(60)
            assert not thread.is_alive(), "it ends when there is nothing to tell"
    assert [(name, thread) for name, _, thread in told] == [
        ("a", "evolve-afterwards"),
        ("b", "evolve-afterwards"),
    ]


def test_one_that_cannot_be_told_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []

    def emit(task_run: TaskRun, **_: Any) -> object:
        if task_run.name == "too large":
            raise ValueError("an event of a megabyte")
        events.append(task_run.name)
        return task_run

    monkeypatch.setattr(announcing, "emit_task_run_state_change_event", emit)
    afterwards = Afterwards()
    for name in ("a", "too large", "b"):
        tell(afterwards, name)
    afterwards.drain()
    assert events == ["a", "b"]
    assert "cannot be told" in caplog.text
    assert "an event of a megabyte" in caplog.text


def test_what_met_a_service_that_was_just_drained_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def emit(task_run: TaskRun, **_: Any) -> object | None:
        asked.append(task_run.name)  # Prefect logs what its service refuses, and gives nothing
        return None if asked.count(task_run.name) == 1 else object()

    monkeypatch.setattr(announcing, "emit_task_run_state_change_event", emit)
    afterwards = Afterwards()
    for name in ("a", "b"):
        tell(afterwards, name)
    afterwards.drain()
    assert asked == ["a", "a", "b", "b"]
    assert not caplog.text
