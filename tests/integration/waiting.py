"""Wait for conditions, not for time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(
    condition: Callable[[], Any], what: str, limit_s: float = 60, pause_s: float = 0.05
) -> None:
    """Wait until a condition holds; fail with `what` if it does not within the limit."""
    give_up = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up, f"it did not happen that {what}"
        time.sleep(pause_s)
