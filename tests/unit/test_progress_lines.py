"""How far a run is, in lines of its log: where no terminal shows it."""

from __future__ import annotations

import logging
import threading

import pytest

from evolve_tasks.monitoring.progress_lines import told_in_lines


def test_it_is_told_while_the_block_runs_and_not_after(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []
    twice = threading.Event()

    def text() -> str:
        asked.append(len(asked))
        if len(asked) == 2:
            twice.set()
        return f"{len(asked)} of 9 items done"

    logger = logging.getLogger("progress")
    with caplog.at_level(logging.INFO), told_in_lines(text, logger, first_s=0.01):
        assert twice.wait(60)
    told = [record.getMessage() for record in caplog.records]
    assert told[:2] == ["Evolving: 1 of 9 items done", "Evolving: 2 of 9 items done"]
    assert len(told) == len(asked)
    assert not [one for one in threading.enumerate() if one.name == "evolve-progress-lines"]


def test_a_short_run_has_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), told_in_lines(str, logging.getLogger("progress")):
        pass
    assert not caplog.records
