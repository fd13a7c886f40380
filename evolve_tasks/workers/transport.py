"""Values on their way through Dask: one opaque object, whatever is in it.

distributed serializes the elements of plain lists one by one, at 19 to 29 µs an element; the
same list inside one object of bytes costs a hundredth of that.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pickle import PickleBuffer
from typing import Any

import cloudpickle
from distributed.protocol.pickle import dumps, loads

from evolve_tasks.naming import error_text
from evolve_tasks.workers.salvaging import salvaged

# What these pickle to can be unpickled anywhere.
PLAIN = frozenset({int, float, bool, str, bytes, type(None)})


def is_plain(value: Any) -> bool:
    """Whether a value, or each element of a list, is of a kind that travels anywhere.

    Example:
        >>> is_plain([1, "a", None]), is_plain([{}])
        (True, False)
    """
    kinds = {*map(type, value)} if type(value) in (list, tuple) else {type(value)}
    return kinds <= PLAIN


def _dumped(value: Any) -> bytes:
    """What Dask's `dumps` gives, in a tenth of its time for a short list.

    Dask asks `inspect` which module each value is from. Only modules that somebody has registered
    with cloudpickle are of any interest there, and hardly anybody does.
    """
    if not cloudpickle.list_registry_pickle_by_value():
        try:
            payload = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception:
            return bytes(dumps(value))
        if b"__main__" not in payload:
            return payload
        del payload  # it may be large
    return bytes(dumps(value))


class Packed:
    """A value as bytes.

    Args:
        payload: the pickled value.

    Example:
        >>> Packed.of([1, 2]).value()
        [1, 2]
    """

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    @classmethod
    def of(cls, value: Any) -> Packed:
        """Pickle a value, with cloudpickle where pickle cannot."""
        return cls(_dumped(value))

    @classmethod
    def tried(cls, value: Any) -> Packed:
        """Pickle a value, and unpickle it: some objects fail only on the way back.

        As exceptions do that pass on other arguments than they take. Whoever unpickles a whole
        batch can't tell which of its values is at fault.

        Raises:
            Exception: whatever pickling or unpickling it raises.
        """
        packed = cls.of(value)
        if not is_plain(value):
            packed.value()
        return packed

    def value(self) -> Any:
        """The value again."""
        return loads(self.payload)

    def elements(self) -> Any:
        """The value, which is a list; `Unreadable` stands for what cannot be made here."""
        try:
            return self.value()
        except Exception as error:
            return _elements(self.payload, (), error)

    def __sizeof__(self) -> int:
        """What Dask's memory accounting should see."""
        return len(self.payload)

    def __reduce__(self) -> tuple[type[Packed], tuple[bytes]]:
        """Pickle as the bytes that it is."""
        return Packed, (self.payload,)


class Resting:
    """A value that is pickled when it travels, and unpickled elsewhere when somebody asks for it.

    Dask unpickles what comes from another worker before anything of ours runs; where that fails it
    tries again without end.

    Args:
        payload: the pickled value.
        buffers: those that were left out of it, as of arrays: they need not be copied.

    Example:
        >>> Resting.of([1, 2]).value()
        [1, 2]
    """

    __slots__ = ("buffers", "payload")

    def __init__(self, payload: bytes, buffers: Sequence[Any] = ()) -> None:
        self.payload = payload
        self.buffers = buffers

    @classmethod
    def of(cls, value: Any) -> Resting:
        """Pickle a value, with cloudpickle where pickle cannot."""
        buffers: list[PickleBuffer] = []
        return cls(dumps(value, buffer_callback=buffers.append), buffers)

    def value(self) -> Any:
        """The value again.

        Raises:
            Unpicklable: it can be made where it comes from alone.
        """
        try:
            return loads(self.payload, buffers=self.buffers)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise Unpicklable(f"items {came_unreadable(why)}") from error

    def elements(self) -> Any:
        """The value, which is a list; `Unreadable` stands for what cannot be made here.

        Raises:
            Unpicklable: nothing of it can be made here.
        """
        try:
            return self.value()
        except Unpicklable as error:
            return _elements(self.payload, self.buffers, error)

    def __sizeof__(self) -> int:
        """What Dask's memory accounting should see."""
        return len(self.payload) + sum(memoryview(one).nbytes for one in self.buffers)

    def __reduce__(self) -> tuple[type[Resting], tuple[bytes, list[PickleBuffer]]]:
        """Pickle as the bytes that it is."""
        return Resting, (self.payload, [PickleBuffer(one) for one in self.buffers])


def _elements(payload: bytes, buffers: Sequence[Any], error: Exception) -> Any:
    try:
        return salvaged(payload, 1, buffers)
    except Exception:
        raise error from error.__cause__


def came_unreadable(error: str) -> str:
    """What to say of items that cannot be unpickled on the worker that is to work on them."""
    return (
        f"came from another process, and cannot be unpickled here ({error}); give plain values, or "
        "see that their classes are installed on each worker and can be made there from what they "
        "pickle"
    )


class Unpacked(Packed):
    """A value that has been unpacked already."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        super().__init__(b"")
        self._value = value

    def value(self) -> Any:
        """The value."""
        return self._value


NOTHING = Packed.of([])


class Unpicklable(TypeError):
    """A value that cannot be pickled and unpickled, so it cannot travel between processes."""


def require_picklable(stage: str, value: Any) -> None:
    """Refuse a value that cannot travel.

    Raises:
        Unpicklable: it names the stage and the type; return plain values, or open files,
            locks and connections where they are used.
    """
    if is_plain(value):
        return
    try:
        Packed.tried(value)
    except Exception as error:
        raise Unpicklable(
            f"{stage} returned a value of type {type(value).__name__} that cannot be pickled "
            f"and unpickled ({error_text(error)}); return plain values, and open files, locks or "
            "connections where they are used"
        ) from error
