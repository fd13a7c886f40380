"""What a worker was at is known after it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from evolve_tasks.workers.marks import SLOTS, SOURCE_ITSELF, Marks, marks_path, take_marks

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


def test_a_path_is_safe_whatever_the_address() -> None:
    path = marks_path("run", f"tcp://[::1]:80/../{os.sep}x")
    assert path.parent == marks_path("run", "a").parent
    assert path.name == "evolve-marks-run-tcp-1-80-x"
