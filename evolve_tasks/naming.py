"""Short names for values of any kind: in messages, in the UI, in reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

SHORT = 120  # characters of a repr: fits a line of a log and a cell of a table
LINE = 1_000  # characters of a failure in a message: several of them fit a state message
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
    return one_line(text, limit)


def one_line(text: str, limit: int) -> str:
    r"""Make a text one printable line of at most `limit` characters.

    Example:
        >>> one_line("first\nsecond", limit=20)
        'first second'
    """
    text = text[: 2 * limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def label_below(label: str, position: int) -> str:
    """Name of an item by that of what gave it; where it gets long its ends stay.

    Example:
        >>> label_below("file.3.txt 2", 7)
        'file.3.txt 2 7'
    """
    text = f"{label} {position}"
    return text if len(text) <= 2 * LABEL else f"{text[:LABEL]}…{text[1 - LABEL :]}"


def error_text(error: BaseException) -> str:
    """Class and text of an error, whatever its own `str` does.

    Example:
        >>> error_text(ValueError("no number"))
        'ValueError: no number'
    """
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as other:
        return f"{type(error).__name__} whose str raises {type(other).__name__}"


def source_label(source: Any) -> str:
    """Short, one-line name of a source: the last part of a path or address, else its repr.

    Example:
        >>> source_label("/data/2024/file.3.txt")
        'file.3.txt'
    """
    try:
        text = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    except Exception:
        text = None
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if text is not None:
        text = one_line(text.rstrip("/")[-2 * LABEL :].rpartition("/")[2], LABEL)
    return text or short_repr(source, LABEL)


def label_of(label: Callable[[Any], Any] | None, value: Any, default: str) -> str:
    """Short, one-line name of a source or an item as `label=` gives it.

    Args:
        label: the callable of the user; `None` if there is none.
        value: what is to be named.
        default: its name without a `label=`, or if that gives nothing.

    Returns:
        The name. A `label=` that raises does not end a run over a name: the name says so.

    Example:
        >>> label_of(str.upper, "a.txt", "0")
        'A.TXT'
    """
    if label is None:
        return default
    try:
        given = label(value)
        text = "" if given is None else one_line(str(given), LABEL)
    except (Exception, SystemExit, GeneratorExit) as error:
        text = f"label raised {type(error).__name__}"
    return text or default
