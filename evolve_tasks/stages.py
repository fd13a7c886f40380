"""A stage: a Prefect task or a plain function, with what the run needs to know of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial, update_wrapper
from numbers import Number
from types import FunctionType, MethodType
from typing import Any

from prefect import Task
from pydantic import BaseModel

from evolve_tasks.errors import InvalidInput
from evolve_tasks.naming import short_repr

# Where Prefect notes whose method a task is: on the function, which all objects of the class share.
_OBJECT, _CLASS = "__prefect_self__", "__prefect_cls__"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the chain.

    Args:
        name: its name in the UI, on the Dask dashboard and in `counts.by_stage`; unique.
        position: 0 for the stage that works on sources.
        last: it processes; every other stage expands.
        function: the user's task or function.
    """

    name: str
    position: int
    last: bool
    function: Task[..., Any] | Callable[..., Any]

    @property
    def task(self) -> Task[..., Any] | None:
        """The Prefect task, or `None` for a plain function."""
        return self.function if isinstance(self.function, Task) else None


def stages_from(functions: Sequence[Any]) -> tuple[Stage, ...]:
    """Check the stages of a call and name them.

    Args:
        functions: the stages as given, first to last.

    Returns:
        One `Stage` each; a name that occurs twice gets a number.

    Raises:
        InvalidInput: fewer than two, or one that cannot be called with one item.

    Example:
        >>> [stage.name for stage in stages_from([sorted, len])]
        ['sorted', 'len']
    """
    if len(functions) < 2:
        raise InvalidInput(
            f"evolve got {len(functions)} stage{'' if len(functions) == 1 else 's'}: it needs one "
            "that expands a source into items and one that processes an item, as in "
            "evolve(sources, parse_file, process_item)"
        )
    for function in functions:
        if not callable(function):
            raise InvalidInput(
                f"stage {function!r} is not callable: give a Prefect @task or a function of one "
                "item (and options as keywords: evolve(sources, parse, process, batch=10))"
            )
    _refuse_method_of_two(functions)
    stages = []
    seen: dict[str, int] = {}
    for position, function in enumerate(functions):
        _refuse_wrong_signature(function)
        name = function_name(function)
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name = f"{name}-{seen[name]}"
        stages.append(Stage(name, position, position == len(functions) - 1, owned(function)))
    return tuple(stages)


def function_name(function: Any) -> str:
    """Name a task or function as a person would."""
    if isinstance(function, Task):
        return str(function.name)
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name)


def called(function: Any) -> Callable[..., Any]:
    """What is called with an item.

    Args:
        function: a task or a function.

    Returns:
        A task's own function, bound to its object if the task is a method.
    """
    call: Callable[..., Any] = function.fn if isinstance(function, Task) else function
    if isinstance(function, Task):
        for name in (_OBJECT, _CLASS):
            if hasattr(call, name):
                return MethodType(call, getattr(call, name))
    return call


def owned(function: Any) -> Any:
    """Let a task that is a method keep its object.

    Whoever asks another object for the same task changes what Prefect has noted on the function
    that they share; and a function that is pickled by its name would come without it.

    Args:
        function: a task or a function.

    Returns:
        A task with a function of its own, if it is a method; others as they are.
    """
    if not isinstance(function, Task):
        return function
    if not (hasattr(function.fn, _OBJECT) or hasattr(function.fn, _CLASS)):
        return function
    task = copy(function)
    task.fn = vars(task)["__wrapped__"] = _copied(function.fn)
    return task


def _copied(function: Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(function, FunctionType):
        return copy(function)
    made = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    update_wrapper(made, function)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__ = dict(vars(function))  # without the way back to it
    return made


def _refuse_method_of_two(functions: Sequence[Any]) -> None:
    """Of a task that is a method of several objects Prefect knows the last one only."""
    tasks = {
        id(function): function.fn
        for function in functions
        if isinstance(function, Task) and hasattr(function.fn, _OBJECT)
    }
    seen: set[int] = set()
    for call in tasks.values():
        if id(call) in seen:
            raise InvalidInput(
                f"the method {function_name(call)!r} is a task and more than one stage, and "
                "Prefect only knows the object that was asked for it last: make a task of each, "
                "as in task(functools.partial(Parser.parse.fn, parser))"
            )
        seen.add(id(call))


def _refuse_wrong_signature(function: Any) -> None:
    try:
        signature = inspect.signature(called(function))
    except ValueError:  # some builtins do not tell
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise InvalidInput(
            f"stage {function_name(function)!r} cannot be called with one item ({error}): a stage "
            "takes the source or item as its only required argument; bind others with "
            "functools.partial or defaults"
        ) from error


def as_items(stage: str, value: Any, gather: Callable[[Iterable[Any]], list[Any]] = list) -> Any:
    """Check what an expanding stage returned, and make it something with a length.

    Args:
        stage: the stage's name, for the message.
        value: what it returned: any iterable but a string, bytes, number or mapping.
        gather: makes a list of what yields its items one by one.

    Returns:
        A list, tuple or range of M >= 0 items.

    Raises:
        TypeError: it is not a collection of items; the source fails with this message.

    Example:
        >>> as_items("parse", iter("ab"))
        ['a', 'b']
    """
    kind = type(value).__name__
    wanted = (
        "an expanding stage returns (or yields) its items: a list, a tuple, a generator or "
        "another iterable"
    )
    if value is None:
        raise TypeError(f"{stage} returned None; {wanted}; for no items return []")
    if isinstance(value, str | bytes | bytearray | memoryview):
        raise TypeError(
            f"{stage} returned {short_repr(value)} of type {kind}, which would be taken apart into "
            f"characters; {wanted}; for one item return [value]"
        )
    if isinstance(value, Mapping | BaseModel):
        raise TypeError(
            f"{stage} returned a mapping ({kind}), of which only the keys would be used; {wanted}; "
            "for its pairs return list(value.items())"
        )
    if isinstance(value, Number) or not _iterable(value):
        raise TypeError(
            f"{stage} returned {short_repr(value)} of type {kind}; {wanted}; for one item "
            "return [value]"
        )
    # Only these are sure to give a slice when asked for one.
    return value if isinstance(value, list | tuple | range) else gather(value)


def _iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True
