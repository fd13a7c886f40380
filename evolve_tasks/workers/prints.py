"""What user code prints goes to the log of its run, also where several threads run user code.

Prefect replaces `print` for the length of a task run and then puts back what it found. Of two task
runs in one process the first to end puts the real one back while the other still prints. Put in
place before them, and kept, it is what each of them finds.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.logging.loggers import print_as_log

_lock = threading.Lock()
_users = 0
_real: Any = None


@contextmanager
def prints_heard() -> Iterator[None]:
    """Let prints go to the log of the run around them, if it wants them; nests over threads."""
    global _users, _real
    with _lock:
        if not _users:
            _real, builtins.print = builtins.print, print_as_log
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                builtins.print = _real
