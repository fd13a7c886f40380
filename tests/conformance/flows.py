"""Run a function inside a flow, as the tests of the entry points need it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from prefect import flow

R = TypeVar("R")


def in_flow(runner: Any, body: Callable[[], R]) -> R:
    """Run `body` in a flow; give what it returned, untouched by Prefect, or raise its error."""
    returned: list[R] = []

    @flow(name="test", task_runner=runner)
    def around() -> None:
        returned.append(body())

    around()
    return returned[0]


async def in_async_flow(runner: Any, body: Callable[[], Awaitable[R]]) -> R:
    """The same for an async flow."""
    returned: list[R] = []

    @flow(name="async test", task_runner=runner)
    async def around() -> None:
        returned.append(await body())

    await around()
    return returned[0]
