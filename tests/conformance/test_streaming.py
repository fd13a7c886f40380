"""Generators that feed their items while they still yield: in every strategy that runs on Dask."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import task
from prefect.cache_policies import INPUTS

from evolve_tasks import EvolveFailed, EvolveTaskRunner, More, Outcome, evolve, evolve_iter
from tests.conformance.flows import in_flow

STRATEGIES = ["as_completed", "async", "nested"]
DEADLINE_S = 60

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    return EvolveTaskRunner(address=thread_workers)


def there(path: Path) -> None:
    """Wait for a file: whoever waits for it for ever waits for what does not come."""
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path.name} does not come")
        time.sleep(0.01)


class Waiting:
    """Yields an item and waits until it has been processed before it yields the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def parse(self, count: int) -> Iterator[int]:
        for item in range(count):
            yield item
            there(Path(self.folder, str(item)))

    async def parse_async(self, count: int) -> AsyncIterator[int]:
        for item in range(count):
            yield item
            there(Path(self.folder, str(item)))

    def process(self, item: int) -> int:
        Path(self.folder, str(item)).touch()
        return item


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [("as_completed", "function"), ("async", "task"), ("nested", "async"), ("auto", "task")],
)
def test_items_are_processed_while_their_generator_waits_for_it(
    strategy: str, kind: str, runner: Any, tmp_path: Path
) -> None:
    waiting = Waiting(tmp_path)
    parse: Any = waiting.parse_async if kind == "async" else waiting.parse
    if kind == "task":
        parse = task(parse)

    def body() -> Outcome:
        return evolve([5], parse, waiting.process, strategy=strategy)

    outcome = in_flow(runner, body)
    assert outcome.results == list(range(5))
    assert (outcome.counts.discovered, outcome.counts.done) == (5, 5)


@pytest.mark.parametrize(
    ("strategy", "record"), [("as_completed", "items"), ("async", "batches"), ("nested", "auto")]
)
def test_three_stages_of_generators(
    strategy: str, record: str, runner: Any, tmp_path: Path
) -> None:
    waiting = Waiting(tmp_path)

    def roots(count: int) -> Iterator[int]:
        for root in range(count):
            time.sleep(0.06)
            yield root + 2

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "record": record}
        return evolve([3], roots, waiting.parse, waiting.process, **options)

    assert in_flow(runner, body).results == [0, 1, 0, 1, 2, 0, 1, 2, 3]


SLOW_S = 0.04  # an item; four of them are more than a generator is given before it is streamed


def slow_then_breaks(count: int) -> Iterator[int]:
    for item in range(count):
        time.sleep(SLOW_S)
        yield item
    raise OSError("broken")


def same(item: Any) -> Any:
    return item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_was_given_before_the_failure_is_processed(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        return evolve([8, 0], slow_then_breaks, same, strategy=strategy, on_failure="ignore")

    outcome = in_flow(runner, body)
    assert outcome.results == list(range(8))
    half, nothing = outcome.failures
    assert half.index == (0,)
    assert "broken (items given before: 8; they are worked on)" in half.message
    assert (nothing.index, nothing.message) == ((1,), "broken")
    assert outcome.counts.by_stage["slow_then_breaks"].failed == 2


class Retried:
    """Breaks at its first attempt; the second gives the same, or something else."""

    def __init__(self, folder: Path, shift: int) -> None:
        self.folder, self.shift = str(folder), shift

    def __call__(self, count: int) -> Iterator[int]:
        first = Path(self.folder, "first")
        again = first.exists()
        for item in range(count):
            time.sleep(SLOW_S)
            yield item + (self.shift if again and item == 2 else 0)
            if not again and item == count - 2:
                first.touch()
                raise OSError("for once")


@pytest.mark.parametrize(
    ("strategy", "shift"), [("as_completed", 0), ("async", 0), ("nested", 0), ("as_completed", 7)]
)
def test_a_retried_generator_goes_on_where_it_was(
    strategy: str, shift: int, runner: Any, tmp_path: Path
) -> None:
    parse = task(Retried(tmp_path, shift).__call__, name="retried", retries=1)

    def body() -> Outcome:
        return evolve([8], parse, same, strategy=strategy, on_failure="ignore")

    outcome = in_flow(runner, body)
    if not shift:
        assert outcome.results == list(range(8))
        assert not outcome.failures
        return
    # Which items were sent before is for the clock; none of them is taken back, or done twice.
    assert outcome.results == list(range(len(outcome.results)))
    (failure,) = outcome.failures
    assert failure.error_type == "ItemsChanged"
    assert "others now" in failure.message


class Lead:
    """How far a generator is ahead; the threads of the workers are threads of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.given = self.done = self.most = 0


lead = Lead()


def leading(count: int) -> Iterator[int]:
    for item in range(count):
        time.sleep(0.002)
        with lead.lock:
            lead.given += 1
            lead.most = max(lead.most, lead.given - lead.done)
        yield item


def following(item: int) -> int:
    time.sleep(0.01)
    with lead.lock:
        lead.done += 1
    return item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_its_lead_stays_within_the_bound(strategy: str, runner: Any) -> None:
    lead.given = lead.done = lead.most = 0

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "in_flight": 4, "buffered": 20, "batch": 1}
        return evolve([300], leading, following, **options)

    assert in_flow(runner, body).results == list(range(300))
    # In flight, waiting, and the one that it holds; one more is done before its thread says so.
    assert lead.most <= 4 + 20 + 2


ended: dict[str, threading.Event] = {}


def endless(name: str) -> Iterator[int]:
    item = 0
    try:
        while True:
            yield item
            item += 1
    finally:
        ended[name].set()


def endless_and_slow(name: str) -> Iterator[int]:
    for item in endless(name):
        time.sleep(0.005)
        yield item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_leaves_the_loop_ends_it(strategy: str, runner: Any) -> None:
    name = f"left by {strategy}"
    ended[name] = threading.Event()

    def body() -> list[int]:
        found = []
        for one in evolve_iter([name], endless, same, strategy=strategy, buffered=50):
            found.append(one.value)
            if len(found) == 200:
                break
        return found

    assert len(set(in_flow(runner, body))) == 200
    assert ended[name].wait(DEADLINE_S)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_limit_ends_it(strategy: str, runner: Any) -> None:
    name = f"limited in {strategy}"
    ended[name] = threading.Event()

    def body() -> Outcome:
        return evolve([name], endless_and_slow, same, strategy=strategy, max_items=60)

    outcome = in_flow(runner, body)
    assert outcome.results == list(range(60))
    assert ended[name].wait(DEADLINE_S)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_equal_items_and_recursion(strategy: str, runner: Any) -> None:
    def parse(count: int) -> Iterator[int]:
        for item in range(count):
            time.sleep(SLOW_S)
            yield item % 6

    def process(item: int) -> Any:
        return More(item, [item + 100], stage=1) if item < 100 else item

    def body() -> Outcome:
        return evolve([10], parse, process, strategy=strategy, unique=True)

    outcome = in_flow(runner, body)
    assert outcome.results == [0, 100, 1, 101, 2, 102, 3, 103, 4, 104, 5, 105]
    assert outcome.counts.repeated == 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_cannot_travel_is_a_failure(strategy: str, runner: Any) -> None:
    def parse(count: int) -> Iterator[Any]:
        for item in range(count):
            time.sleep(SLOW_S)
            yield item if item != 4 else (_ for _ in ())

    def body() -> Outcome:
        return evolve([8], parse, same, strategy=strategy, on_failure="ignore")

    outcome = in_flow(runner, body)
    (failure,) = outcome.failures
    assert "cannot be pickled" in failure.message
    assert outcome.results == list(range(len(outcome.results)))


class DiesOnce:
    """A generator whose worker is killed by one of its items, for once."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def parse(self, count: int) -> Iterator[int]:
        for item in range(count):
            time.sleep(SLOW_S)
            yield item
            there(Path(self.folder, str(item - 5))) if item > 5 else None
            if item == 9 and not Path(self.folder, "dead").exists():
                Path(self.folder, "dead").touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def process(self, item: int) -> int:
        with Path(self.folder, str(item)).open("a") as diary:
            diary.write("x")
        return item


@pytest.mark.parametrize("strategy", ["as_completed", "async"])
def test_a_killed_worker_costs_nothing_that_was_given(
    strategy: str, process_workers: str, tmp_path: Path
) -> None:
    dies = DiesOnce(tmp_path)

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "batch": 1}
        return evolve([15], dies.parse, dies.process, **options)

    outcome = in_flow(EvolveTaskRunner(address=process_workers), body)
    assert (tmp_path / "dead").exists()
    assert outcome.results == list(range(15))
    assert outcome.counts.discovered == 15
    # What was reported before is not done again; at most what was in flight is.
    assert (tmp_path / "0").read_text() == "x"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_raises_as_others_do(strategy: str, runner: Any) -> None:
    with pytest.raises(EvolveFailed, match="broken"):
        in_flow(runner, lambda: evolve([6], slow_then_breaks, same, strategy=strategy))


PAUSE_S = 0.2
given_at: list[float] = []


def every_so_often(count: int) -> Iterator[int]:
    for item in range(count):
        time.sleep(PAUSE_S)
        given_at.append(time.monotonic())
        yield item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_result_is_there_within_a_second(strategy: str, runner: Any) -> None:
    given_at.clear()

    def body() -> list[float]:
        options: Any = {"strategy": strategy}
        return [time.monotonic() for _ in evolve_iter([20], every_so_often, same, **options)]

    had_at = in_flow(runner, body)
    assert len(had_at) == 20
    assert had_at[0] - given_at[0] < 1
    assert had_at[10] < given_at[-1]  # and so it goes on


# -- many of them, and little room -----------------------------------------------------------------


def gives(count: int) -> Iterator[int]:
    for item in range(count):
        time.sleep(0.004)
        yield item


@pytest.mark.parametrize(
    ("strategy", "in_flight", "batch"),
    [
        *((strategy, 1, 1) for strategy in STRATEGIES),
        ("as_completed", 3, "auto"),
        ("async", 4, 4),
        ("nested", 3, "auto"),
        ("as_completed", None, 1),
        ("async", None, "auto"),
        ("nested", None, 1),
    ],
)
def test_many_of_them_leave_room_for_their_items(
    strategy: str, in_flight: Any, batch: Any, runner: Any
) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "in_flight": in_flight, "batch": batch}
        return evolve([20] * 8, gives, same, buffered=10, **options)

    outcome = in_flow(runner, body)
    assert outcome.results == list(range(20)) * 8
    assert outcome.counts.done == 160


def numbers(count: int) -> list[int]:
    return list(range(count))


def alone(item: int) -> list[int]:
    return [item]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_it_gives_is_expanded_while_it_waits(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        return evolve([150, 3], gives, alone, same, strategy=strategy, buffered=10)

    assert in_flow(runner, body).results == [*range(150), 0, 1, 2]


def forty(_: int) -> Iterator[int]:
    yield from gives(40)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_waits_for_it_does_not_hold_it_up(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        return evolve([12], numbers, forty, same, strategy=strategy, buffered=12)

    assert in_flow(runner, body).results == list(range(40)) * 12


def leads_on(item: int) -> Any:
    return More(item, [30] * 20, stage=0) if item == 7 else item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_was_found_for_it_does_not_hold_it_up(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        return evolve([8], gives, leads_on, strategy=strategy, buffered=12, max_depth=1)

    outcome = in_flow(runner, body)
    assert outcome.results == [*range(8), *[*range(30)] * 20]
    assert outcome.counts.by_stage["gives"].done == 21


class Together:
    """Several slow ones among many brief ones: they may be in one unit."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def parse(self, source: tuple[int, int]) -> Iterator[tuple[int, int]]:
        name, count = source
        for item in range(count):
            yield name, item
            there(Path(self.folder, f"{name} {item}"))

    def process(self, item: tuple[int, int]) -> tuple[int, int]:
        Path(self.folder, "{} {}".format(*item)).touch()
        return item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slow_ones_in_one_unit_feed_their_items_each(
    strategy: str, runner: Any, tmp_path: Path
) -> None:
    together = Together(tmp_path)
    sources = [*[(0, 0)] * 300, *[(name, 3) for name in range(1, 7)]]

    def body() -> Outcome:
        return evolve(sources, together.parse, together.process, strategy=strategy)

    assert in_flow(runner, body).results == [(n, item) for n in range(1, 7) for item in range(3)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_that_breaks_costs_the_others_of_its_unit_nothing(strategy: str, runner: Any) -> None:
    def parse(count: int) -> Iterator[Any]:
        yield from gives(count)
        if count > 50:
            yield (_ for _ in ())

    def body() -> Outcome:
        sources = [*[1] * 200, 60, *[1] * 20]
        return evolve(sources, parse, same, strategy=strategy, on_failure="ignore")

    outcome = in_flow(runner, body)
    (failure,) = outcome.failures
    assert failure.index == (200,)
    assert "cannot be pickled" in failure.message
    assert outcome.results == [*[0] * 200, *range(60), *[0] * 20]


@pytest.mark.parametrize(("strategy", "count"), [("as_completed", 100), ("nested", 90)])
def test_what_prefect_keeps_of_it_is_all_of_it(strategy: str, count: int, runner: Any) -> None:
    parse = task(gives, persist_result=True, cache_policy=INPUTS)

    def body() -> list[int]:
        return [
            number
            for _ in range(2)
            for number in evolve([count], parse, same, strategy=strategy).results
        ]

    assert in_flow(runner, body) == [*range(count), *range(count)]


class Elsewhere:
    """Gives what the flow's process, whose id it was made with, cannot read."""

    def __init__(self) -> None:
        self.flow = os.getpid()

    def parse(self, count: int) -> Iterator[Any]:
        for item in range(count):
            time.sleep(SLOW_S)
            yield item if item != 5 else _Unreadable(self.flow)


class _Unreadable:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return _refuse_in, (self.pid,)


def _refuse_in(pid: int) -> Any:
    if os.getpid() == pid:
        raise RuntimeError("not in the flow")
    return _Unreadable(pid)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_the_flow_cannot_read_is_a_failure_of_those_items(
    strategy: str, process_workers: str
) -> None:
    parse = Elsewhere().parse

    def body() -> Outcome:
        return evolve([9, 2], parse, same, strategy=strategy, on_failure="ignore")

    outcome = in_flow(EvolveTaskRunner(address=process_workers), body)
    assert outcome.failures
    assert all("not in the flow" in failure.message for failure in outcome.failures)
    lost = {failure.index for failure in outcome.failures}
    assert (0, 5) in lost
    expected = [item for item in range(9) if (0, item) not in lost]
    assert outcome.results == [*expected, 0, 1]
    assert outcome.counts.failed == len(lost)


# -- what the report says ------------------------------------------------------------------------


def slowly_three(source: int) -> Iterator[int]:
    """Longer than what is held back before it is sent on the way."""
    for item in range(3):
        time.sleep(0.15)
        yield 10 * source + item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_was_sent_on_the_way_counts_as_given(strategy: str, runner: Any) -> None:
    options: Any = {"strategy": strategy, "record": "sources"}
    outcome = in_flow(runner, lambda: evolve([0, 1], slowly_three, abs, **options))
    assert outcome.results == [0, 1, 2, 10, 11, 12]
    assert outcome.report is not None
    facts = outcome.facts
    fan_out = facts["fan_out"]
    assert (fan_out["sources"], fan_out["smallest"], fan_out["largest"]) == (2, 3, 3)
    assert [source["items"] for source in facts["slowest_sources"]] == [3, 3]


def two(place: int) -> list[int]:
    return [10 * place, 10 * place + 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_items_of_inner_levels_are_no_sources(strategy: str, runner: Any) -> None:
    options: Any = {"strategy": strategy, "record": "sources"}
    outcome = in_flow(runner, lambda: evolve([1], two, two, two, abs, **options))
    assert outcome.report is not None
    assert outcome.facts["fan_out"]["sources"] == 1
