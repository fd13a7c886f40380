"""Five thousand items that take a while and leave a trace as they begin."""

from __future__ import annotations

import os
import time
from pathlib import Path


def many(diary: str) -> list[tuple[str, int]]:
    """The items."""
    return [(diary, number) for number in range(5_000)]


def slowly(item: tuple[str, int]) -> int:
    """Work on one."""
    Path(item[0], f"item-{item[1]}.{os.urandom(4).hex()}").touch()
    time.sleep(0.05)
    return item[1]


def last_begun(diary: Path) -> float:
    """When the last one began, in seconds since the epoch."""
    return max(trace.stat().st_mtime for trace in diary.glob("item-*"))


def begun(diary: Path) -> int:
    """How many have begun."""
    return len(list(diary.glob("item-*")))
