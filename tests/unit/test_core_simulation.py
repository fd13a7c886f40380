"""Thousands of random runs of the core, and what can only be seen over many of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from random import Random

import pytest

from evolve_tasks.core.actions import Expand, Found, Process, Pull, SourceDone
from evolve_tasks.core.assembly import Assembly, Portion
from evolve_tasks.core.suspects import MOST_DEATHS
from tests.unit.simulation import IndexedFailure, Simulation, Step, replay

CHUNK = 250
SEEDS = 10_000 if os.environ.get("EVOLVE_MATRIX") else 3_000
LOOKED_AT = 2_500  # of them, for what occurs in them


def simulated(seed: int, stages: int | None = None) -> Simulation:
    """Run a seed; if it fails, say which and how to see it again."""
    simulation = Simulation(seed, stages=stages)
    try:
        return simulation.run()
    except Exception as error:
        # With fixed stages the seed draws another program.
        command = f"python -m tests.unit.simulation {seed}{f' {stages}' if stages else ''}"
        raise AssertionError(
            f"seed {seed}: {type(error).__name__}: {error} (see it with: {command})"
        ) from error


@cache
def what_happens(first: int) -> Counter[str]:
    """Run a chunk of seeds, and count what happens in them; an error is one of the core."""
    seen: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        _note(simulated(seed), seen)
    return seen


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK), ids=lambda first: f"seeds-{first}")
def test_every_promise_is_kept_at_every_step(first: int) -> None:
    assert what_happens(first)


def test_the_same_events_again_give_the_same_actions() -> None:
    for seed in range(300):
        simulation = simulated(seed)
        # As text: a Release and a SourceDone of the same number are equal as tuples.
        answers = [repr(step.actions) for step in simulation.log]
        again = replay(simulation.log, simulation.program)
        assert list(map(repr, again)) == answers, f"seed {seed}"


def test_what_ends_in_any_order_is_put_together_in_the_order_of_the_sources() -> None:
    for seed in range(500):
        simulation = simulated(seed, stages=2)
        assembly = simulation.assembly
        assert assembly is not None
        expected = [
            (f"source {position}", _in_order(simulation.expected_results.get(position, {})))
            for position in range(simulation.core.sources)
        ]
        assert assembly.by_source() == expected, f"seed {seed}"
        indices = [failure.index for failure in assembly.failures()]
        assert indices == sorted(simulation.expected_failures), f"seed {seed}"


def _in_order(results: dict[int, str]) -> list[str]:
    return [results[position] for position in sorted(results)]


def test_an_assembly_is_the_same_whatever_comes_first() -> None:
    for seed in range(300):
        random = Random(seed)
        fates = {
            source: [random.random() < 0.8 for _ in range(random.choice((0, 1, 7, 40)))]
            for source in range(random.randint(0, 12))
        }
        portions = list(_portions(fates, random))
        random.shuffle(portions)
        assembly = Assembly()
        for source in fates:
            # Equal sources stay apart, and need not be hashable.
            assembly.arrived(source, ["the same"])
        for portion in portions:
            assembly.add(portion)
        assert assembly.by_source() == [
            (["the same"], [(source, item) for item, done in enumerate(items) if done])
            for source, items in fates.items()
        ], f"seed {seed}"
        assert [failure.index for failure in assembly.failures()] == [
            (source, item)
            for source, items in fates.items()
            for item, done in enumerate(items)
            if not done
        ], f"seed {seed}"


def _portions(fates: dict[int, list[bool]], random: Random) -> Iterator[Portion]:
    for source, items in fates.items():
        start = 0
        while start < len(items):
            stop = min(len(items), start + random.randint(1, 5))
            done = [(source, item) for item in range(start, stop) if items[item]]
            failed = [(source, item) for item in range(start, stop) if not items[item]]
            failures = [IndexedFailure(index) for index in failed]
            yield Portion(source, ["the same"], start, stop, done, failures)
            start = stop


def test_the_seeds_reach_all_that_may_happen() -> None:
    # Thousands of runs prove nothing of what does not occur in them.
    seen: Counter[str] = Counter()
    for first in range(0, LOOKED_AT, CHUNK):
        seen.update(what_happens(first))
    rare = {name: seen[name] for name in EXPECTED if seen[name] < 10}
    assert not rare, f"hardly ever simulated: {rare}"


def _note(simulation: Simulation, seen: Counter[str]) -> None:
    """Count what happened in a run."""
    program = simulation.program
    stopped = simulation.core.stopped or "not at all"
    seen[f"stages: {program.stages}"] += 1
    seen[f"policy: {program.policy.kind}"] += 1
    seen[f"rejected: {simulation.core.rejected}"] += 1
    seen["batch by durations"] += program.batch is None
    seen["batch fixed"] += program.batch is not None
    seen["window of units"] += program.window.in_flight is None
    seen["no source"] += simulation.core.sources == 0
    seen["stopped by the first failure"] += "first failure" in stopped
    seen["stopped by a count"] += "are tolerated" in stopped
    seen["stopped by a share"] += "tolerated is" in stopped
    seen["stopped from outside"] += "somebody asked" in stopped
    seen["sources that raise"] += "OSError" in stopped
    seen["given up"] += max(simulation.deaths.values(), default=0) == MOST_DEATHS
    seen["items that found more"] += simulation.led_on
    seen["items found again"] += simulation.repeated > 0
    seen["lists forgotten before their unit ended"] += simulation.forgotten > 0
    seen["inner items told of"] += simulation.told > 0
    seen["short lists that go together"] += simulation.went_together > 0
    seen["groups that grow"] += simulation.held_back > 0
    seen["limited by max_items"] += simulation.core.limited is not None
    seen["too deep"] += simulation.core.too_deep > 0
    seen["batch above the window"] += (program.batch or 0) > (program.window.in_flight or 10**6)
    for step in simulation.log:
        seen[step.event] += 1
        seen.update(_kinds_of(step))


def _kinds_of(step: Step) -> Iterator[str]:
    """What is special about a step."""
    for action in step.actions:
        match action:
            case Pull(most) if most > 1:
                yield "several sources asked for"
            case Expand(start=start, stop=stop) if stop - start > 1:
                yield "a group of sources"
            case Process(start=start, stop=stop) if stop - start > 8:
                yield "a large unit of items"
    begun = any(isinstance(action, Expand) for action in step.actions)
    if step.event == "sources_arrived" and step.arguments[0] and not begun:
        done = any(isinstance(action, SourceDone) for action in step.actions)
        yield "sources after the stop" if done else "sources that wait for what runs alone"
    if step.event == "expanded":
        yield from _kinds_of_answer(step.arguments[1])


def _kinds_of_answer(found: list[Found]) -> Iterator[str]:
    for one in found:
        if one.orphaned:
            yield "orphans"
        if one.left and not one.orphaned:
            yield "items known in part"
        if one.known:
            yield "a source known in whole"
        if one.size > 100:
            yield "large fan-out"
        if one == Found():
            yield "no items"
        if 0 < one.ended == one.size:
            yield "worked on whole where it was found"
        if 0 < one.ended < one.size:
            yield "worked on in part where it was found"
    if len(found) > 1:
        lost = sum(one.lost for one in found)
        skipped = sum(one.skipped for one in found)
        if 0 < lost < len(found):
            yield "lost inside a group"
        if 0 < skipped < len(found):
            yield "skipped inside a group"
        if len({one.size > one.ended for one in found}) == 2:
            yield "a group with lists and without"


EXPECTED = (
    *(f"stages: {stages}" for stages in (2, 3, 4)),
    *(f"policy: {kind}" for kind in ("finish", "fail_fast", "ignore", "tolerate")),
    *("rejected: True", "rejected: False"),
    *("batch by durations", "batch fixed", "window of units"),
    *("no source", "no items", "large fan-out", "batch above the window"),
    *("stopped by the first failure", "stopped by a count", "stopped by a share"),
    *("stopped from outside", "sources that raise", "sources after the stop"),
    *("several sources asked for", "a group of sources", "a large unit of items"),
    *("worked on whole where it was found", "worked on in part where it was found"),
    *("lost inside a group", "skipped inside a group", "a group with lists and without"),
    *("expanded", "expansion_lost", "processed", "adopt", "resize", "stop", "sources_arrived"),
    *("gave", "add_extra", "extra_ended", "pause", "resume", "waited"),
    *("items that found more", "items found again", "limited by max_items", "too deep"),
    *("lists forgotten before their unit ended", "inner items told of"),
    *("short lists that go together", "groups that grow"),
    *(
        "crashed",
        "given up",
        "orphans",
        "items known in part",
        "a source known in whole",
        "sources that wait for what runs alone",
    ),
)
