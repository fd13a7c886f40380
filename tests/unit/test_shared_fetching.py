"""Coroutines that ask for results at the same time share the way to the scheduler."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from evolve_tasks.errors import ClusterLost
from evolve_tasks.strategies.shared_fetching import CALLS, SharedFetching


class Fetched:
    """Answers with what it is asked for; what is in `held` is waited for."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.held: dict[Any, threading.Event] = {}
        self.lost: set[Any] = set()
        self.gone: set[Any] = set()
        self.asked = threading.Event()

    def take(self, futures: Sequence[Any], leaves: Callable[[], bool]) -> list[Any]:
        self.calls.append(list(futures))
        self.asked.set()
        for one in futures:
            if one in self.held:
                self.held[one].wait()
        if self.lost.intersection(futures):
            raise ClusterLost("it was lost")
        return [None if one in self.gone else f"answer {one}" for one in futures]


async def asked(fetched: Fetched, held: Sequence[int]) -> None:
    """Wait until those are being fetched."""
    while not set(held) <= {one for call in fetched.calls for one in call}:
        await asyncio.to_thread(fetched.asked.wait)
        fetched.asked.clear()


def shared(fetched: Fetched) -> Any:
    taking: Any = fetched
    return SharedFetching(taking, lambda: False)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def test_those_that_ask_meanwhile_are_fetched_together() -> None:
    async def body() -> None:
        fetched = Fetched()
        fetched.held = {place: threading.Event() for place in range(CALLS)}
        fetching = shared(fetched)
        first = [asyncio.create_task(fetching.take(place, alone=False)) for place in range(CALLS)]
        await asked(fetched, [0])
        later = [asyncio.create_task(fetching.take(place, alone=False)) for place in range(10, 110)]
        await asyncio.sleep(0)  # they have asked
        for event in fetched.held.values():
            event.set()
        assert await asyncio.gather(*first, *later) == [
            f"answer {place}" for place in (*range(CALLS), *range(10, 110))
        ]
        assert len(fetched.calls) <= 2 * CALLS

    run(body())


def test_one_that_is_slow_to_come_does_not_hold_up_those_that_come_later() -> None:
    async def body() -> None:
        fetched = Fetched()
        fetched.held = {0: threading.Event()}
        fetching = shared(fetched)
        slow = asyncio.create_task(fetching.take(0, alone=False))
        await asked(fetched, [0])
        assert [await fetching.take(place, alone=False) for place in range(1, 10)] == [
            f"answer {place}" for place in range(1, 10)
        ]
        assert not slow.done()
        fetched.held[0].set()
        assert await slow == "answer 0"

    run(body())


def test_one_that_did_not_come_is_fetched_alone() -> None:
    async def body() -> None:
        fetched = Fetched()
        fetched.held = {place: threading.Event() for place in range(CALLS)}
        fetching = shared(fetched)
        slow = [asyncio.create_task(fetching.take(place, alone=True)) for place in range(CALLS)]
        await asked(fetched, range(CALLS))
        assert await fetching.take(10, alone=False) == "answer 10"
        for event in fetched.held.values():
            event.set()
        await asyncio.gather(*slow)
        assert all(len(call) == 1 for call in fetched.calls)

    run(body())


def test_what_is_not_there_is_told_to_the_one_that_asked() -> None:
    async def body() -> None:
        fetched = Fetched()
        fetched.gone = {1}
        fetching = shared(fetched)
        taken = await asyncio.gather(*(fetching.take(place, alone=False) for place in range(3)))
        assert taken == ["answer 0", None, "answer 2"]

    run(body())


def test_an_error_is_told_to_all_that_asked_with_it_and_the_next_ones_are_fetched() -> None:
    async def body() -> None:
        fetched = Fetched()
        fetched.lost = {1}
        fetching = shared(fetched)
        told = await asyncio.gather(
            *(fetching.take(place, alone=False) for place in range(3)),
            return_exceptions=True,
        )
        assert any(isinstance(one, ClusterLost) for one in told)
        assert all(isinstance(one, ClusterLost | str) for one in told)
        assert await fetching.take(5, alone=False) == "answer 5"

    run(body())


def test_nobody_waits_once_it_is_closed() -> None:
    async def body() -> None:
        fetched = Fetched()
        fetched.held = {0: threading.Event()}
        fetching = shared(fetched)
        waiting = asyncio.create_task(fetching.take(0, alone=False))
        await asked(fetched, [0])
        fetching.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        fetched.held[0].set()

    run(body())


def test_one_that_was_cancelled_is_not_fetched() -> None:
    async def body() -> None:
        fetched = Fetched()
        fetched.held = {place: threading.Event() for place in range(CALLS)}
        fetching = shared(fetched)
        first = [asyncio.create_task(fetching.take(place, alone=False)) for place in range(CALLS)]
        await asked(fetched, [0])
        later = [asyncio.create_task(fetching.take(place, alone=False)) for place in (10, 11)]
        await asyncio.sleep(0)  # they have asked
        later[0].cancel()
        for event in fetched.held.values():
            event.set()
        assert await later[1] == "answer 11"
        await asyncio.gather(*first)
        assert 10 not in [one for call in fetched.calls for one in call]

    run(body())
