"""One run at a time, and what happens when one is killed, sleeps or is far away."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from evolve_tasks.errors import JournalBusy, JournalLost
from evolve_tasks.journal.lock import Clock, JournalLock, Process, current_claim
from evolve_tasks.journal.storage import Files, LocalFiles, RemoteFiles

HERE = Process.current()
ELSEWHERE = Process("other-host", "other-machine", HERE.pid, HERE.started)


class Time:
    """Time that passes only when somebody sleeps; `at` says what happens then."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0
        self.slept_s = 0.0
        self.during: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds
        self.during()

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, lambda: self.now_s, self.sleep)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    if request.param == "local":
        yield LocalFiles(tmp_path / "journal")
    else:
        system = fsspec.filesystem("memory")
        yield RemoteFiles(system, f"/lock/{tmp_path.name}")
        if system.exists("/lock"):
            system.rm("/lock", recursive=True)


def lock(files: Files, time: Time, holder: str = "run", process: Process = HERE) -> JournalLock:
    return JournalLock(files, "ingest", holder, process=process, clock=time.clock)


def test_the_second_is_refused_at_once_and_told_who_holds_it(files: Files, time: Time) -> None:
    lock(files, time, "flow run brave-lion\n[red]").acquire()
    with pytest.raises(JournalBusy) as refused:
        lock(files, time).acquire()
    message = str(refused.value)
    assert "flow run brave-lion [red]" in message
    assert f"host {HERE.host}, process {HERE.pid}, since 1970-01-12 13:46:40" in message
    assert "another journal name" in message
    assert time.slept_s == 0
    assert "\n" not in message


def test_after_the_release_the_next_one_has_it(files: Files, time: Time) -> None:
    first = lock(files, time)
    first.acquire()
    first.release()
    lock(files, time, "second").acquire()
    claim = current_claim(files)
    assert claim is not None
    assert claim.holder == "second"


def ended_process() -> Process:
    """A process of this machine that has ended, whose number is free."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = dataclasses.replace(
            HERE, pid=child.pid, started=Path(f"/proc/{child.pid}/stat").read_text().split()[21]
        )
        assert not found.is_gone(HERE)
        child.communicate(b"\n")
    return found


def test_a_killed_one_on_this_machine_is_taken_over_at_once(files: Files, time: Time) -> None:
    lock(files, time, process=ended_process()).acquire()
    lock(files, time, "heir").acquire()
    assert time.slept_s == 0
    claim = current_claim(files)
    assert claim is not None
    assert claim.holder == "heir"
    assert len(files.names()) == 1


def test_a_process_number_that_somebody_else_has_now_is_no_life(files: Files, time: Time) -> None:
    lock(files, time, process=dataclasses.replace(HERE, started="7")).acquire()
    lock(files, time).acquire()
    assert time.slept_s == 0


def test_a_dead_one_that_nobody_buried_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{child.pid}/stat").read_text().split()[21]
    process = dataclasses.replace(HERE, pid=child.pid, started=started)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_gone(HERE)
    child.communicate()


def test_one_on_another_host_is_taken_over_after_half_a_minute(files: Files, time: Time) -> None:
    lock(files, time, process=ELSEWHERE).acquire()
    lock(files, time, "heir").acquire()
    assert 30 <= time.slept_s <= 32


def test_one_on_another_host_that_shows_life_is_left_alone(files: Files, time: Time) -> None:
    far = lock(files, time, "far run", process=ELSEWHERE)
    far.acquire()
    time.now_s += 3_000  # clocks of two hosts differ, and that may not count
    began_s = time.slept_s

    def beat_in_time() -> None:
        if time.slept_s - began_s >= 4:
            time.during = lambda: None
            far.beat()

    time.during = beat_in_time
    with pytest.raises(JournalBusy, match="far run"):
        lock(files, time).acquire()
    assert time.slept_s - began_s <= 6
    far.require_held()


def test_one_that_came_while_another_was_waited_for_is_not_dead(files: Files, time: Time) -> None:
    lock(files, time, "dead", process=ELSEWHERE).acquire()
    late = lock(files, time, "late", process=dataclasses.replace(ELSEWHERE, pid=1))

    def come() -> None:
        if time.slept_s == 29:
            time.during = lambda: None
            late._claim = dataclasses.replace(late._claim, beat_s=time.now_s)
            late._write()

    time.during = come
    began_s = time.slept_s
    lock(files, time, "heir").acquire()
    assert time.slept_s - began_s >= 29 + 30


def test_a_number_without_a_start_is_told_by_the_heartbeat(files: Files, time: Time) -> None:
    lock(files, time, process=dataclasses.replace(HERE, started="")).acquire()
    lock(files, time).acquire()
    assert 30 <= time.slept_s <= 32


def test_a_claim_that_this_process_could_not_remove_ends_by_itself(
    files: Files, time: Time
) -> None:
    lock(files, time).acquire()
    time.now_s += 29
    with pytest.raises(JournalBusy):
        lock(files, time).acquire()
    time.now_s += 2
    lock(files, time).acquire()
    assert time.slept_s == 0


def test_one_that_died_long_ago_is_not_waited_for(files: Files, time: Time) -> None:
    lock(files, time, process=ELSEWHERE).acquire()
    time.now_s += 3_700
    lock(files, time).acquire()
    assert time.slept_s == 0


def test_who_was_taken_over_notices_and_stops(files: Files, time: Time) -> None:
    asleep = lock(files, time, "asleep", process=ELSEWHERE)
    asleep.acquire()
    asleep.require_held()
    lock(files, time, "heir").acquire()
    # Its heartbeat's thread did not run either: the check alone has to notice.
    with pytest.raises(JournalLost, match="no longer this run's"):
        asleep.require_held()
    asleep.beat()
    asleep.release()
    claim = current_claim(files)
    assert claim is not None
    assert claim.holder == "heir"


def test_a_claim_written_again_by_who_slept_is_recognised(files: Files, time: Time) -> None:
    asleep = lock(files, time, "asleep", process=ELSEWHERE)
    asleep.acquire()
    (name,) = files.names()
    written = files.read(name)
    lock(files, time, "heir").acquire()
    files.write(name, written)  # it was between reading and writing when it fell asleep
    asleep.beat()
    with pytest.raises(JournalLost, match="taken over by heir"):
        asleep.require_held()


def test_a_claim_that_was_removed_is_not_written_again(files: Files, time: Time) -> None:
    mine = lock(files, time)
    mine.acquire()
    (name,) = files.names()
    files.remove(name)
    mine.beat()
    assert files.names() == {}
    with pytest.raises(JournalLost, match="its claim was removed"):
        mine.require_held()


def test_a_failed_attempt_leaves_nothing_behind(time: Time, tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    reads = files.names
    calls = []

    def failing() -> dict[str, int]:
        calls.append(None)
        if len(calls) == 2:
            raise OSError("the storage is away")
        return reads()

    files.names = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="away"):
        lock(files, time).acquire()
    assert reads() == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"process": 1}', b"\xff", b"[" * 10_000, b'{"token": "a"}'],
)
def test_a_claim_that_cannot_be_read_is_waited_for(
    tmp_path: Path, time: Time, content: bytes
) -> None:
    files = LocalFiles(tmp_path)
    files.write("claim-abc.json", content)
    lock(files, time).acquire()
    assert 30 <= time.slept_s <= 32
    assert len(files.names()) == 1


@pytest.mark.parametrize("field", ["holder", "since_s", "process", "beat", "beat_s"])
def test_a_claim_of_wrong_types_is_no_error(tmp_path: Path, time: Time, field: str) -> None:
    files = LocalFiles(tmp_path)
    lock(files, time).acquire()
    (name,) = files.names()
    shown: dict[str, Any] = json.loads(files.read(name))
    files.write(name, json.dumps({**shown, field: [1]}).encode())
    lock(files, time).acquire()
    assert len(files.names()) == 1


def test_of_many_that_begin_together_one_at_a_time_has_it(files: Files) -> None:
    together = threading.Barrier(6)
    holding: list[int] = []
    most: list[int] = []
    refused: list[str] = []
    held = threading.Semaphore(0)

    def run(number: int) -> None:
        mine = JournalLock(files, "ingest", f"run {number}")
        together.wait()
        try:
            mine.acquire()
        except JournalBusy as error:
            refused.append(str(error))
            held.release()
            return
        holding.append(number)
        most.append(len(holding))
        held.release()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(holding) == 1
    assert len(refused) == 5


def test_the_heartbeat_beats(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolve_tasks.journal.lock.HEARTBEAT_S", 0.01)
    beaten = threading.Event()
    mine = JournalLock(files, "ingest", "run")
    beat = mine.beat

    def watched() -> None:
        beat()
        beaten.set()

    monkeypatch.setattr(mine, "beat", watched)
    with mine:
        assert beaten.wait(60)
        claim = current_claim(files)
        assert claim is not None
        assert claim.beat >= 1
    assert files.names() == {}
