"""A fingerprint that no later process can recognise switches the journal off: that is said."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore

from evolve_tasks.journal import Journal, items_token
from evolve_tasks.resuming import Resuming
from evolve_tasks.stages import stages_from

SOURCES = ["a", "bc"]


def night(path: Path, fingerprint: Any) -> int:
    """Work on all sources; give how many were known in whole."""
    store = ResultStore(result_storage=LocalFileSystem(basepath=str(path)))
    resumed = 0
    with Journal.open("ingest", store, holder="run") as journal:
        logger = logging.getLogger("fingerprints")
        resuming = Resuming(journal, stages_from([list, str.upper]), fingerprint, logger)
        for position, source in enumerate(SOURCES):
            if resuming.arrived(position, source, source) is None:
                items = list(source)
                resuming.expanded((position,), source, len(items), items_token(items))
                resuming.done((position,), 0, [item.upper() for item in items])
            else:
                resumed += 1
            resuming.source_done(position)
        resuming.tell()
    return resumed


def digest_without_its_text(source: str) -> Any:
    return hashlib.sha256(source.encode())


@pytest.mark.parametrize("fingerprint", [digest_without_its_text, lambda _: object()])
def test_a_fingerprint_without_a_digest_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fingerprint: Any
) -> None:
    for _ in range(2):
        caplog.clear()
        assert night(tmp_path, fingerprint) == 0
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        said = record.getMessage()
        assert said.startswith("2 sources have a fingerprint that a later run cannot recognise (<")
        assert "give a plain value" in said


def test_a_plain_fingerprint_needs_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def text(source: str) -> str:
        return digest_without_its_text(source).hexdigest()

    assert [night(tmp_path, text) for _ in range(2)] == [0, 2]
    assert [night(tmp_path, len) for _ in range(2)] == [0, 2]
    assert caplog.records == []
