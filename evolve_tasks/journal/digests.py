"""Digests of values that are the same in every process, and differ when value or type differ.

Dask's `tokenize` alone is not enough: it pickles what it has no rule for, and cloudpickle writes
classes of `__main__` with an identity of their own in each process, so a dataclass of the user's
script would never be recognised again, and nobody would be told.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import hashlib
import types
import uuid
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, Final

from dask.tokenize import normalize_object, normalize_token, tokenize

DEPTH: Final = 100  # levels of nesting: deeper is data gone wild, and Python's stack ends soon
PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
# Their repr holds all of the value, and nothing else.
_REPR_IS_ALL: Final = frozenset(
    {datetime.date, datetime.timedelta, decimal.Decimal, fractions.Fraction, range, uuid.UUID}
)


class Unrecognisable(Exception):
    """A value that nothing tells from its equals, or its equals from others, in a later process."""


def hashed(tag: str, *parts: bytes) -> bytes:
    """Digest of parts under a tag; their borders count, so no two lists of parts collide.

    Example:
        >>> hashed("a", b"x", b"y") == hashed("a", b"xy")
        False
    """
    digest = hashlib.sha256()
    for part in (tag.encode(errors="surrogatepass"), *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def kind_name(kind: type) -> str:
    """Module and name of a class, which is all that a digest takes of it.

    Example:
        >>> kind_name(dict)
        'builtins.dict'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


class ValueDigest:
    """Digest one value, going through containers and objects.

    Example:
        >>> ValueDigest().of({"a": 1, "b": 2}) == ValueDigest().of({"b": 2, "a": 1})
        True
        >>> ValueDigest().of(1) == ValueDigest().of(True)
        False
    """

    def __init__(self) -> None:
        self._open: list[int] = []

    def of(self, value: Any) -> bytes:
        """Digest a value: 32 bytes.

        Raises:
            Unrecognisable: nothing in it is the same in every process.
        """
        kind = type(value)
        if kind in PLAIN:
            # ascii: what counts as printable changes with Python's tables; hex: no length limit.
            text = hex(value) if kind is int else ascii(value)
            return hashed(kind.__name__, text.encode())
        if id(value) in self._open or len(self._open) >= DEPTH:
            return self.unknown(value, "it contains itself, or is nested too deep")
        self._open.append(id(value))
        try:
            return self.composite(value)
        except Unrecognisable as error:
            return self.unknown(value, str(error))
        except Exception as error:  # of the value's own code: __getstate__, repr, iteration
            return self.unknown(value, f"{type(error).__name__}: {error}")
        finally:
            self._open.pop()

    def unknown(self, value: Any, reason: str) -> bytes:
        """What stands for a value that has no digest: here, nothing does."""
        raise Unrecognisable(f"{kind_name(type(value))}: {reason}")

    def code(self, value: Any) -> bytes:
        """Digest of a function, class or module: its name, where the name finds it."""
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        if isinstance(value, types.ModuleType):
            name = value.__name__
        if "<" in name:
            raise Unrecognisable(f"{name} is defined in a function and has no name outside")
        return hashed("name", name.encode(errors="surrogatepass"))

    def composite(self, value: Any) -> bytes:
        """Digest of what is not plain."""
        kind = type(value)
        name = kind_name(kind)
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            return self.code(value)
        if isinstance(value, types.ModuleType | types.MethodType | types.CodeType):
            return self.code(value)
        if isinstance(value, enum.Enum):
            return hashed("enum", name.encode(), str(value.name).encode())
        if kind in _REPR_IS_ALL:
            return hashed(name, ascii(value).encode())
        if isinstance(value, datetime.datetime | datetime.time):
            bare = value.replace(tzinfo=None).isoformat()
            return hashed(name, bare.encode(), bytes([value.fold]), self.of(value.tzinfo))
        if isinstance(value, PurePath):
            return hashed(name, str(value).encode(errors="surrogatepass"))
        if kind is bytearray:
            return hashed(name, bytes(value))
        if (method := getattr(value, "__dask_tokenize__", None)) is not None:
            return hashed("dask", name.encode(), self.of(method()))
        if isinstance(value, list | tuple):
            return hashed(name, *map(self.of, value), self._attributes(value))
        if isinstance(value, set | frozenset):
            return hashed(name, *sorted(map(self.of, value)), self._attributes(value))
        if isinstance(value, dict):
            return hashed(name, *self._pairs(value.items()), self._attributes(value))
        if normalize_token.dispatch(kind) is not normalize_object:  # numpy, pandas, pyarrow, …
            return self._by_dask(value)
        if _is_taken_apart_by_python(kind):
            # It refuses objects of C code that keep what they are to themselves.
            _, (_, *arguments), *parts = value.__reduce_ex__(2)
            return hashed(name, self.of(arguments), self.of(parts[:1]))
        return self._by_dask(value)

    def _attributes(self, value: Any) -> bytes:
        attributes = getattr(value, "__dict__", None)
        return self.of(attributes) if attributes else b""

    def _pairs(self, pairs: Iterable[tuple[Any, Any]]) -> list[bytes]:
        return sorted(self.of(key) + self.of(value) for key, value in pairs)

    def _by_dask(self, value: Any) -> bytes:
        kind = type(value)
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            raise Unrecognisable("its class is pickled by value, differently in each process")
        token = tokenize(value, ensure_deterministic=True)
        return hashed("dask", kind_name(kind).encode(), str(token).encode())


def _is_taken_apart_by_python(kind: Any) -> bool:
    """Whether a class has no pickling of its own, so that its parts are all that it is."""
    if kind is object:  # nothing but an address tells one from another
        return False
    return kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
