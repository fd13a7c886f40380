"""A token of a stage's code: another one when what it does may have changed.

The bytecode counts and not `inspect.getsource`. That one reads the file as it is now, so in a
process that lives longer than an edit it gives the new text for the old code that runs, and old
results would be taken for those of the new code. Bytecode knows no comments, line numbers or
decorator texts; a decorator that wraps is a function with a closure and counts as that, and
Prefect's `@task(retries=…)` does not, because its options change no result. The price: another
minor version of Python means other bytecode, and work is done again once.

What counts: the function, its defaults, what its closures captured, arguments of partials, class
and state of callable objects, `task.version`; further the functions, classes and unchangeable
constants of the same module that it names, because there a stage's code is split up. Other
modules count by name: change `task.version` when one of them changes a result. The same holds for
lists, dicts and sets of the module, which are as often a memory as a constant.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from typing import Any, Final

from prefect import Task

from evolve_tasks.journal.digests import PLAIN, ValueDigest, hashed, kind_name
from evolve_tasks.journal.identity import TOKEN

_NO_CODE: Final = frozenset(
    {"__dict__", "__doc__", "__firstlineno__", "__module__", "__static_attributes__", "__weakref__"}
)


def stage_token(function: Any) -> str:
    """Tell the code of a stage, with all that it carries, in any later process.

    Args:
        function: a Prefect task, a function, a partial, a bound method or a callable object.

    Returns:
        32 hexadecimal digits. A captured value that nothing tells (a lock, a connection) counts
        by its class.

    Example:
        >>> from functools import partial
        >>> stage_token(partial(round, ndigits=1)) == stage_token(partial(round, ndigits=2))
        False
    """
    return _CodeDigest().of(function).hex()[:TOKEN]


class _CodeDigest(ValueDigest):
    """Digest of code, and of values as far as they have one."""

    def __init__(self) -> None:
        super().__init__()
        # The order of the first visit stands for a function that was seen before: it ends
        # recursion, and it keeps code that calls itself in many ways from being walked each way.
        self._seen: dict[int, tuple[int, Any]] = {}

    def unknown(self, value: Any, reason: str) -> bytes:
        return hashed("unknown", kind_name(type(value)).encode())

    def composite(self, value: Any) -> bytes:
        if isinstance(value, Task):
            # A task that is a method depends on its object, as a method does.
            owner = getattr(value.fn, "__prefect_self__", None)
            owners = [] if owner is None else [self.of(owner)]
            return hashed("task", self.of(value.version), self.of(value.fn), *owners)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return hashed("partial", *map(self.of, parts))
        if isinstance(value, types.MethodType):
            return hashed("method", self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, staticmethod | classmethod):
            return hashed(type(value).__name__, self.of(value.__func__))
        if isinstance(value, property):
            return hashed("property", *map(self.of, (value.fget, value.fset, value.fdel)))
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.BuiltinMethodType) and not isinstance(
            value.__self__, types.ModuleType | type(None)
        ):
            return hashed("method", value.__name__.encode(), self.of(value.__self__))
        if (
            callable(value)
            and not isinstance(value, type | types.FunctionType)
            and isinstance(wrapped := getattr(value, "__wrapped__", None), types.FunctionType)
        ):
            # functools.cache and its kin, written in C: what they wrap is all that counts.
            return hashed("wrapped", self.of(wrapped))
        if callable(value) and not isinstance(
            value, type | types.FunctionType | types.BuiltinFunctionType
        ):
            return hashed("callable", self.of(type(value)), super().composite(value))
        return super().composite(value)

    def code(self, value: Any) -> bytes:
        known = self._seen.get(id(value))
        if known is not None:
            return hashed("seen", str(known[0]).encode())
        if isinstance(value, types.FunctionType):
            self._seen[id(value)] = (len(self._seen), value)
            return self._function(value)
        if isinstance(value, type) and value.__module__ != "builtins":
            self._seen[id(value)] = (len(self._seen), value)
            return self._class(value)
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
        module = getattr(value, "__module__", "") or ""
        return hashed("name", f"{module}.{name}".encode(errors="surrogatepass"))

    def _function(self, function: types.FunctionType) -> bytes:
        captured = []
        for cell in function.__closure__ or ():
            try:
                captured.append(self.of(cell.cell_contents))
            except ValueError:  # not filled yet
                captured.append(b"")
        named = [name.encode() + b"=" + self.of(value) for name, value in _own_globals(function)]
        return hashed(
            "function",
            self.of(function.__code__),
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__),
            hashed("captured", *captured),
            hashed("named", *named),
        )

    def _class(self, kind: type) -> bytes:
        parts = [hashed("base", self._base(kind, base)) for base in kind.__bases__]
        for name, value in sorted(vars(kind).items()):
            dunder = name.startswith("__") and name.endswith("__")
            is_code = isinstance(value, types.FunctionType | staticmethod | classmethod | property)
            if name not in _NO_CODE and (is_code or not dunder):
                parts.append(name.encode() + b"=" + self.of(value))
        return hashed("class", kind.__qualname__.encode(), *parts)

    def _base(self, kind: type, base: type) -> bytes:
        if base.__module__ == kind.__module__:
            return self.of(base)
        return kind_name(base).encode()

    def _code(self, code: types.CodeType) -> bytes:
        numbers = (
            code.co_flags,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
        )
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return hashed(
            "code",
            code.co_code,
            code.co_exceptiontable,
            self.of(numbers),
            self.of(names),
            *map(self.of, code.co_consts),
        )


def _own_globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function names of its own module: functions, classes, constants; by name."""
    loaded: set[str] = set()
    stored: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname == "LOAD_GLOBAL":
                loaded.add(str(step.argval))
            elif step.opname == "STORE_GLOBAL":
                stored.add(str(step.argval))
    for name in sorted(loaded - stored):
        if name in function.__globals__ and not name.startswith("__"):
            value = function.__globals__[name]
            if _is_constant(value) or _module_of(value) == function.__module__:
                yield name, value


def _module_of(value: Any) -> str | None:
    """The module whose code a value is, or `None` if it is none."""
    inner = value.fn if isinstance(value, Task) else value
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = getattr(inner, "__wrapped__", inner) if callable(inner) else inner
    if isinstance(inner, types.FunctionType | type):
        return inner.__module__
    return None


def _is_constant(value: Any) -> bool:
    if type(value) in PLAIN:
        return True
    return type(value) in (tuple, frozenset) and all(map(_is_constant, value))
