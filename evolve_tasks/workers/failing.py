"""Turn what a user's code raised into a `Failure` that can travel and be read."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from evolve_tasks.naming import short_repr
from evolve_tasks.outcome import Failure

LONG = 20_000  # characters of a message or traceback: an error text can be of any size


def failure_from(
    error: BaseException, *, stage: str, index: tuple[int, ...], item: Any, attempts: int = 1
) -> Failure:
    """Describe an exception as a `Failure` without its source, which the flow fills in."""
    return Failure(
        stage=stage,
        source=None,
        index=index,
        item=short_repr(item),
        error_type=type(error).__name__,
        message=_message(error)[:LONG],
        traceback="".join(_trace(error))[-LONG:],
        attempts=max(1, attempts),
    )


def after_some(failure: Failure, items: int) -> Failure:
    """Say of a source that failed half way how many items it had given, which are worked on."""
    given = f"(items given before: {items:,}; they are worked on)"
    return replace(failure, message=f"{failure.message} {given}")


def made_speakable(error: Exception) -> None:
    """Give an error a text, if it raises when it is asked for its own.

    Prefect's engine asks, and would fail over it with a task run that is never ended.
    """
    try:
        str(error), repr(error)
    except Exception as second:
        kind = type(error)
        text = f"<{kind.__name__} whose text raises {type(second).__name__}>"
        spoken = {"__str__": lambda _: text, "__repr__": lambda _: text}
        with suppress(TypeError):  # a class that nothing can be derived from
            error.__class__ = type(kind.__name__, (kind,), spoken)


def own_frames(frames: Sequence[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Pick those of N >= 0 frames that are the user's, not ours or Prefect's.

    Args:
        frames: outermost first, as `traceback.extract_tb` and `extract_stack` give them.
    """
    entered = [at for at, frame in enumerate(frames) if _is_ours(frame)]
    # A thread begins with frames of the standard library, which come before any of ours.
    first = entered[0] if entered else 0
    return [frame for frame in frames[first:] if not _is_ours(frame)]


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return "/prefect/" in frame.filename or "/evolve_tasks/" in frame.filename


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"<{type(error).__name__} whose str raises {type(second).__name__}>"


def _trace(error: BaseException) -> list[str]:
    """The traceback from the user's code on: how we and Prefect got there says nothing."""
    try:
        own = own_frames(traceback.extract_tb(error.__traceback__))
        head = ["Traceback (most recent call last):\n"] if own else []
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        before = [*traceback.format_exception(cause), "\nfrom which followed:\n\n"] if cause else []
        return [
            *before,
            *head,
            *traceback.format_list(own),
            *traceback.format_exception_only(error),
        ]
    except Exception as second:
        return [f"{type(error).__name__} (its traceback raises {type(second).__name__})"]
