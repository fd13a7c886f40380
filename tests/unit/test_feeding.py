"""Taking sources: what an iterable raises ends it, and what is meant for the process goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evolve_tasks.feeding import take_one


def raising(error: BaseException) -> Iterator[int]:
    yield 1
    raise error


def test_an_error_of_the_sources_is_told_with_their_end() -> None:
    sources = raising(OSError("gone"))
    assert take_one(sources).sources == [1]
    arrival = take_one(sources)
    assert arrival.sources == []
    assert arrival.ended
    assert isinstance(arrival.error, OSError)
    assert take_one(sources).error is None


def test_a_signal_of_the_process_is_let_through() -> None:
    sources = raising(KeyboardInterrupt())
    assert take_one(sources, (KeyboardInterrupt,)).sources == [1]
    with pytest.raises(KeyboardInterrupt):
        take_one(sources, (KeyboardInterrupt,))
