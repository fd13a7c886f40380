"""One run at a time: a claim in the journal's folder, with a heartbeat.

Prefect's `FileSystemLockManager` does not fit: it writes the holder after the file is there, so
another run may read half of it; without `hold_timeout` a lock outlives the process that was
killed, with one it ends under a run that takes longer, because nothing renews it; and it works on
local files only.

A run reads all claims, refuses if one is alive, writes its own under a name that nobody else
has, and reads again. Who then sees a claim that it did not see before withdraws and tries anew.
Of two runs at most one can miss the other's claim, because each writes before it reads; so no
file has to be created exclusively, which not every remote file system can do.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from evolve_tasks.errors import JournalBusy, JournalLost
from evolve_tasks.journal.storage import Files
from evolve_tasks.naming import one_line, short_repr

HEARTBEAT_S: Final = 5.0
STALE_S: Final = 30.0  # without a heartbeat, as seen by the waiting run's own clock
# By the clocks of two hosts, which may differ: only much more than they ever do is trusted.
LONG_DEAD_S: Final = 3_600.0
_POLL_S: Final = 1.0
_ATTEMPTS: Final = 10
_PREFIX: Final = "claim-"
_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, so that tests can give their own.

    Args:
        wall_s: seconds since 1970.
        monotonic_s: seconds since any moment, never set back.
        sleep: waits for seconds.
    """

    wall_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from every other one that ever had its number.

    Args:
        host: name of the machine, for people.
        machine: the running system and its space of process numbers: a number means something
            only where this is the same. After a boot, or in another container, it is another.
        pid: number of the process.
        started: when it started, in the system's own measure; empty where it does not tell.
    """

    host: str
    machine: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Process:
        """The process that calls.

        Example:
            >>> Process.current().is_gone(Process.current())
            False
        """
        pid = os.getpid()
        host = socket.gethostname()
        return cls(host, _machine(host), pid, _started(pid))

    def is_gone(self, here: Process) -> bool:
        """Whether it has certainly ended, as far as a process on its own machine can see.

        Args:
            here: the process that asks.
        """
        if self.machine != here.machine or os.name == "nt":  # there, kill(pid, 0) is no question
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # somebody else's, or no number of a process
            return False
        return bool(self.started) and _started(self.pid) not in ("", self.started)


def _machine(host: str) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: the name has to do, and only what is running is told by number
        return f"host:{host}"
    return f"{host}/{boot}/{numbers}"


def _started(pid: int) -> str:
    """When a process started; empty if it is gone, dead and not buried, or the system is silent."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # After the name, which may hold anything: state is the first field, the start the 20th.
    rest = line.rpartition(")")[2].split()
    return "zombie" if rest[0] == "Z" else rest[19]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a run says of itself in its claim.

    Args:
        token: tells this claim from every other one.
        holder: who holds it, for people: the flow run, or the command.
        process: the process.
        since_s: seconds since 1970 when it was claimed.
        beat: grows with each heartbeat.
        beat_s: seconds since 1970 of the last heartbeat.
        took_over: tokens of the claims that were dead when this one was made.
    """

    token: str
    holder: str
    process: Process
    since_s: float
    beat: int = 0
    beat_s: float = 0.0
    took_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Who it is, on one line; what other processes wrote is data."""
        holder = one_line(self.holder, 200) or "somebody"
        host = one_line(self.process.host, 80)
        return f"{holder} (host {host}, process {self.process.pid}, since {_moment(self.since_s)})"


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def current_claim(files: Files) -> Claim | None:
    """Read who claims a journal, dead or alive, or `None`.

    Args:
        files: the journal's folder.

    Returns:
        The latest claim.

    Example:
        >>> from evolve_tasks.journal.storage import LocalFiles
        >>> current_claim(LocalFiles(Path("/nonexistent")))
    """
    claims = _claims(files)
    return max(claims.values(), key=lambda claim: claim.beat_s) if claims else None


class JournalLock:
    """The right to write a journal, from `acquire` to `release`.

    Args:
        files: the journal's folder.
        name: the journal's name, for messages.
        holder: who asks, for people: the flow run, or the command.
        process: the process that asks.
        clock: time.

    Example:
        >>> import tempfile
        >>> from evolve_tasks.journal.storage import LocalFiles
        >>> files = LocalFiles(Path(tempfile.mkdtemp()))
        >>> with JournalLock(files, "ingest", "flow run brave-lion"):
        ...     current_claim(files).holder
        'flow run brave-lion'
        >>> current_claim(files)
    """

    def __init__(
        self,
        files: Files,
        name: str,
        holder: str,
        *,
        process: Process | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._files = files
        self._name = name
        self._clock = clock or Clock()
        self._process = process or Process.current()
        self._claim = Claim(uuid.uuid4().hex, holder, self._process, 0.0)
        self._lost: str | None = None
        self._trouble: str | None = None
        self._last_beat_s = 0.0
        # The heartbeat's thread and the run's both read and write the claim.
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Acquire, and start the heartbeat."""
        self.acquire()
        self._thread = threading.Thread(
            target=self._keep_beating, name="evolve-journal-heartbeat", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the heartbeat and release."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.release()

    def acquire(self) -> None:
        """Claim the journal.

        It waits up to 30 s where another host's run gives no sign of life; one on this machine
        whose process is gone is taken over at once.

        Raises:
            JournalBusy: another run is alive and holds it.
        """
        for attempt in range(_ATTEMPTS):
            dead = self._wait_for_the_dead()
            now = self._clock.wall_s()
            self._claim = replace(
                self._claim, since_s=now, beat_s=now, took_over=tuple(sorted(dead))
            )
            try:
                self._write()
                rivals = _claims(self._files).keys() - dead - {self._claim.token}
            except BaseException:
                self._files.remove(_file(self._claim.token))
                raise
            if not rivals:
                for token in dead:
                    self._files.remove(_file(token))
                return
            self._files.remove(_file(self._claim.token))
            # Apart, so that of several that began together one comes first.
            self._clock.sleep(random.uniform(0.02, 0.2) * (attempt + 1))
        raise JournalBusy(
            f"journal {short_repr(self._name)}: several runs try to open it at the same time; "
            "start one of them again"
        )

    def release(self) -> None:
        """Let the next run have it."""
        with self._turn:
            self._files.remove(_file(self._claim.token))

    def beat(self) -> None:
        """Give a sign of life, and notice a takeover; the heartbeat's thread calls it."""
        with self._turn:
            if self._lost is not None:
                return
            claims = _claims(self._files)
            mine = self._claim.token
            heirs = [claim for claim in claims.values() if mine in claim.took_over]
            if heirs or mine not in claims:
                self._lost = f"taken over by {heirs[0]}" if heirs else "its claim was removed"
                return
            self._claim = replace(
                self._claim, beat=self._claim.beat + 1, beat_s=self._clock.wall_s()
            )
            self._write()

    def require_held(self) -> None:
        """Make sure that the journal is still this run's.

        Raises:
            JournalLost: another run has taken it over; stop this one.
        """
        if self._clock.monotonic_s() - self._last_beat_s > STALE_S / 2:
            # The thread did not come to it: a host that was asleep, or a storage that is away.
            self.beat()
        if self._lost is not None:
            trouble = f" Its last heartbeat failed: {self._trouble}." if self._trouble else ""
            raise JournalLost(
                f"journal {short_repr(self._name)} is no longer this run's: {self._lost}."
                f"{trouble} What was written before is kept; stop this run"
            )

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self.beat()
            except Exception as error:
                # The storage is away. If it stays away the next flush says so by itself; if
                # another run took over meanwhile, this is the reason that it is told.
                self._trouble = f"{type(error).__name__}: {error}"

    def _write(self) -> None:
        content = json.dumps(asdict(self._claim)).encode()
        self._files.write(_file(self._claim.token), content, durable=False)
        self._last_beat_s = self._clock.monotonic_s()

    def _wait_for_the_dead(self) -> set[str]:
        """Tokens of claims that are all dead; refuse as soon as one shows life."""
        first: dict[str, tuple[int, float]] = {}
        while True:
            claims = _claims(self._files)
            now_s = self._clock.monotonic_s()
            doubtful = False
            for token, claim in claims.items():
                if self._is_dead(claim):
                    continue
                beat, seen_s = first.setdefault(token, (claim.beat, now_s))
                if self._is_told_by_number(claim) or claim.beat != beat:
                    raise JournalBusy(self._refusal(claim))
                # Each has its own time: one that came while this run waited is not dead.
                doubtful = doubtful or now_s - seen_s < STALE_S
            if not doubtful:
                return set(claims)
            self._clock.sleep(_POLL_S)

    def _is_told_by_number(self, claim: Claim) -> bool:
        """Whether this machine knows if the process lives: not by a number that may be reused."""
        return claim.process.machine == self._process.machine and bool(claim.process.started)

    def _is_dead(self, claim: Claim) -> bool:
        if claim.process.is_gone(self._process):
            return True
        silent_s = self._clock.wall_s() - claim.beat_s
        if claim.process == self._process:
            # An earlier run of this very process, which could not remove its claim at its end.
            return silent_s > STALE_S
        return not self._is_told_by_number(claim) and silent_s > LONG_DEAD_S

    def _refusal(self, claim: Claim) -> str:
        return (
            f"journal {short_repr(self._name)} is held by {claim}: wait until that run has ended, "
            "cancel it, or give this one another journal name. A holder that was killed is taken "
            f"over at once on its own host, and after {STALE_S:.0f} s from another one"
        )


def _file(token: str) -> str:
    return f"{_PREFIX}{token}{_SUFFIX}"


def _claims(files: Files) -> dict[str, Claim]:
    found = {}
    for name in files.names():
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            # Released between listing and reading.
            with contextlib.suppress(FileNotFoundError):
                token = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
                found[token] = _read_claim(token, files.read(name))
    return found


def _read_claim(token: str, content: bytes) -> Claim:
    """The claim; one that can't be read is somebody's all the same, of a host nobody knows."""
    try:
        shown = json.loads(content)
        process = Process(**_typed(shown.pop("process"), Process))
        took_over = tuple(str(other) for other in shown.pop("took_over"))
        claim = Claim(**_typed({**shown, "process": process, "took_over": took_over}, Claim))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        nobody = Process("unknown", "", -1, "")
        return Claim(token, "a run whose claim can't be read", nobody, 0.0, beat_s=math.inf)
    return replace(claim, token=token)


_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "Process": Process,
    "tuple[str, ...]": tuple,
}


def _typed(shown: dict[str, Any], kind: type) -> dict[str, Any]:
    for name, wanted in kind.__annotations__.items():
        if not isinstance(shown[name], _KINDS[wanted]):
            raise TypeError(name)
    return shown
