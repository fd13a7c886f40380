"""What a worker was at is known after it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from evolve_tasks.stages import stages_from
from evolve_tasks.workers.calls import ExpandCall, Part, ProcessCall, Recording, RunSpec, SourceCall
from evolve_tasks.workers.marks import (
    PACKING,
    SLOTS,
    SOURCE_ITSELF,
    Marks,
    marks_path,
    packing,
    take_marks,
)
from evolve_tasks.workers.runtime import Runtime
from evolve_tasks.workers.transport import NOTHING

SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
from evolve_tasks.workers.marks import Marks

marks = Marks(Path(sys.argv[1]))
marks.at(0, 0)
marks.clear()
begun = threading.Barrier(4)

def work(source):
    marks.at(source, 5 * source)
    begun.wait()
    threading.Event().wait()

for source in (1, 2, 3):
    threading.Thread(target=work, args=(source,), daemon=True).start()
begun.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_marks_outlive_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    ended = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert take_marks(path) == {(1, 5), (2, 10), (3, 15)}
    assert take_marks(path) is None


def test_each_thread_has_its_own_mark(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "marks")
    marks.at(7, SOURCE_ITSELF)

    def other() -> None:
        marks.at(0, 0)
        marks.at(8, 3)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert take_marks(tmp_path / "marks") == {(7, SOURCE_ITSELF), (8, 3)}
    marks.close()


def test_more_threads_than_places_share_them(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "marks")
    for number in range(SLOTS + 1):
        thread = threading.Thread(target=marks.at, args=(number, 0))
        thread.start()
        thread.join()
    known = take_marks(tmp_path / "marks")
    assert known == {(number, 0) for number in range(1, SLOTS + 1)}


def test_what_somebody_else_put_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        Marks(path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        Marks(link)
    assert take_marks(path) is None


class Looks:
    """A result that looks at the marks when it is pickled."""

    seen: ClassVar[list[Any]] = []

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        self.seen.append(looked_at(self.path))
        return int, (1,)


def looked_at(path: Path) -> Any:
    copy = path.with_suffix(".copy")  # who takes marks takes their file away
    copy.write_bytes(path.read_bytes())
    return take_marks(copy)


@contextmanager
def runtime_of(path: Path) -> Iterator[Runtime]:
    def pair(_: int) -> list[int]:
        return [0, 1]

    def looks(item: int) -> Any:
        worked_on.append((item, looked_at(path)))
        return Looks(path)

    worked_on: list[Any] = []
    Looks.seen.clear()
    spec = RunSpec("run", stages_from([pair, looks]), {}, failures_recorded=False)
    marks = Marks(path)
    runtime = Runtime(spec, copy_context(), lambda: False, "here", marks=marks)
    try:
        yield runtime
    finally:
        runtime.close()
    assert looked_at(path) == set()
    assert all(position > SOURCE_ITSELF for _, mark in worked_on for _, position in mark)
    marks.close()


def test_a_batch_is_marked_as_a_whole_while_its_results_are_pickled(tmp_path: Path) -> None:
    with runtime_of(tmp_path / "marks") as runtime:
        source, part = SourceCall(3, "3", uuid4()), Part("3", 0, 100, 104, 200)
        call = ProcessCall(stage=1, source=source, part=part, recording=Recording())
        result = runtime.process(call, list(range(4)))
    assert result.values.value() == [1] * 4
    assert len(Looks.seen) >= 4
    assert all(seen == {(3, packing(100))} for seen in Looks.seen), Looks.seen


def test_a_unit_of_sources_is_marked_as_a_whole_while_its_results_are_pickled(
    tmp_path: Path,
) -> None:
    with runtime_of(tmp_path / "marks") as runtime:
        sources = tuple(SourceCall(number, str(number), uuid4()) for number in (4, 5))
        call = ExpandCall(0, sources, NOTHING, inline=2, recording=Recording())
        result = runtime.expand(call, [4, 5])
    assert result.measure.values.value() == [[1, 1], [1, 1]]
    assert len(Looks.seen) >= 4
    assert all(seen == {(4, PACKING)} for seen in Looks.seen), Looks.seen


def test_a_path_is_safe_whatever_the_address() -> None:
    path = marks_path("run", f"tcp://[::1]:80/../{os.sep}x")
    assert path.parent == marks_path("run", "a").parent
    assert path.name == "evolve-marks-run-tcp-1-80-x"
