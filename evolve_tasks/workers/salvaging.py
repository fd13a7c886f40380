"""What can be unpickled of lists in which some elements cannot."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cloudpickle


@dataclass(frozen=True, slots=True, repr=False)
class Unreadable:
    """Stands in place of a value that cannot be unpickled here.

    Args:
        error: why it cannot; as text, since the error itself may be as unreadable elsewhere.
    """

    error: str

    def __repr__(self) -> str:
        return "<cannot be unpickled>"


def salvaged(payload: bytes, levels: int, buffers: Sequence[Any] = ()) -> list[Any]:
    """Unpickle what can be unpickled of lists.

    Args:
        payload: a pickled list; or a list of lists, and so on.
        levels: how deep the values lie: 1 in a list, 2 in a list of lists.
        buffers: those that were left out of the payload.

    Returns:
        The list, with `Unreadable` in place of values that hold anything that cannot be made.

    Raises:
        Exception: nothing of it can be read.

    Example:
        >>> salvaged(pickle.dumps([1, 2]), 1)
        [1, 2]
    """
    value: list[Any] = _parted(_Tolerant(payload, buffers).load(), levels)
    return value


def _parted(value: Any, levels: int) -> Any:
    if levels and not isinstance(value, _Broken):
        return [_parted(one, levels - 1) for one in value]
    error = _error_in(value)
    if error is None:
        return value
    if levels:
        raise error  # no value, but a list of them
    return Unreadable(f"{type(error).__name__}: {error}")


class _Broken:
    """Stands for what could not be made, and takes whatever it is given, as that would have."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error

    def _take(self, *_: Any) -> None:
        pass

    append = extend = add = __setitem__ = __setstate__ = _take


def _error_in(value: Any) -> BaseException | None:
    """Why something in a value could not be made: who pickles it comes to all that it holds."""
    try:
        pickle.dumps(value)
    except Exception:
        try:
            cloudpickle.dumps(value)
        except Exception as error:
            return error
    return None


_InPython: Any = pickle._Unpickler  # what it is made of is not typed


class _Tolerant(_InPython):  # type: ignore[misc]
    """Goes on where an object cannot be made.

    The unpickler in C ends there, and nobody knows in which element of a list it was. What is made
    of something broken counts as broken, also where it could be made: it may have looked away.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_InPython.dispatch)

    def __init__(self, payload: bytes, buffers: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(payload), buffers=buffers)
        self._any_broken = False

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Exception as error:
            return self._broken(error)

    def load_reduce(self) -> None:
        self._make(super().load_reduce, of=2)

    def load_newobj(self) -> None:
        self._make(super().load_newobj, of=2)

    def load_newobj_ex(self) -> None:
        self._make(super().load_newobj_ex, of=3)

    def load_build(self) -> None:
        built = self.stack[-2]
        self._make(super().load_build, of=2)
        if self.stack[-1] is not built:
            for key in [key for key, one in self.memo.items() if one is built]:
                self.memo[key] = self.stack[-1]

    def _make(self, make: Callable[[], None], of: int) -> None:
        """Make something of the last values on the stack, or put in their place that it failed."""
        below = len(self.stack) - of
        error = _error_in(self.stack[below:]) if self._any_broken else None
        if error is None:
            try:
                make()
            except Exception as raised:
                error = raised
        if error is not None:
            self.stack[below:] = [self._broken(error)]

    def _broken(self, error: BaseException) -> _Broken:
        self._any_broken = True
        return _Broken(error)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
