"""What each thread of a worker is at, in a file that outlives the worker.

A worker that is killed says nothing. Without this all that it had is suspected of having killed it;
with it, only what it was working on. The file is mapped into memory, so a mark costs less than a
microsecond and survives the process, though not the machine: a flow on another machine does
without.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import struct
import threading
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from tempfile import gettempdir

_SLOT = struct.Struct("<qq")  # number of the source, counted from 1, and position of the item
SLOTS = 1_024  # threads of a worker that are marked; a page or four
SOURCE_ITSELF = -1
# At the first source of a unit: they have ended, and what all of them came to is being pickled.
PACKING = -2
_INNER = 1 << 61  # above any position of a source


def number_of(index: tuple[int, ...]) -> int:
    """Number under which a source is marked, or an item that is expanded further.

    Args:
        index: positions from the source down.

    Example:
        >>> number_of((3,)), number_of((3, 5)) != number_of((3, 6))
        (3, True)
    """
    if len(index) == 1:
        return index[0]
    digest = blake2b(repr(index).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 2) | _INNER


def packing(start: int) -> int:
    """Mark in place of an item: its batch has ended, and all results of it are being pickled.

    Args:
        start: position of the first item of the batch.

    Example:
        >>> packing(0), packing(100)
        (-3, -103)
    """
    return PACKING - 1 - start


def marks_path(run: str, address: str) -> Path:
    """Where a worker keeps its marks of a run.

    Example:
        >>> marks_path("a1b2", "tcp://127.0.0.1:80").name
        'evolve-marks-a1b2-tcp-127-0-0-1-80'
    """
    return Path(gettempdir(), f"evolve-marks-{run}-{re.sub('[^a-zA-Z0-9]+', '-', address)}")


class Marks:
    """The marks of one run on one worker; each thread has its own.

    Args:
        path: the file; it must not be there yet.

    Raises:
        OSError: the file cannot be made.

    Example:
        >>> path = marks_path("example", f"test-{os.getpid()}")
        >>> marks = Marks(path)
        >>> marks.at(3, 57)
        >>> take_marks(path)
        {(3, 57)}
        >>> marks.close()
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Nobody else may have put something in its place: the folder is everybody's.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            os.ftruncate(descriptor, _SLOT.size * SLOTS)
            self._memory = mmap.mmap(descriptor, _SLOT.size * SLOTS)
        finally:
            os.close(descriptor)
        self._next = itertools.count()
        self._mine = threading.local()

    def at(self, source: int, item: int) -> None:
        """Note that this thread begins an item, a source (`SOURCE_ITSELF`), or to pickle."""
        _SLOT.pack_into(self._memory, self._place(), source + 1, item)

    def clear(self) -> None:
        """Note that this thread is at nothing."""
        _SLOT.pack_into(self._memory, self._place(), 0, 0)

    def close(self) -> None:
        """Take the file away."""
        with suppress(FileNotFoundError):  # a flow that took the worker for dead has read it
            self._path.unlink()

    def _place(self) -> int:
        place: int | None = getattr(self._mine, "place", None)
        if place is None:
            place = self._mine.place = next(self._next) % SLOTS * _SLOT.size
        return place


def sweep_marks(run: str) -> None:
    """Take away what dead workers on this machine left of a run, and nobody asked for."""
    for path in Path(gettempdir()).glob(f"evolve-marks-{run}-*"):
        path.unlink(missing_ok=True)


def take_marks(path: Path) -> set[tuple[int, int]] | None:
    """Read what the threads of a dead worker were at, and take the file away.

    Args:
        path: the file.

    Returns:
        Numbers of sources and positions of items, or what stands in their place; `None` if there
        is no such file on this machine.
    """
    try:
        content = path.read_bytes()
        path.unlink()
    except OSError:  # another machine's worker, or one that could not make it
        return None
    if len(content) != _SLOT.size * SLOTS:
        return None
    return {(source - 1, item) for source, item in _SLOT.iter_unpack(content) if source > 0}
