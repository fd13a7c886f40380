"""What makes two items the same: the bytes that stand for them in every process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from evolve_tasks.core.seen import KEY_BYTES
from evolve_tasks.journal.digests import Unrecognisable, ValueDigest
from evolve_tasks.naming import short_repr


def keys_of(key: Callable[[Any], Any] | None, items: Iterable[Any]) -> bytes:
    """Give what stands for each of some items.

    Args:
        key: the user's function; `None`: items themselves are compared.
        items: N >= 0 items.

    Returns:
        `KEY_BYTES` bytes for each.

    Raises:
        TypeError: nothing tells an item from others in another process; give a `key=`.

    Example:
        >>> keys_of(str.lower, ["A"]) == keys_of(None, ["a"])
        True
    """
    digest = ValueDigest()
    parts = []
    for item in items:
        what = item if key is None else key(item)
        try:
            parts.append(digest.of(what)[:KEY_BYTES])
        except Unrecognisable as error:
            name = "item" if key is None else "key"
            raise TypeError(
                f"unique=True cannot tell {name} {short_repr(what)} from others ({error}); give "
                "key=, a function of an item that gives a plain value, as a str or a tuple"
            ) from error
    return b"".join(parts)
