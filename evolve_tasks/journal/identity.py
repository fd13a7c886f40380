"""Tokens that tell in a later process whether sources, fingerprints and items are the same."""

from __future__ import annotations

import hashlib
import os
import pickle
import uuid
from collections.abc import Sequence
from typing import Any, Final

import cloudpickle

from evolve_tasks.journal.digests import PLAIN, Unrecognisable, ValueDigest
from evolve_tasks.naming import short_repr

TOKEN: Final = 32  # hexadecimal digits: 128 bits
_CHUNK: Final = 10_000  # items hashed at a time: bounds the text that is built
_UNSURE: Final = "unsure-"
_BELOW: Final = "."  # in no token of a source
_COLLECTED: Final = f"{_BELOW}="  # in no token of a list


def source_token(source: Any) -> str | None:
    """Tell a source, or its fingerprint, by value and type in any later process.

    Args:
        source: any value.

    Returns:
        32 hexadecimal digits; `None` if an equal value can't be recognised in another process,
        so nothing of it may be resumed. Give such sources a plain value, such as their name.

    Example:
        >>> source_token("1") == source_token(1)
        False
        >>> source_token(object()) is None
        True
    """
    try:
        return ValueDigest().of(source).hex()[:TOKEN]
    except Unrecognisable:
        return None


def token_below(root: str, what: Any) -> str:
    """Tell what lies below a source, such as a list that was found on the way.

    Args:
        root: token of the source; an empty one for what belongs to no source alone.
        what: what it is known by there, a plain value.

    Returns:
        A token that tells its root.

    Example:
        >>> root_of(token_below("abc", [3, 1])), is_below(token_below("abc", [3, 1]))
        ('abc', True)
    """
    return f"{root}{_BELOW}{source_token(what)}"


def collected_token(root: str, where: Any) -> str:
    """Tell what was collected of a source, or of something below it.

    Args:
        root: token of the source.
        where: what it is known by there, a plain value.

    Returns:
        A token that tells its root, and that it is of no list of items.

    Example:
        >>> token = collected_token("abc", ["parse_file", 3])
        >>> root_of(token), is_below(token), is_collected(token), is_collected("abc.def")
        ('abc', True, True, False)
    """
    return f"{root}{_COLLECTED}{source_token(where)}"


def is_collected(token: str) -> bool:
    """Whether a token is that of something collected, and not of items.

    Args:
        token: what `source_token`, `token_below` or `collected_token` gave.

    Example:
        >>> is_collected("abc")
        False
    """
    return _COLLECTED in token


def is_below(token: str) -> bool:
    """Whether a token is that of something below a source, and not of a source.

    Args:
        token: what `source_token` or `token_below` gave.

    Example:
        >>> is_below("abc")
        False
    """
    return _BELOW in token


def root_of(token: str) -> str:
    """The source that something lies below; a source is its own.

    Args:
        token: what `source_token` or `token_below` gave.

    Example:
        >>> root_of("abc")
        'abc'
    """
    return token.partition(_BELOW)[0]


def items_token(items: Sequence[Any]) -> str:
    """Tell a list of items by values, types and order in any later process.

    Args:
        items: N items; plain values and flat rows of them cost about a microsecond each.

    Returns:
        32 hexadecimal digits. Where an item has no digest its pickle counts, and the token
        begins with `unsure-`: another run may get another one for equal items, which makes it
        work on them again, and never takes different items for the same.

    Example:
        >>> items_token([1, 2]) == items_token((1, 2)), items_token([1, 2]) == items_token([2, 1])
        (True, False)
    """
    whole = hashlib.sha256()
    sure = True
    for start in range(0, len(items), _CHUNK):
        chunk = list(items[start : start + _CHUNK])
        text = _as_text(chunk)
        if text is not None:
            whole.update(b"plain%d:" % len(text) + text)
            continue
        for item in chunk:
            try:
                digest = ValueDigest().of(item)
            except Unrecognisable:
                sure = False
                digest = _pickled(item)
            whole.update(b"item:" + digest)
    return ("" if sure else _UNSURE) + whole.hexdigest()[:TOKEN]


def is_sure(token: str) -> bool:
    """Whether another items token of the same source means other items.

    Args:
        token: what `items_token` gave.

    Example:
        >>> is_sure(items_token(["a"])), is_sure(items_token([object()]))
        (True, False)
    """
    return not token.startswith(_UNSURE)


def file_fingerprint(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """Tell a file by path, size and time of its last change, without reading it.

    Args:
        path: a file; it counts as given, so relative and absolute paths are two files.

    Returns:
        Path, size in bytes, time of the last change in nanoseconds.

    Raises:
        FileNotFoundError: there is no such file; list the sources anew, or bring it back.
        OSError: the file system does not tell.

    Example:
        >>> file_fingerprint(os.devnull)[0]
        '/dev/null'
    """
    text = os.fsdecode(path)
    try:
        found = os.stat(text)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno,
            "no such file to fingerprint: it vanished after it was listed, or the path is "
            "relative to another directory",
            text,
        ) from error
    except ValueError as error:  # an embedded null byte
        raise FileNotFoundError(f"{short_repr(text)} is no path: {error}") from error
    return text, found.st_size, found.st_mtime_ns


def _as_text(chunk: list[Any]) -> bytes | None:
    """All of it as text, if it holds nothing but plain values and flat rows of them."""
    kinds = set(map(type, chunk))
    rows = kinds & {tuple, list, dict}
    if not (kinds - rows) <= PLAIN:
        return None
    if rows and not all(map(_is_flat, chunk)):
        return None
    try:
        return ascii(chunk).encode()
    except ValueError:  # an int with more digits than Python turns into text
        return None


def _is_flat(item: Any) -> bool:
    kind = type(item)
    if kind is tuple or kind is list:
        return set(map(type, item)) <= PLAIN
    if kind is dict:
        return set(map(type, item)) <= PLAIN and set(map(type, item.values())) <= PLAIN
    return kind in PLAIN


def _pickled(item: Any) -> bytes:
    try:
        return hashlib.sha256(pickle.dumps(item, protocol=5)).digest()
    except Exception:
        try:
            return hashlib.sha256(cloudpickle.dumps(item, protocol=5)).digest()
        except Exception:  # nothing can be said of it, so it is like no other
            return uuid.uuid4().bytes * 2
