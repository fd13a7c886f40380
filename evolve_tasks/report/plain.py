"""Texts of others in markdown: shown as they are, whatever they say."""

from __future__ import annotations

import re
from typing import Any

from evolve_tasks.naming import one_line

# What markdown or HTML could take for more than text.
_MARKED = re.compile(r"[*`~<>\[\]&\\#|!@]|(?<!\w)_|_(?!\w)|://|www\.|^\s|^[-+=]|^\d+[.)](\s|$)")


class Written(str):
    """Text that is markdown already, made here and not by others."""

    __slots__ = ()


def as_it_is(value: Any, limit: int | None = None) -> Any:
    """Have Prefect's UI show a text as it is, whichever UI it is.

    The first takes the cells of a table for markdown, where `__init__` is a bold "init" and an
    error text may be a link or a picture; the second shows what it gets. Code between backticks
    reads well in both.

    Args:
        value: a text, or what is not one and is given back as it is.
        limit: characters that are shown, on one line; `None` for all.

    Example:
        >>> as_it_is("__init__"), as_it_is("plain"), as_it_is(3)
        ('`__init__`', 'plain', 3)
    """
    if not isinstance(value, str) or isinstance(value, Written):
        return value
    text = value if limit is None else one_line(value, limit)
    if not _MARKED.search(text):
        return text
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def cell(value: Any, limit: int = 200) -> str:
    r"""Write a value into a cell of a markdown table.

    A bar is part of the cell behind an odd number of backslashes: both of Prefect's UIs count
    them, and take `\\|` for a backslash and the end of the cell.

    Example:
        >>> cell("a|b")
        '`a\\|b`'
    """
    written = as_it_is(value, limit)
    if isinstance(written, Written):
        return written
    return re.sub(r"(\\*)\|", lambda bar: bar[1] + "\\" * (len(bar[1]) % 2) + r"\|", str(written))


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Make a markdown table.

    Args:
        columns: N headings.
        rows: M rows of N values; a `Written` is taken as it is.

    Example:
        >>> print(table(("name", "s"), [("one", 1)]))
        | name | s |
        | --- | --- |
        | one | 1 |
    """
    lines = [columns, (Written("---"),) * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
