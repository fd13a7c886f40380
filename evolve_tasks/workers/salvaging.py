"""What can be unpickled of lists in which some elements cannot."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

# What is memoized before it is whole is made whole by these.
_COMPLETE = {"BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "POP"}


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
    """Unpickle what can be unpickled of lists, or tuples.

    An element is made by its own part of the pickle alone. What it shares with one that cannot be
    made is made by the part that makes this, if that can be done.

    Args:
        payload: a pickled list; or a list of lists, and so on.
        levels: how deep the values lie: 1 in a list, 2 in a list of lists.
        buffers: those that were left out of the payload.

    Returns:
        The list, with `Unreadable` in place of values that cannot be made.

    Raises:
        ValueError: it is no pickle, or no such list; nothing of it can be read.

    Example:
        >>> salvaged(pickle.dumps([1, 2]), 1)
        [1, 2]
    """
    program = _program(payload)
    value: list[Any] = _Salvage(program, buffers).parted(program, levels)
    return value


class _Op(NamedTuple):
    """An instruction of a pickle.

    Args:
        name: of its kind.
        code: its bytes.
        depth: of the stack, after it.
        memos: objects that are in the memo before it.
        buffers: that were used before it.
    """

    name: str
    code: bytes
    depth: int
    memos: int
    buffers: int


def _program(payload: bytes) -> list[_Op]:
    """Take a pickle apart."""
    given = list(pickletools.genops(payload))
    ends = [*(place for _, _, place in given[1:]), len(payload)]
    ops: list[_Op] = []
    marks: list[int] = []
    depth = memos = buffers = 0
    for (kind, _, place), end in zip(given, ends, strict=True):
        if kind.name in ("PROTO", "FRAME", "STOP"):
            continue
        if pickletools.markobject in kind.stack_before:
            depth = marks.pop() - kind.stack_before.index(pickletools.markobject)
        else:
            depth -= len(kind.stack_before)
        if kind.name == "MARK":
            marks.append(depth)
        depth += len(kind.stack_after)
        ops.append(_Op(kind.name, payload[place or 0 : end], depth, memos, buffers))
        memos += kind.name == "MEMOIZE"
        buffers += kind.name == "NEXT_BUFFER"
    return ops


def _elements(ops: Sequence[_Op]) -> list[Sequence[_Op]]:
    """The parts of a program that make the elements of what it makes, a list or a tuple."""
    first = ops[0]
    if first.name == "EMPTY_LIST":
        return _appended(ops[1:], first.depth)
    if ops[-1].name == "MEMOIZE":
        ops = ops[:-1]
    match ops[-1].name:
        case "EMPTY_TUPLE":
            return []
        case "TUPLE" if first.name == "MARK":
            return _beside_each_other(ops[1:-1], first.depth)
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            return _beside_each_other(ops[:-1], ops[-1].depth - 1)
    raise ValueError("it is no list")


def _appended(ops: Sequence[_Op], alone: int) -> list[Sequence[_Op]]:
    """Those that are appended to a list, in pieces; `alone` is the depth of the list alone."""
    elements: list[Sequence[_Op]] = []
    begin = 0
    for end, op in enumerate(ops):
        if op.depth > alone:
            continue
        if op.name == "APPEND":
            elements.append(ops[begin:end])
        elif op.name == "APPENDS":
            elements += _beside_each_other(ops[begin + 1 : end], alone + 1)
        elif op.name != "MEMOIZE":
            raise ValueError("it is more than a list")
        begin = end + 1
    return elements


def _beside_each_other(ops: Sequence[_Op], below: int) -> list[Sequence[_Op]]:
    """What makes each of the values that stand on the stack in the end, above a depth."""
    elements: list[Sequence[_Op]] = []
    end = len(ops)
    # Each begins where the stack was for the last time as deep as the one before it.
    wanted = ops[-1].depth - 1
    for begin in range(len(ops) - 1, -1, -1):
        if (ops[begin - 1].depth if begin else below) == wanted:
            elements.append(ops[begin:end])
            end, wanted = begin, wanted - 1
    return elements[::-1]


def _shared(program: Sequence[_Op], place: int) -> Sequence[_Op]:
    """The part of a program that makes what is at a place of the memo, and makes it whole."""
    noted = next(
        number for number, op in enumerate(program) if op.name == "MEMOIZE" and op.memos == place
    )
    depth = program[noted].depth
    begin = end = noted
    while begin and program[begin - 1].depth >= depth:
        begin -= 1
    for number in range(noted + 1, len(program)):
        op = program[number]
        if op.depth < depth or (op.depth == depth and op.name not in _COMPLETE):
            break
        if op.depth == depth:
            end = number
    return program[begin : end + 1]


class _Salvage:
    """Makes values of parts of one program, one after the other."""

    def __init__(self, program: Sequence[_Op], buffers: Sequence[Any]) -> None:
        self._program = program
        self._buffers = buffers
        self._memo: dict[int, Any] = {}
        self._open: set[int] = set()

    def parted(self, ops: Sequence[_Op], levels: int) -> Any:
        """A list of values, or of lists of values; or one value."""
        if levels:
            return [self.parted(part, levels - 1) for part in _elements(ops)]
        try:
            return self._made(ops)
        except Exception as error:
            return Unreadable(f"{type(error).__name__}: {error}")

    def shared(self, place: int) -> Any:
        """What is at a place of the memo, as others want it, too."""
        if place not in self._memo:
            if place in self._open:
                raise ValueError("it holds itself")
            self._open.add(place)
            try:
                self._made(_shared(self._program, place))
            finally:
                self._open.remove(place)
        return self._memo[place]

    def _made(self, ops: Sequence[_Op]) -> Any:
        part = _Part(ops, self._memo, self._buffers[ops[0].buffers :], self.shared)
        try:
            return part.load()
        except Exception:
            # It may not be whole.
            for place in part.noted:
                self._memo.pop(place, None)
            raise


_InPython: Any = pickle._Unpickler  # what it is made of is not typed


class _Part(_InPython):  # type: ignore[misc]
    """Unpickles a part of a program.

    Args:
        ops: the part.
        memo: what was memoized before; it is added to.
        buffers: from the first one that it uses.
        shared: gives what is at a place of the memo.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_InPython.dispatch)

    def __init__(
        self,
        ops: Sequence[_Op],
        memo: dict[int, Any],
        buffers: Sequence[Any],
        shared: Callable[[int], Any],
    ) -> None:
        code = [pickle.PROTO, bytes([pickle.HIGHEST_PROTOCOL]), *(op.code for op in ops)]
        super().__init__(io.BytesIO(b"".join([*code, pickle.STOP])), buffers=buffers)
        self.memo = memo
        self.noted: list[int] = []  # places in the memo that are its own
        self._shared = shared
        self._next = ops[0].memos

    def load_memoize(self) -> None:
        self.memo[self._next] = self.stack[-1]
        self.noted.append(self._next)
        self._next += 1

    def load_binget(self) -> None:
        self.append(self._shared(int.from_bytes(self.read(1), "little")))

    def load_long_binget(self) -> None:
        self.append(self._shared(int.from_bytes(self.read(4), "little")))

    dispatch[pickle.MEMOIZE[0]] = load_memoize
    dispatch[pickle.BINGET[0]] = load_binget
    dispatch[pickle.LONG_BINGET[0]] = load_long_binget
