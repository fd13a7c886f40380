"""Short names for values of any kind: in messages, in the UI, in reports."""

from __future__ import annotations

import os
from typing import Any

SHORT = 120  # characters of a repr: fits a line of a log and a cell of a table
LABEL = 60  # characters of a source's name in the UI: a task run's name stays on one line


def short_repr(value: Any, limit: int = SHORT) -> str:
    """Show a value in at most `limit` characters, whatever its own repr does.

    Example:
        >>> short_repr("a" * 200, limit=10)
        "'aaaaaaaa…"
    """
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def source_label(source: Any) -> str:
    """Short, one-line name of a source: the last part of a path or address, else its repr.

    Example:
        >>> source_label("/data/2024/file.3.txt")
        'file.3.txt'
    """
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        text = text.rstrip("/").rpartition("/")[2] or text
    else:
        text = short_repr(source, LABEL)
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"
