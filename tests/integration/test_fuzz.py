"""Sources, items, results and error texts of any kind, through the public API of a real flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prefect import task

from evolve_tasks import EvolveTaskRunner, Failure, Outcome, evolve
from tests.conformance.flows import in_flow
from tests.integration.test_unpickled_elsewhere import AtHome

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

STRATEGIES = ["sequential", "as_completed", "async", "nested"]


class OfTwo(Exception):
    """Cannot be made from what it pickles."""

    def __init__(self, text: str, more: str) -> None:
        super().__init__(text)
        self.more = more


class Mute(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


KINDS: dict[str, Any] = {
    "ValueError": ValueError,
    "KeyError": KeyError,
    "OfTwo": lambda text: OfTwo(text, text),
    "Mute": Mute,
    "StopIteration": StopIteration,
    "TimeoutError": TimeoutError,
}


@dataclass(frozen=True)
class Fault:
    """An error to raise."""

    kind: str
    text: str

    def error(self) -> Exception:
        error: Exception = KINDS[self.kind](self.text)
        return error


@dataclass(frozen=True, repr=False)
class Item:
    """An item, with what becomes of it."""

    called: str
    ends: Any

    def __repr__(self) -> str:
        return self.called


@dataclass(frozen=True, repr=False)
class Source:
    """A source, with what it gives."""

    called: str
    gives: Any

    def __repr__(self) -> str:
        return self.called


class Stray:
    """Pickles, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@dataclass(frozen=True)
class Strays:
    """What is given in place of it cannot travel."""

    deep: bool

    def value(self) -> Any:
        return {"in": [Stray()]} if self.deep else Stray()


@dataclass(frozen=True)
class Bound:
    """What cannot leave the process that it comes from: the item itself, or its result."""

    found: bool


def parse(source: Source) -> Any:
    if isinstance(source.gives, Strays):
        return [source.gives.value()]
    if isinstance(source.gives, Fault):
        raise source.gives.error()
    return source.gives


def process(item: Item) -> Any:
    if isinstance(item.ends, Strays):
        return item.ends.value()
    if isinstance(item.ends, Fault):
        raise item.ends.error()
    return item.ends


def parse_bound(source: Source) -> list[Any]:
    return [AtHome() if item.ends == Bound(found=True) else item for item in parse(source)]


def process_bound(item: Any) -> Any:
    if isinstance(item, AtHome):
        return "at home"
    return AtHome() if isinstance(item.ends, Bound) else process(item)


# Half of a pair of surrogates is a character to Python, and none to UTF-8.
texts = st.text(st.characters(), max_size=30) | st.sampled_from(
    [
        "../../etc/passwd",
        "[x](javascript:alert(1))",
        "<img src=x onerror=alert(1)>",
        "\x00\n\r\x1b[31m12:00:00 | INFO | all is well",
        "{{ secret }} {0} %s",
        "x" * 100_000,
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.binary(max_size=30)
    | st.sampled_from([ValueError("a value"), KeyError, Ellipsis, 2**200])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | texts, inner, max_size=3)
    ),
    max_leaves=6,
)
faults = st.builds(Fault, st.sampled_from(sorted(KINDS)), texts)
strays = st.builds(Strays, st.booleans())
items = st.builds(Item, texts, values | faults | strays)
lists = st.lists(items, max_size=8)
wrong = st.none() | st.integers() | texts | st.binary(max_size=5) | st.dictionaries(texts, texts)
sources = st.builds(Source, texts, lists | lists.map(tuple) | faults | strays | wrong)


def expected(given_sources: Sequence[Source]) -> tuple[list[Any], dict[tuple[int, ...], str]]:
    """Results, and kinds of errors by index."""
    results: list[Any] = []
    failed: dict[tuple[int, ...], str] = {}
    for position, source in enumerate(given_sources):
        if isinstance(source.gives, Fault):
            failed[position,] = source.gives.kind
        elif isinstance(source.gives, Strays):
            failed[position,] = "Unpicklable"
        elif not isinstance(source.gives, list | tuple):
            failed[position,] = "TypeError"
        else:
            for place, item in enumerate(source.gives):
                if isinstance(item.ends, Fault):
                    failed[position, place] = item.ends.kind
                elif isinstance(item.ends, Strays):
                    failed[position, place] = "Unpicklable"
                else:
                    results.append(item.ends)
    return results, failed


def same(kind: str, failure: Failure) -> bool:
    # Python makes a RuntimeError of a StopIteration that leaves a generator or a coroutine.
    return failure.error_type in {kind, "RuntimeError" if kind == "StopIteration" else kind}


a_few = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    # Each example is a flow run: making a failing one smaller would take minutes.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(a_few)
@given(
    given_sources=st.lists(sources, max_size=6),
    as_tasks=st.booleans(),
    batch=st.sampled_from([1, 3, "auto"]),
    record=st.sampled_from(["auto", "items", "batches", "sources"]),
)
def test_whatever_comes_is_accounted_for(
    strategy: Any,
    given_sources: list[Source],
    as_tasks: bool,
    batch: Any,
    record: Any,
    thread_workers: str,
) -> None:
    stages: list[Any] = [task(parse), task(process)] if as_tasks else [parse, process]

    def body() -> Outcome:
        return evolve(
            given_sources,
            *stages,
            strategy=strategy,
            batch=batch,
            record=record,
            on_failure="ignore",
        )

    outcome = in_flow(EvolveTaskRunner(address=thread_workers), body)
    results, failed = expected(given_sources)
    got, wanted = list(map(repr, outcome.results)), list(map(repr, results))
    assert len(got) == len(wanted)
    assert not [pair for pair in zip(got, wanted, strict=True) if pair[0] != pair[1]]
    assert {failure.index for failure in outcome.failures} == set(failed)
    for failure in outcome.failures:
        assert same(failed[failure.index], failure), failure
        assert "\n" not in failure.item
        str(failure).encode()
    counts = outcome.counts
    assert counts.done == len(results)
    assert counts.failed == sum(len(index) == 2 for index in failed)
    assert counts.sources_failed == sum(len(index) == 1 for index in failed)
    assert counts.discovered == counts.done + counts.failed


bound_items = st.builds(Item, texts, values | faults | strays | st.builds(Bound, st.booleans()))
bound_sources = st.builds(Source, texts, st.lists(bound_items, max_size=8) | faults)


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@settings(a_few)
@given(
    given_sources=st.lists(bound_sources, min_size=2, max_size=6),
    as_tasks=st.booleans(),
    batch=st.sampled_from([1, 3, "auto"]),
)
def test_what_cannot_leave_its_process_costs_itself_alone(
    strategy: Any, given_sources: list[Source], as_tasks: bool, batch: Any, process_workers: str
) -> None:
    stages: list[Any] = [parse_bound, process_bound]
    if as_tasks:
        stages = [task(stage) for stage in stages]

    def body() -> Outcome:
        return evolve(given_sources, *stages, strategy=strategy, batch=batch, on_failure="ignore")

    outcome = in_flow(EvolveTaskRunner(address=process_workers), body)
    failures = {failure.index: failure for failure in outcome.failures}
    for position, (source, (_, results)) in enumerate(
        zip(given_sources, outcome.by_source, strict=True)
    ):
        left = list(results)
        if isinstance(source.gives, Fault):
            assert same(source.gives.kind, failures.pop((position,)))
            continue
        for place, item in enumerate(source.gives):
            failure = failures.pop((position, place), None)
            if isinstance(item.ends, Bound):
                # Where it was found and is worked on in one process, it is an item like others.
                assert failure is not None or (item.ends.found and left.pop(0) == "at home")
                assert failure is None or "is elsewhere" in failure.message
            elif isinstance(item.ends, Fault | Strays):
                kind = item.ends.kind if isinstance(item.ends, Fault) else "Unpicklable"
                assert failure is not None
                assert same(kind, failure), failure
            else:
                assert failure is None, failure
                assert repr(left.pop(0)) == repr(item.ends)
        assert left == []
    assert failures == {}
