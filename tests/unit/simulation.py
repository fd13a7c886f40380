"""Random runs of the core, each told by its seed, with every promise checked at every step.

The simulation keeps its own books, in another form than the core does: the core counts the open
children of a list, the simulation everything alive below a unit and below a source. It knows the
rules at the top of `core/filling.py` and looks whether each action was allowed, and whether none
was missing. Sizes come from `core/batching.py`, which has tests of its own, fed with own books.

What can be promised of what waits. Call W the items that wait and P = W + all items that the
expansions in flight are going to give. An answer never raises P, only a start does. A start needs
W + (expansions in flight and started) * expected <= buffered, or to be alone with W <= buffered.
Where all fan-outs are F, and one is known, expected is F and so P <= buffered + F, hence W too.
Before one is known `UNKNOWN_FAN_OUT` is expected, so U <= max(1, buffered // UNKNOWN_FAN_OUT)
expansions may be in flight, and W <= U * F until they are worked off; for F <= UNKNOWN_FAN_OUT
that is below `buffered` anyway. Each further expanding stage may add one F, because inner items
above the bound can only become fewer by being expanded. Lists that are to be worked on where they
are found do not count as long as such lists leave nothing; one that does allows no bound on W. Nor
do fan-outs that differ, but on each start, which is checked for every program.

    python -m tests.unit.simulation 4711      # run seed 4711 and write down what happened
    python -m tests.unit.simulation 4711 2    # the same with two stages, whatever the seed says
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from math import prod
from random import Random
from typing import Any, NamedTuple, NoReturn

from evolve_tasks.core.actions import (
    HELD,
    Action,
    Expand,
    Extra,
    Follow,
    Forget,
    Found,
    Further,
    ItemDone,
    Process,
    Pull,
    Release,
    SourceDone,
    Turn,
)
from evolve_tasks.core.assembly import Assembly, Portion
from evolve_tasks.core.batching import MEMORY, Durations, inline_items, unit_size
from evolve_tasks.core.budget import Bounded, FailFast, FailureBudget, Finish, Ignore
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.fan_outs import UNKNOWN_FAN_OUT
from evolve_tasks.core.filling import AHEAD, ALONG_S, FEW, GROWTH, LARGEST_GROUP
from evolve_tasks.core.open_tree import LARGEST_UNIT
from evolve_tasks.core.suspects import MOST_DEATHS, Suspect, divided, parts
from evolve_tasks.core.window import Window
from evolve_tasks.errors import IllegalEvent

MOST_STEPS = 20_000  # the longest run that a program can ask for takes some 2,000
PULL = -1  # stands among the units in flight for the sources that were asked for


@dataclass(frozen=True, slots=True)
class Policy:
    """A failure policy in plain terms, judged here without the core."""

    kind: str  # finish, fail_fast, ignore or tolerate
    count: int | None = None
    ratio: float | None = None

    def budget(self) -> FailureBudget:
        match self.kind:
            case "finish":
                return Finish()
            case "fail_fast":
                return FailFast()
            case "ignore":
                return Ignore()
            case _:
                return Bounded(self.count, self.ratio)

    def stops(self, failed: int, known: int, complete: bool) -> bool:
        """Whether nothing more may start."""
        if self.kind == "fail_fast":
            return failed > 0
        return self.kind == "tolerate" and (
            self._too_many(failed) or (complete and self._too_large_a_share(failed, known))
        )

    def rejects(self, failed: int, known: int) -> bool:
        """Whether the run has to raise."""
        if self.kind in ("finish", "fail_fast"):
            return failed > 0
        return self.kind == "tolerate" and (
            self._too_many(failed) or self._too_large_a_share(failed, known)
        )

    def _too_many(self, failed: int) -> bool:
        return self.count is not None and failed > self.count

    def _too_large_a_share(self, failed: int, known: int) -> bool:
        return (
            self.ratio is not None and known > 0 and Fraction(failed, known) > Fraction(self.ratio)
        )


@dataclass(frozen=True, slots=True)
class Program:
    """What a run is given, and how its world behaves."""

    stages: int
    window: Window
    buffered: int
    batch: int | None
    policy: Policy
    sources: int
    sources_known: bool
    says_ended: bool  # an answer to a pull says whether there are more
    sources_break_at: int | None  # the iterable of sources raises here
    adopted: tuple[Found, ...] | None  # the run starts with these, and has no sources
    fan_out: int | None  # the same for all, or None for a mixture
    most_items: int  # a mixture stays below, so that a seed takes milliseconds
    large: int  # the largest fan-out of a mixture
    parse_s: float
    item_s: float
    expansion_fails: float
    unit_lost: float
    item_fails: float
    runs_whole: float
    runs_in_part: float
    not_run_after_stop: float
    pulls_at_once: bool  # as the strategies do; otherwise sources come at any later time
    order: str  # which unit ends next: random, first, last, slow
    resizes: float
    waits: float  # nothing ends for a moment
    stops: float
    stops_in_group: float
    crashes: float  # a worker dies, with some of what is in flight
    poisoned: float  # sources and items that kill each worker that works on them
    journaled: float  # sources that a journal knows, in part or in whole
    max_items: int | None  # that may be discovered
    pauses: float  # somebody pauses the run, and resumes it later
    leads: float  # items of the last stage that find further ones
    most_found: int  # items that they find in all
    repeats: float  # lists of which some items were seen before
    max_depth: int | None  # how often the last stage may lead further
    leads_on: bool  # somebody has said that it does
    by_level: bool  # what they find is held back until all above it has ended
    extras: float  # sources of which something is asked for when they have ended
    streams: float  # an expansion gives something before it has ended
    streaming: tuple[int, ...]  # the stages that may do so
    patient: bool  # who has given something waits until that is being worked on
    told_of: tuple[int, ...]  # inner stages of whose items it is said when they have ended

    def core(self) -> Evolution:
        return Evolution(
            stages=self.stages,
            window=self.window,
            buffered=self.buffered,
            batch=self.batch,
            budget=self.policy.budget(),
            sources_known=self.sources if self.sources_known else None,
            max_items=self.max_items,
            max_depth=self.max_depth,
            leads_on=self.leads_on,
            told_of=self.told_of,
            streaming=self.streaming,
        )


SECONDS = (0.0, 1e-5, 1e-3, 0.02, 0.3, 3.0)


def program_of(random: Random, stages: int | None = None) -> Program:
    """Draw a program."""
    adopts = stages is None and random.random() < 0.06
    # Where the number of stages is given, results are put together by one position in a source.
    single = adopts or stages is not None
    leads = 0.0 if single else random.choice((0, 0, 0, 0.1, 0.5, 0.9))
    repeats = 0.0 if single else random.choice((0, 0, 0, 0.3))
    stages = stages or (2 if adopts else random.choice((2, 2, 2, 2, 3, 3, 4)))
    sources = random.choice((0, 1, 2, *(random.randint(3, 30) for _ in range(7))))
    most_items = random.choice((20, 60, 150, 150, 300, 300, 600, 1_500))
    fan_out = None
    if random.random() < 0.4:
        fan_out = random.choice((0, 1, 2, 3, 5, 8, 20, 100, 130))
        while sources > 3 and sources * fan_out ** (stages - 1) > most_items:
            sources //= 2
        while sources * fan_out ** (stages - 1) > most_items:
            fan_out //= 2
    certain = random.random() < 0.04  # everything fails
    batch = random.choice((None, None, None, None, None, None, 1, 1, 2, 3, 4, 5, 6, 8))
    if batch is None and random.random() < 0.3:
        sources *= 8  # so that there are groups
        most_items *= 2
        fan_out = None if fan_out is None or fan_out > 5 else fan_out // 2
    streams = 0.0 if single else random.choice((0, 0, 0, 0.2))
    kinds = [tuple(range(stages - 1)), (0,), (stages - 2,)]
    program = Program(
        stages=stages,
        window=_window(random, batch),
        buffered=random.choice((1, 2, 5, 10, 50, 200, 1_000, 10_000, random.randint(1, 10_000))),
        batch=batch,
        policy=_policy(random),
        sources=0 if adopts else sources,
        sources_known=random.random() < 0.5,
        says_ended=random.random() < 0.4,
        sources_break_at=random.randint(0, sources) if random.random() < 0.05 else None,
        adopted=_adopted(random) if adopts else None,
        fan_out=fan_out,
        most_items=most_items,
        large=random.choice((3, 10, 40, 500)),
        parse_s=random.choice(SECONDS),
        item_s=random.choice(SECONDS),
        expansion_fails=1.0 if certain else random.choice((0, 0, 0, 0.05, 0.3)),
        unit_lost=random.choice((0, 0, 0.05, 0.5)),
        item_fails=1.0 if certain else random.choice((0, 0, 0, 0.02, 0.1, 0.5)),
        runs_whole=random.choice((0, 0, 0, 0.3, 1.0)),
        runs_in_part=random.choice((0, 0, 0.1)),
        not_run_after_stop=random.choice((0, 0.5, 0.5, 1.0)),
        pulls_at_once=random.random() < 0.6,
        order=random.choice(("random", "random", "first", "last", "slow")),
        resizes=random.choice((0, 0, 0.02, 0.1)),
        waits=random.choice((0, 0, 0.02, 0.2)),
        stops=random.choice((0, 0, 0, 0.02)),
        stops_in_group=random.choice((0, 0.5)),
        crashes=random.choice((0, 0, 0, 0.02, 0.1, 0.3)),
        poisoned=random.choice((0, 0, 0, 0, 0.01, 0.1)),
        journaled=random.choice((0, 0, 0, 0.2, 0.9)),
        max_items=random.randint(1, most_items) if random.random() < 0.15 else None,
        pauses=random.choice((0, 0, 0, 0.05)),
        leads=leads,
        most_found=_most_found(random, most_items, fan_out, stages),
        repeats=repeats,
        max_depth=random.choice((None, None, 1, 2, 5)) if leads else None,
        extras=random.choice((0, 0, 0.3, 1.0)),
        streams=streams,
        streaming=() if not streams else random.choice(kinds),
        patient=random.random() < 0.7,
        told_of=tuple(stage for stage in range(1, stages - 1) if random.random() < 0.5),
        leads_on=leads > 0 and random.random() < 0.5,
        by_level=leads > 0 and random.random() < 0.4,
    )
    if stages == 2 and batch is None and not adopts and random.random() < 0.15:
        return _brief(random, program)
    return program


def _brief(random: Random, program: Program) -> Program:
    """The same with many brief sources, of which groups are made, for few threads."""
    return replace(
        program,
        window=Window(units=random.choice((8, 16, 32)), threads=random.choice((1, 1, 2, 3))),
        buffered=random.choice((1_000, 10_000)),
        sources=random.randint(20, 200),
        sources_break_at=None,
        fan_out=random.choice((0, 1, 1, 2)),
        parse_s=random.choice((1e-5, 1e-3)),
        item_s=random.choice((1e-5, 1e-3)),
        unit_lost=random.choice((0, 0.05)),
        max_items=None,
    )


def _most_found(random: Random, most_items: int, fan_out: int | None, stages: int) -> int:
    """Items that others may find, so that a seed takes milliseconds."""
    each = max(1, (fan_out or 1) ** (stages - 1))
    return random.randint(0, min(60, 2 * most_items // each))


def _window(random: Random, batch: int | None) -> Window:
    threads = random.choice((1, 1, 2, 3, 6))
    if random.random() < 0.4:
        return Window(units=random.choice((1, 2, 4, 10)), threads=threads)
    # Units of several items need a window of several for each thread.
    wide = batch is None and random.random() < 0.4
    units = random.choice((None, None, 1, 2, 4))
    return Window(random.randint(1, 200 if wide else 20), units, threads)


def _adopted(random: Random) -> tuple[Found, ...]:
    sizes = [random.choice((0, 1, random.randint(0, 60))) for _ in range(random.randint(0, 9))]
    return tuple(
        Found(size, random.choice((0, 0, size, random.randint(0, size)))) for size in sizes
    )


def _policy(random: Random) -> Policy:
    kind = random.choice(("finish", "fail_fast", "ignore", "tolerate", "tolerate"))
    if kind != "tolerate":
        return Policy(kind)
    count = random.choice((0, 1, 2, 5, 20))
    # Shares that a float holds exactly; test_core_rules.py has the others.
    ratio = random.choice((0.0, 0.125, 0.25, 0.5, 1.0))
    match random.choice(("count", "ratio", "both")):
        case "count":
            return Policy(kind, count=count)
        case "ratio":
            return Policy(kind, ratio=ratio)
        case _:
            return Policy(kind, count=count, ratio=ratio)


class Step(NamedTuple):
    """One event and what the core answered: a line of the log."""

    event: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    actions: list[Action]


@dataclass(slots=True)
class _Subtree:
    """All that a unit gave, or all that came from a source: what of it is alive."""

    name: str
    alive: int = 0  # expansions in flight, items in flight and items waiting, at any depth
    closed: bool = False


@dataclass(slots=True)
class _Items:
    """The items that one expansion gave."""

    key: tuple[int, int]
    stage: int
    source: int
    within: tuple[_Subtree, ...]  # units and the source that contain them
    size: int
    todo: list[int]  # positions that were not submitted
    crashes: int = 0  # of the expansion that gave them
    depth: int = 0  # how often the last stage has led to them

    def run(self, most: int) -> list[int]:
        """Positions that follow one another at the beginning of what is to do."""
        first = self.todo[0]
        return [p for n, p in enumerate(self.todo[:most]) if p == first + n]


class _Held(NamedTuple):
    """What an item has found, and is held back."""

    key: tuple[int, int]  # of the list that stands for it
    item: Expand | Process  # a unit of that item alone
    found: list[Further]
    within: tuple[_Subtree, ...]
    depth: int


def replace_start(action: Expand | Process, position: int) -> Expand | Process:
    """The same for one of its items."""
    return action._replace(start=position, stop=position + 1)


class BrokenPromise(AssertionError):
    """The core did what it must not do, or did not do what it must."""


class Simulation:
    """One run. `run()` drives it to its end and raises `BrokenPromise` if a promise is broken."""

    def __init__(self, seed: int, *, stages: int | None = None) -> None:
        self.random = Random(seed)
        self.program = program = program_of(self.random, stages)
        self.core = program.core()
        self.log: list[Step] = []
        # Only where there is one list of items for each source can it be put together here.
        plain = program.stages == 2 and program.adopted is None
        plain = plain and not (program.leads or program.repeats or program.streams)
        self.assembly = Assembly() if plain else None
        self.expected_results: dict[int, dict[int, str]] = {}
        self.expected_failures: list[tuple[int, ...]] = []

        self._last = program.stages - 1
        self._window = program.window
        self._durations = [Durations() for _ in range(program.stages)]
        self._units: dict[int, Expand | Process | Extra] = {}
        self._order: list[int] = []  # units in flight, in the order in which they began
        self._answered: list[int] = []
        self._issued = 0
        self._pulling = 0
        self._arriving = 0  # sources that came and whose expansion has to begin
        self._flying = 0
        self._expanding = [0] * self._last
        self._processing = 0
        self._overtaking = 0  # expansions in a row that began before items that waited
        self._waiting = [0] * program.stages
        self._queues: list[deque[_Items]] = [deque() for _ in range(program.stages)]
        self._lists: dict[tuple[int, int], _Items] = {}
        self._given_by: dict[int, _Subtree] = {}
        self._sources: list[_Subtree] = []
        self._told: dict[tuple[int, int, int], _Subtree] = {}  # of inner items, by place
        self._due: dict[int, _Subtree] = {}  # by id(): has ended, and the core has to say so
        self._ended = False
        self._stopped = False
        self._given = 0
        self._known = [0] * self._last  # expansions that ended, and what they gave
        self._fan_outs = [0] * self._last
        self._most_unknown = 0
        self._hurried = False
        self._left = self._left_of = 0.0  # of lists that were to be worked on where they are found
        self._surprised = False
        self._limited = False
        self._found = 0  # items that items of the last stage have found
        self.led_on = False
        self.deepest = 0
        self.too_deep = 0
        self.repeated = 0
        self._lost = 0  # expansions that failed, and what was asked for beside them
        self._extras: list[int] = []  # what was asked for, and has not begun
        self._to_ask: list[int] = []
        self._streamed: Counter[tuple[int, int, int]] = Counter()  # given so far, by what gives
        self._streams: Counter[int] = Counter()  # lists that a unit in flight gave
        self.streamed = self.forgotten = self.told = 0
        self.asked = 0
        self._tallies = [[0, 0, 0, 0, 0] for _ in range(program.stages)]
        self._again: list[Suspect] = []  # what dead workers took down, and what waits for it
        self._alone: int | None = None
        self._held: dict[int, list[_Held]] = {}  # by depth
        self._to_follow: list[tuple[Follow, _Held]] = []
        self.followed = 0
        self._beside_a_pull = False  # what began last, in a window without room
        self._party: tuple[int, int, int] | None = None  # to which more may come: rule 11
        self.went_together = 0
        self.held_back = 0
        self._salt = self.random.random()
        self.deaths: Counter[tuple[int, ...]] = Counter()  # by who is guilty

    # -- driving ---------------------------------------------------------------------------------

    def run(self) -> Simulation:
        random, program = self.random, self.program
        if program.adopted is None:
            self._tell("begin")
        else:
            self._adopt(program.adopted)
        steps = 0
        while not self.core.finished:
            steps += 1
            if steps > MOST_STEPS:
                self._broken("the run does not come to an end")
            if self._pulling and program.pulls_at_once:
                self._answer_pull()
                continue
            chance = random.random()
            if chance < program.resizes:
                self._window = _window(random, program.batch)
                self._tell("resize", self._window)
                continue
            if random.random() < program.waits:
                self._hurried = True
                self._tell("waited")
                continue
            stuck = self.core.paused and all(map(self._waits_for_others, self._units))
            if random.random() < program.pauses or stuck:
                self._tell("resume" if self.core.paused else "pause")
                continue
            if chance > 1 - program.stops:
                self._stop("somebody asked for it")
                continue
            if self.random.random() < program.crashes and self._units:
                self._a_worker_dies()
                continue
            if 0.5 < chance < 0.51:
                self._refuses_what_nobody_waits_for()
                self._refuses_what_does_not_add_up()
            if random.random() < program.streams and self._give_some():
                continue
            if not self._order:
                self._broken("deadlock: nothing is in flight and the run is not finished")
            unit = self._choose()
            if unit == PULL:
                self._answer_pull()
            elif guilty := self._guilty(self._units[unit]):
                self.deaths[guilty] += 1
                if self.deaths[guilty] > MOST_DEATHS:
                    self._broken(f"{guilty} takes down more workers than {MOST_DEATHS}")
                self._a_worker_dies(unit)
            elif isinstance(action := self._units[unit], Extra):
                self._answer_extra(action)
            elif isinstance(action, Expand):
                if action.stop - action.start > 1 and random.random() < program.stops_in_group:
                    self._stop("somebody asked for it while a group was expanded")
                self._answer_expand(action)
            else:
                self._answer_process(action)
        self._check_end()
        return self

    def _give_some(self) -> bool:
        """Let an expansion that is in flight give something, if there is one."""
        random = self.random
        under_way = [
            one
            for one in self._units.values()
            if isinstance(one, Expand)
            and one.stage in self.program.streaming
            and not self._waits_for_others(one.unit)
        ]
        if not under_way or self.streamed > self.program.most_found:
            return False
        action = random.choice(under_way)
        if self._guilty(action):
            return False
        if self._alone == action.unit:
            self._alone = None
        offset, count = random.randrange(action.stop - action.start), random.randint(1, 4)
        place = action.parent, action.offset, action.start + offset
        found = Found(count, start=self._streamed[place])
        if random.random() < self.program.repeats:
            at = found.start + random.randrange(count)
            left = ((found.start, at),) if at > found.start else ()
            ended = found.stop - at
            found = found._replace(ended=ended, repeated=ended, left=left)
        self._streamed[place] += count
        self.streamed += count
        if action.unit not in self._given_by:
            # It is not released before the unit has ended, too.
            self._given_by[action.unit] = _Subtree(f"unit {action.unit}", alive=1)
        number = action.stop - action.start + self._streams[action.unit]
        self._streams[action.unit] += 1
        parent = self._lists.get((action.parent, action.offset))
        depth = parent.depth if parent else 0
        taken = self._take_in(action.stage + 1, found, None)
        crashes = min(1, action.crashes)
        self._open_rest(action, number, offset, action.stage + 1, found, taken, crashes, depth)
        self._tell("gave", action.unit, offset, found)
        return True

    def _waits_for_others(self, unit: int) -> bool:
        """Whether a unit waits until what it has given, and others, is being worked on."""
        action = self._units[unit]
        if not (self.program.patient and self._streams[unit] and isinstance(action, Expand)):
            return False
        behind = [items for queue in self._queues[action.stage + 1 :] for items in queue]
        return any(items.todo for items in behind if items.stage == self._last or not items.depth)

    def _giving(self) -> int:
        """Units that have given something, and may wait."""
        return sum(self._streams[unit] > 0 for unit in self._units)

    def _busy(self) -> int:
        """Units that will end by themselves."""
        return len(self._units) - self._giving()

    def _unit_ended(self, unit: int) -> _Subtree:
        """All that a unit gave; it has ended, and gives nothing more."""
        whole = self._given_by.setdefault(unit, _Subtree(f"unit {unit}", alive=1))
        whole.alive -= 1
        self._streams.pop(unit, None)
        return whole

    def _answer_extra(self, action: Extra) -> None:
        self._take(action.unit)
        failed = self.random.random() < self.program.item_fails
        self._lost += failed
        self._tell("extra_ended", action.unit, failed=failed)

    def _guilty(self, action: Expand | Process | Extra) -> tuple[int, ...] | None:
        """Who in a unit kills the worker that works on it, each time."""
        if not self.program.poisoned:
            return None
        if isinstance(action, Extra):
            place = (action.number,)
            kills = Random(f"{self._salt} {place}").random() < self.program.poisoned
            return place if kills else None
        for position in range(action.start, action.stop):
            place = action.stage, action.parent, action.offset, position
            if Random(f"{self._salt} {place}").random() < self.program.poisoned:
                return place
        return None

    def _a_worker_dies(self, unit: int | None = None) -> None:
        """A worker takes down a unit, and some of the others that are in flight."""
        others = [other for other in self._units if other != unit]
        down = self.random.sample(others, self.random.randint(unit is None, len(others)))
        for lost in down if unit is None else [unit, *down]:
            if lost in self._units:
                self._crash(self._units[lost])

    def _crash_extra(self, action: Extra) -> None:
        unit = action.unit
        given_up = self.core.gives_up(unit)
        if given_up != (action.crashes + 1 == MOST_DEATHS):
            self._broken(f"{action} {'is' if given_up else 'is not'} given up")
        if given_up and (self._alone != unit or self._busy() > 1):
            self._broken(f"{action} is given up, and was not alone")
        self._take(unit)
        self._lost += given_up
        if not (given_up or self._stopped):
            place = self._last + 1, action.number, None, action.number, action.number + 1
            self._again.append(Suspect(*place, action.crashes + 1))
        self._tell("crashed", unit)

    def _crash(self, action: Expand | Process | Extra) -> None:
        if isinstance(action, Extra):
            self._crash_extra(action)
            return
        unit, size = action.unit, action.stop - action.start
        within = self._within(action)
        running = self._running(action)
        given_up = self.core.gives_up(unit, running)
        begun = running is None or len(running) > 0
        further = self._streams[unit] > 0
        begun = begun and not further
        if given_up != (begun and size == 1 and action.crashes + 1 == MOST_DEATHS):
            self._broken(f"{action} {'is' if given_up else 'is not'} given up")
        if given_up and (self._alone != unit or self._busy() > 1):
            self._broken(f"{action} is given up, and was not alone")
        self._take(unit)
        above = within or tuple(self._sources[action.start : action.stop])
        if isinstance(action, Expand):
            whole = self._unit_ended(unit)
            if not whole.alive:
                self._due[id(whole)] = whole
        else:
            self._processing -= 1
        tally = self._tallies[action.stage]
        if given_up:
            tally[2] += 1
            if isinstance(action, Expand):
                self._lost += 1
                self._note(action.source, 0, 0, [], [(action.source,)])
            else:
                self._note_items(action.source, action.start, action.stop, [action.start])
        elif self._over(action.stage):
            tally[4] += size
        if given_up or self._over(action.stage):
            self._live(above, -size if within else -1)
            for position in range(action.start, action.stop):
                self._live(self._told_of(action.stage, action, position), -1)
        else:
            parent = (action.parent, action.offset) if within else None
            place = action.source, parent, action.start, action.stop
            lost = Suspect(action.stage, *place, 0 if further else action.crashes)
            self._again += divided(lost, running, self._durations[action.stage].mean_s)
        self._tell("crashed", unit, running)

    def _running(self, action: Expand | Process) -> list[int] | None:
        """Positions that threads of the dead worker were at; sometimes nobody knows."""
        if self.random.random() < 0.5:
            return None
        positions = range(action.start, action.stop)
        some = self.random.sample(positions, self.random.randint(0, min(2, len(positions))))
        if guilty := self._guilty(action):
            some = sorted({*some, guilty[-1]})
        return some

    def _next_again(self) -> Suspect | None:
        """What has to run again before all else: alone, then items, then expansions."""
        alone = self._quarantined()
        for choose in (
            lambda one: one.alone and alone,
            lambda one: one.stage >= self._last and not one.alone,
            lambda one: not one.alone,
        ):
            if found := next(filter(choose, self._again), None):
                return found
        return None

    def _held_up(self) -> bool:
        """Whether something has to run again before anything new is expanded."""
        one = self._next_again()
        return one is not None and (one.stage >= self._last or self._may_stream(one.stage) > 0)

    def _choose(self) -> int:
        order = [one for one in self._order if one == PULL or not self._waits_for_others(one)]
        if order in ([], [PULL]) and self._units:
            self._broken("deadlock: all that is in flight waits, and nothing begins")
        match self.program.order:
            case "first":
                return order[0]
            case "last":
                return order[-1]
            case "slow":  # whatever came first ends when nothing else is left
                return order[self.random.randrange(1, len(order))] if len(order) > 1 else order[0]
            case _:
                return order[self.random.randrange(len(order))]

    def _adopt(self, lists: tuple[Found, ...]) -> None:
        self._ended = True
        self._issued = 1
        whole = _Subtree("unit 0")
        self._given_by[0] = whole
        for offset, found in enumerate(lists):
            source = _Subtree(f"source {offset}")
            self._sources.append(source)
            left = found.size - found.ended
            self._tallies[self._last][0] += left
            if left:
                self._open((0, offset), self._last, offset, (whole, source), found, left)
            else:
                source.closed = True  # nobody waits for it
        if not whole.alive:
            del self._given_by[0]
        self._tell("adopt", lists)

    def _answer_pull(self) -> None:
        program = self.program
        position, asked = len(self._sources), self._pulling
        breaks = program.sources_break_at
        end = program.sources if breaks is None else min(breaks, program.sources)
        count = min(asked, end - position)
        ended, keywords = count < asked, {}
        if program.says_ended and position + count != breaks:
            # Sources may come slowly, or be known to be the last ones.
            if self.random.random() < 0.5:
                count = self.random.randint(0, count)
            ended = position + count == end and self.random.random() < 0.5
            keywords = {"ended": ended}
        if position + count == breaks and ended:
            self._stop("the sources ended with OSError")
        self._order.remove(PULL)
        self._pulling = 0
        self._flying -= asked
        self._expanding[0] -= asked
        self._ended = ended
        self._tallies[0][0] += count
        for number in range(position, position + count):
            if self.assembly is not None:
                self.assembly.arrived(number, f"source {number}")
            source = _Subtree(f"source {number}")
            self._sources.append(source)
            if self._stopped or self._limited:
                self._tallies[0][4] += 1
                self._due[id(source)] = source
            else:
                source.alive = 1  # the expansion that has to be among the actions
                self._arriving += 1
        self._tell("sources_arrived", count, **keywords)

    def _answer_expand(self, action: Expand) -> None:
        random, program = self.random, self.program
        unit, size = action.unit, action.stop - action.start
        self._take(unit)
        first = size + self._streams[unit]
        whole = self._unit_ended(unit)
        starts = [self._streamed[action.parent, action.offset, at] for at in _positions(action)]
        lost = random.random() < program.expansion_fails * program.unit_lost
        orphaned = program.crashes > 0 and not action.crashes and self._last == action.stage + 1
        found = [Found(lost=True) if lost else self._find(action) for _ in range(size)]
        if orphaned and not self._stopped:
            found = [self._orphaned(one) for one in found]
        found = [self._journaled(one, action) for one in found]
        if any(starts):  # what gives as it goes is worked on by who is told of it
            found = [
                Found(one.size, lost=one.lost, skipped=one.skipped, start=start)
                for one, start in zip(found, starts, strict=True)
            ]
        found = [self._partly_repeated(one) for one in found]
        further = [
            more
            for offset, one in enumerate(found)
            for more in self._lead_on(self._done_of(one), offset)
        ]
        inline = 0
        for offset, one in enumerate(found):
            self._enter(action, offset, one)
            inline += one.ended - one.not_run - one.resumed - one.repeated
            if action.inline and (one.size or not (one.lost or one.skipped)):
                fading = 1.0 if self._left_of <= MEMORY else MEMORY / (MEMORY + 1)
                self._left = self._left * fading + one.size - one.ended
                self._left_of = self._left_of * fading + 1
                self._surprised |= one.ended < one.size <= action.inline
        # Kept apart from their expansion, and held up by what goes before them.
        self._surprised |= action.crashes > 0 and self.asked > 0
        further = self._enter_further(action, further, first)
        for offset in range(size):
            self._live(self._above(action, offset), -1)
        if not whole.alive:
            self._due[id(whole)] = whole
        if lost:
            self._tell("expansion_lost", unit)
            return
        begun = sum(not (one.skipped or one.known) for one in found)
        seconds = self._seconds(program.parse_s, begun)
        inline_s = self._seconds(program.item_s, inline)
        self._durations[action.stage].add(begun, seconds)
        if action.stage + 1 == self._last:
            self._durations[self._last].add(inline, inline_s)
        more = {"further": further} if further else {}
        self._tell("expanded", unit, found, seconds=seconds, inline_s=inline_s, **more)

    @staticmethod
    def _done_of(one: Found) -> int:
        """Items that were worked on where they were found, and succeeded."""
        return one.ended - one.failed - one.not_run - one.resumed - one.repeated

    def _above(self, action: Expand | Process, offset: int) -> tuple[_Subtree, ...]:
        """What contains what an item of a unit gives."""
        within = self._within(action) or (self._sources[action.start + offset],)
        return *within, *self._told_of(action.stage, action, action.start + offset)

    def _told_of(self, stage: int, of: Expand | Process, position: int) -> tuple[_Subtree, ...]:
        """All that comes from an inner item, if it is said when that has ended."""
        if stage not in self.program.told_of or of.parent < 0:
            return ()
        place = of.parent, of.offset, position
        return (self._told.setdefault(place, _Subtree(f"item {place}", alive=1)),)

    def _source_of(self, action: Expand | Process, offset: int) -> int:
        return action.start + offset if action.parent < 0 else action.source

    def _lead_on(self, items: int, offset: int = 0) -> list[Further]:
        """What so many items find that is to be worked on."""
        random, program = self.random, self.program
        further = []
        for _ in range(items):
            size = random.randint(0, 4)
            if random.random() < program.leads and self._found + size <= program.most_found:
                self._found += size
                stage = random.randint(0, self._last)
                fates = [random.choice("wwwwr") for _ in range(size)]
                if stage == self._last and program.journaled:
                    fates = [random.choice((fate, "j")) for fate in fates]
                waiting = [at for at, fate in enumerate(fates) if fate == "w"]
                left = _ranges(waiting)
                further.append(
                    Further(
                        stage,
                        Found(
                            size,
                            size - len(waiting),
                            resumed=fates.count("j"),
                            repeated=fates.count("r"),
                            left=left,
                        ),
                        offset,
                    )
                )
        return further

    def _enter_further(
        self, action: Expand | Process, further: Sequence[Further], first: int
    ) -> list[Further]:
        """Write down what items have found; `first` is its place among the lists of the unit.

        Returns:
            What the core is told of it.
        """
        parent = self._lists.get((action.parent, action.offset))
        depth = (parent.depth if parent else 0) + 1
        if not self.program.by_level:
            self._enter_found(action, further, first, depth)
            return list(further)
        by_item: dict[int, list[Further]] = {}
        for more in further:
            by_item.setdefault(more.offset, []).append(more)
        for place, (offset, found) in enumerate(by_item.items(), first):
            self.led_on = True
            self.deepest = max(self.deepest, depth)
            if not (self._stopped or self._limited):
                within = (self._given_by[action.unit], *self._above(action, offset))
                self._live(within, 1)
                position = action.start + offset
                one = replace_start(action, position)
                self._held.setdefault(depth, []).append(
                    _Held((action.unit, place), one, found, within, depth)
                )
        return [Further(HELD, Found(1), offset) for offset in by_item]

    def _answer_follow(self, action: Follow, held: _Held) -> None:
        self.followed += 1
        unit = action.unit
        self._given_by[unit] = whole = _Subtree(f"unit {unit}")
        one = held.item._replace(unit=unit)
        further = [more._replace(offset=0) for more in held.found]
        self._enter_found(one, further, 0, held.depth)
        if not whole.alive:
            self._due[id(whole)] = whole
        self._live(held.within, -1)
        self._tell("followed", unit, further)

    def _drop_held(self) -> None:
        held, self._held = self._held, {}
        for one in [one for ones in held.values() for one in ones]:
            self._live(one.within, -1)

    def _enter_found(
        self, action: Expand | Process, further: Sequence[Further], first: int, depth: int
    ) -> None:
        for place, more in enumerate(further, first):
            self.led_on = True
            self.deepest = max(self.deepest, depth)
            most = self.program.max_depth
            deep = most is not None and depth > most
            taken = self._take_in(more.stage, more.found, 0 if deep else None)
            self.too_deep += more.found.size - more.found.ended if deep else 0
            self._open_rest(action, place, more.offset, more.stage, more.found, taken, 0, depth)

    def _partly_repeated(self, one: Found) -> Found:
        """A list of which some items were seen before in the run."""
        random = self.random
        if one != Found(one.size) or random.random() >= self.program.repeats:
            return one
        new = [at for at in range(one.size) if random.random() < 0.7]
        ended = one.size - len(new)
        self.repeated += ended
        return Found(one.size, ended, repeated=ended, left=_ranges(new))

    def _seconds(self, mean_s: float, count: int) -> float:
        return mean_s * count * self.random.expovariate(1)

    def _find(self, action: Expand) -> Found:
        """How the expansion of one item ends."""
        random, program = self.random, self.program
        if self._stopped and random.random() < program.not_run_after_stop:
            return Found(skipped=True)
        if random.random() < program.expansion_fails:
            # What fails half way has given items before.
            return Found(self._fan_out() if random.random() < 0.3 else 0, lost=True)
        size = self._fan_out()
        # Where a worker died items are kept apart, and a poisonous one ends nowhere in passing.
        apart = action.crashes > 0 or program.poisoned > 0
        if action.stage + 1 < self._last or apart:
            return Found(size)
        ended = 0
        if random.random() < program.runs_whole or 0 < size <= action.inline:
            ended = size
        elif random.random() < program.runs_in_part:
            ended = random.randint(0, size)
        failed = sum(random.random() < program.item_fails for _ in range(ended))
        # A source whose items are worked on where they are found may stop itself after a failure.
        not_run = 0
        if (self._stopped or failed) and random.random() < 0.3:
            not_run = random.randint(0, ended)
            failed = min(failed, ended - not_run)
        return Found(size, ended, failed, not_run)

    def _orphaned(self, one: Found) -> Found:
        """What a nested unit gives back whose own tasks died with another worker."""
        if one.size == 0 or one.ended or self.random.random() < 0.5:
            return one
        start = self.random.randrange(one.size)
        stop = self.random.randint(start + 1, one.size)
        left = ((start, stop),)
        return Found(one.size, one.size - (stop - start), left=left, orphaned=True)

    def _journaled(self, one: Found, action: Expand) -> Found:
        """What a journal knows of a source: all of it, or some of its items."""
        random = self.random
        plain = one == Found(one.size) and action.stage + 1 == self._last
        if not plain or random.random() >= self.program.journaled:
            return one
        if random.random() < 0.4:
            return Found(one.size, one.size, resumed=one.size, known=True)
        cuts = sorted(random.sample(range(one.size + 1), min(one.size + 1, 4)))
        left = tuple(zip(cuts[::2], cuts[1::2], strict=False))
        ended = one.size - sum(stop - start for start, stop in left)
        return Found(one.size, ended, resumed=ended, left=left)

    def _enter(self, action: Expand, offset: int, one: Found) -> None:
        """Write down how the expansion of one item ended."""
        tally, source = self._tallies[action.stage], self._source_of(action, offset)
        if one.skipped:
            tally[4] += 1
        elif one.lost:
            tally[2] += 1
            self._lost += 1
            self._note(source, 0, 0, [], [(source,)])
        else:
            tally[3 if one.known else 1] += 1
        if one.size or not (one.lost or one.skipped):
            self._known[action.stage] += 1
            self._fan_outs[action.stage] += one.stop - one.repeated
            ran = one.ended - one.not_run
            if one.left is not None:
                ends = [0, *(place for ends in one.left for place in ends), one.size]
                for start, stop in zip(ends[::2], ends[1::2], strict=True):
                    self._note_items(source, start, stop, [])
            else:
                self._note_items(source, 0, ran, self.random.sample(range(ran), one.failed))
            parent = self._lists.get((action.parent, action.offset))
            depth = parent.depth if parent else 0
            taken = self._take_in(action.stage + 1, one, None)
            crashes = min(1, action.crashes)
            self._open_rest(action, offset, offset, action.stage + 1, one, taken, crashes, depth)

    def _take_in(self, stage: int, one: Found, most: int | None) -> int:
        """Count a list that was found; say how many of its items are left to do."""
        tally, ended = self._tallies[stage], one.ended - one.repeated
        taken = self._discover(one) if most is None else ended
        tally[0] += taken
        tally[1] += ended - one.failed - one.not_run - one.resumed
        tally[2] += one.failed
        tally[3] += one.resumed
        tally[4] += one.not_run
        return taken - ended

    def _open_rest(
        self,
        action: Expand | Process,
        place: int,
        offset: int,
        stage: int,
        one: Found,
        left: int,
        crashes: int,
        depth: int,
    ) -> None:
        if self._over(stage):
            self._tallies[stage][4] += left
        elif left:
            within = (self._given_by[action.unit], *self._above(action, offset))
            source = self._source_of(action, offset)
            self._open((action.unit, place), stage, source, within, one, left, crashes, depth)

    def _discover(self, one: Found) -> int:
        """How many items of a list are discovered, where only so many may be."""
        most, size = self.program.max_items, one.size - one.repeated
        if most is None:
            return size
        known = sum(tally[0] for tally in self._tallies) - len(self._sources)
        taken = max(one.ended - one.repeated, min(size, max(0, most - known)))
        self._limited |= taken < size
        return taken

    def _open(
        self,
        key: tuple[int, int],
        stage: int,
        source: int,
        within: tuple[_Subtree, ...],
        found: Found,
        most: int,
        crashes: int = 0,
        depth: int = 0,
    ) -> None:
        left = found.ranges()
        todo = [position for start, stop in left for position in range(start, stop)][:most]
        items = _Items(key, stage, source, within, found.stop, todo, crashes, depth)
        self._lists[key] = items
        if found.orphaned:
            items.todo = []
            self._live(within, len(todo))
            for start, stop in left:
                stop = min(stop, todo[-1] + 1)
                if start < stop:
                    self._again += parts(Suspect(stage, source, key, start, stop, crashes + 1))
            return
        if depth:
            self._queues[stage].appendleft(items)
        else:
            self._queues[stage].append(items)
        self._waiting[stage] += len(todo)
        self._live(within, len(todo))

    def _answer_process(self, action: Process) -> None:
        size = action.stop - action.start
        failing = self._failing(size)
        not_run = 0
        if self._stopped and self.random.random() < self.program.not_run_after_stop:
            not_run = self.random.randint(0, size)
            failing = [position for position in failing if position < size - not_run]
        within = self._within(action)
        self._take(action.unit)
        self._processing -= 1
        tally = self._tallies[self._last]
        tally[1] += size - not_run - len(failing)
        tally[2] += len(failing)
        tally[4] += not_run
        further = self._lead_on(size - not_run - len(failing))
        if further:
            self._given_by[action.unit] = whole = _Subtree(f"unit {action.unit}")
            further = self._enter_further(action, further, 0)
            if not whole.alive:
                self._due[id(whole)] = whole
        failing = [action.start + position for position in failing]
        self._note_items(action.source, action.start, action.stop - not_run, failing)
        self._live(within, -size)
        seconds = self._seconds(self.program.item_s, size - not_run)
        self._durations[self._last].add(size - not_run, seconds)
        ended: dict[str, Any] = {"failed": len(failing), "not_run": not_run, "seconds": seconds}
        self._tell("processed", action.unit, **ended, **({"further": further} if further else {}))

    def _stop(self, reason: str) -> None:
        self._drop_what_waits()
        self._tell("stop", reason)

    def _fan_out(self) -> int:
        program, random = self.program, self.random
        if program.fan_out is not None:
            return program.fan_out
        size = random.choice((0, 1, random.randint(0, 4), random.randint(0, program.large)))
        size = min(size, max(0, program.most_items - self._given))
        self._given += size
        return size

    def _failing(self, size: int) -> list[int]:
        chance = self.program.item_fails
        return [position for position in range(size) if self.random.random() < chance]

    # -- results, for the assembly ---------------------------------------------------------------

    def _note_items(self, source: int, start: int, stop: int, failing: list[int]) -> None:
        if self.assembly is None:
            return
        values = [position for position in range(start, stop) if position not in failing]
        self._note(source, start, stop, values, [(source, position) for position in failing])

    def _note(
        self, source: int, start: int, stop: int, done: list[int], failed: list[tuple[int, ...]]
    ) -> None:
        if self.assembly is None:
            return
        values = [f"result {source}.{position}" for position in done]
        self.expected_results.setdefault(source, {}).update(zip(done, values, strict=True))
        self.expected_failures += failed
        failures = [IndexedFailure(index) for index in failed]
        self.assembly.add(Portion(source, f"source {source}", start, stop, values, failures))

    # -- the books -------------------------------------------------------------------------------

    def _within(self, action: Expand | Process) -> tuple[_Subtree, ...]:
        """What contains the items of an action; nothing where they are sources."""
        return self._lists[action.parent, action.offset].within if action.parent >= 0 else ()

    def _take(self, unit: int) -> None:
        action = self._units.pop(unit)
        self._order.remove(unit)
        self._answered.append(unit)
        self._flying -= 1 if isinstance(action, Extra) else action.stop - action.start
        if self._alone == unit:
            self._alone = None
        if isinstance(action, Expand):
            self._expanding[action.stage] -= action.stop - action.start

    def _live(self, subtrees: tuple[_Subtree, ...], more: int) -> None:
        for subtree in subtrees:
            subtree.alive += more
            if subtree.alive == 0 and not subtree.closed:
                self._due[id(subtree)] = subtree

    def _over(self, stage: int) -> bool:
        """Whether nothing of a stage begins any more."""
        return self._stopped or (self._limited and stage < self._last)

    def _drop_what_is_not_wanted(self) -> None:
        """After the limit on items was reached: what would find more of them."""
        self._drop_held()
        for stage in range(self._last):
            self._drop_queue(stage)
        for one in [one for one in self._again if one.stage < self._last]:
            self._again.remove(one)
            self._drop_again(one)

    def _drop_queue(self, stage: int) -> None:
        for items in self._queues[stage]:
            left = len(items.todo)
            self._tallies[stage][4] += left
            self._live(items.within, -left)
        self._queues[stage].clear()
        self._waiting[stage] = 0

    def _drop_again(self, one: Suspect) -> None:
        if one.stage > self._last:
            return
        self._tallies[one.stage][4] += one.size
        if one.parent is not None:
            self._live(self._lists[one.parent].within, -one.size)
            of = Process(-1, one.stage, one.source, *one.parent, one.start, one.stop)
            for position in range(one.start, one.stop):
                self._live(self._told_of(one.stage, of, position), -1)
        else:
            for source in self._sources[one.start : one.stop]:
                self._live((source,), -1)

    def _drop_what_waits(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._extras.clear()
        self._drop_held()
        for stage in range(len(self._queues)):
            self._drop_queue(stage)
        for one in self._again:
            self._drop_again(one)
        self._again.clear()

    def _standing(self) -> tuple[int, int, bool]:
        last = self._tallies[self._last]
        expanding = any(self._expanding) or self._arriving or any(self._waiting[: self._last])
        expanding = expanding or any(one.stage < self._last for one in self._again)
        over = self._ended or self._limited
        leads_on = self.led_on or self.program.max_depth is not None or self.program.leads_on
        if leads_on and not self._limited:  # whatever runs may find more
            expanding = expanding or self._units or any(self._waiting) or self._again
            expanding = expanding or self._extras or self._held or self._to_follow
        return last[2] + self._lost, last[0] + self._lost, bool(over and not expanding)

    def _in_flight(self, arriving: int = 0) -> tuple[int, int]:
        """What the window bounds: items, and units."""
        units = len(self._firsts(self._units.values()))
        return self._flying + arriving, units + bool(self._pulling) + bool(arriving)

    def _firsts(self, actions: Iterable[Action]) -> set[int]:
        """Units that stand for themselves, and for those that go together with them."""
        return {
            one.unit if isinstance(one, Extra) or one.beside < 0 else one.beside
            for one in actions
            if isinstance(one, Expand | Process | Extra)
        }

    @property
    def _bounds(self) -> tuple[int, int]:
        return self._window.in_flight or 10**9, self._window.units or 10**9

    def _room(self) -> int:
        """Items that may be submitted."""
        (items, units), (most_items, most_units) = self._in_flight(), self._bounds
        if self._probing():
            most_units = min(most_units, AHEAD * self._busy_threads() + self._giving())
        room = most_items - items
        if self._units and not self._busy():
            # Whoever gives waits for what was given: one batch may always begin.
            room = max(self._largest_batch(), room if units < most_units else 0)
        elif units >= most_units:
            room = 0
        return room

    def _largest_batch(self) -> int:
        batch = self.program.batch
        return self._ceiling() if batch is None else min(batch, self._window.in_flight or batch)

    def _may_stream(self, stage: int) -> int:
        """Expansions that may begin, so that room is left for what they give (rule 2)."""
        if stage not in self.program.streaming:
            return 10**9
        (most_items, most_units), stages = self._bounds, len(self.program.streaming)
        units = sum(
            isinstance(action, Expand) and action.stage == stage for action in self._units.values()
        )
        if units + (stage == 0 and self._pulling > 0) >= max(1, most_units // (2 * stages)):
            return 0
        if self._window.in_flight is None:
            return 10**9
        most = min(most_items // (2 * stages), (most_items - self._largest_batch()) // stages)
        return max(1, most) - self._expanding[stage]

    def _expecting(self, stage: int) -> list[int]:
        """Expansions whose items are still to come, where `stage` is to expand (rule 5)."""
        expecting = list(self._expanding)
        for unit, action in self._units.items():
            if isinstance(action, Expand) and self._streams[unit]:
                expecting[action.stage] -= action.stop - action.start
        if stage:
            expecting[0] -= self._pulling
        return expecting

    def _enough(self) -> bool:
        """Whether there are enough batches to find out how long items take (rule 2)."""
        return self._probing() and self._processing >= max(self._busy_threads(), self._known[-1])

    def _probing(self) -> bool:
        """Whether work is held back until it is known how long an item takes (rule 2)."""
        sizes_follow = self.program.batch is None and self._window.in_flight is None
        if self._hurried or not sizes_follow or self._durations[self._last].mean_s is not None:
            return False
        for stage in range(self._last):
            if self._durations[stage].mean_s is None:
                return True
            if self._fan_outs[stage] == 0:
                return False
        return True

    def _ceiling(self) -> int:
        if self._window.in_flight is None:
            return LARGEST_UNIT
        return max(1, self._window.in_flight // 2 // self._window.threads)

    def _busy_threads(self) -> int:
        """Threads that find something to do in the window."""
        return max(1, min(self._window.threads, *self._bounds))

    def _expansions(self) -> int:
        """Units that expand, or are going to."""
        expanding = [action for action in self._units.values() if isinstance(action, Expand)]
        return len(self._firsts(expanding)) + bool(self._pulling)

    def _most_expansions(self) -> int:
        """Units that may expand at a time, by what waits (rule 4)."""
        lists, threads = len(self._queues[self._last]), self._busy_threads()
        if not lists:
            return 10**9 if self._window.threads <= FEW else AHEAD * threads
        if lists >= AHEAD * threads:
            return 0
        # The largest batch keeps a place beside them.
        beside = 10**9
        if self._window.in_flight is not None:
            giving = sum(
                action.stop - action.start
                for unit, action in self._units.items()
                if isinstance(action, Expand) and self._streams[unit]
            )
            beside = self._window.in_flight - self._largest_batch() - giving
        if self._giving() and self._window.units is not None:
            beside = min(beside, self._window.units - self._giving() - 1)
        return min(threads // 2, max(0, beside))

    # -- telling the core, and looking at what it answers ----------------------------------------

    def _tell(self, event: str, *arguments: Any, **keywords: Any) -> None:
        # Sources that come take the place of their pull, also where the window has shrunk since.
        taken = self._in_flight(self._arriving)
        actions: list[Action] = getattr(self.core, event)(*arguments, **keywords)
        self.log.append(Step(event, arguments, keywords, actions))
        if self._limited and not self._stopped:
            self._drop_what_is_not_wanted()
        if not self._stopped and self.program.policy.stops(*self._standing()):
            if self.core.stopped is None:
                self._broken(f"the policy is broken by {self._standing()}, and it goes on")
            self._drop_what_waits()
        if (self.core.limited is not None) != self._limited:
            self._broken(f"limited is {self.core.limited!r}, by own books {self._limited}")
        if (self.core.stopped is not None) != self._stopped:
            self._broken(f"stopped is {self.core.stopped!r}, which nobody asked for")
        self._look_at(actions, taken)
        self._check_state()
        while self._to_ask:
            number = self._to_ask.pop()
            self.asked += 1
            if not self._stopped:
                self._extras.append(number)
            self._tell("add_extra", number)
        while self._to_follow:
            self._answer_follow(*self._to_follow.pop(0))

    def _look_at(self, actions: list[Action], taken: tuple[int, int]) -> None:
        alone = self._alone is not None or any(one.alone for one in self._again)
        if self._arriving and (alone or self.core.paused or self._taken_meanwhile()):
            # They wait until the pause, or what has their place or runs alone, has ended.
            start = len(self._sources) - self._arriving
            self._again.append(Suspect(0, start, None, start, len(self._sources), 0))
            self._arriving = 0
        for action in actions:
            beside = bool(self._units) and not self._busy()
            if isinstance(action, Process | Expand) and action.beside >= 0:
                self._look_at_one_more(action)
                continue
            self._look_whether_more_go_along()
            match action:
                case Extra():
                    self._look_at_extra(action)
                case Follow():
                    self._look_at_follow(action)
                case Process() | Expand() if self._look_at_again(action):
                    pass
                case Process():
                    self._look_at_process(action)
                case Expand(parent=-1):
                    self._look_at_sources(action)
                case Expand():
                    self._look_at_expansion(action)
                    self._look_at_inner(action)
                case Pull():
                    self._look_at_expansion(action)
                    self._look_at_pull(action)
                case Forget(unit, place):
                    gave = self._lists.get((unit, place))
                    open_ones = gave is not None and gave.todo and not self._over(gave.stage)
                    if unit not in self._units or gave is None or open_ones:
                        self._broken(f"{action} of what is open, or of a unit that has ended")
                    self.forgotten += 1
                case Release(unit):
                    self._close(self._given_by.pop(unit, None), action)
                case ItemDone(parent, offset, position):
                    self._close(self._told.get((parent, offset, position)), action)
                    self.told += 1
                case SourceDone(source):
                    known = source < len(self._sources)
                    self._close(self._sources[source] if known else None, action)
                    if self.random.random() < self.program.extras:
                        self._to_ask.append(source)
            unknown = sum(
                expanding
                for expanding, known in zip(self._expanding, self._known, strict=True)
                if not known
            )
            self._most_unknown = max(self._most_unknown, unknown)
            beside = beside or (isinstance(action, Extra) and self._beside_a_pull)
            for now, bound, before in zip(
                self._in_flight(self._arriving), self._bounds, taken, strict=True
            ):
                if now > max(bound, before) and self._alone is None and not beside:
                    self._broken(f"{action} makes {self._in_flight()} in flight of {self._bounds}")
        self._look_whether_more_go_along()
        if self._arriving:
            self._broken("sources arrived and their expansion does not begin")
        if self._due:
            subtree = next(iter(self._due.values()))
            self._broken(f"{subtree.name} has ended, and it is not said")

    def _quarantined(self) -> bool:
        if self._alone is not None:
            return True
        first = next((one for one in self._again if one.alone), None)
        if first is None:
            return False
        # It might give as others do already, of which there are enough.
        held = first.stage < self._last and self._giving() > 0 and self._may_stream(first.stage) < 1
        return not held

    def _look_at_again(self, action: Expand | Process) -> bool:
        """Whether an action is of what has to run again; if so, it must be the next of that."""
        one = self._next_again()
        if self._quarantined() and (self._busy() or one is None):
            self._broken(f"{action} beside what runs alone, or before it")
        if one is None or (one.stage < self._last and isinstance(action, Process)):
            return False  # expansions may have to wait until there is room for what they give
        if not (one.alone or self._held_up()):
            return False
        if isinstance(action, Expand) and self._arriving:
            return False
        start, parent = one.start, one.parent or (-1, 0)
        source = one.source if one.parent else one.start
        place = (one.stage, source, *parent, start)
        if action[1:6] != place or action.stop > one.stop or action.crashes != one.crashes:
            self._broken(f"{action} before {one}, which a dead worker took down")
        if isinstance(action, Expand) and action.crashes and action.inline:
            self._broken(f"{action} works on items in passing, where a worker died")
        self._again.remove(one)
        if action.stop < one.stop:
            if one.stage == self._last and self._busy():
                self._broken(f"{action} is not whole, and something is in flight")
            self._again.insert(0, replace(one, start=action.stop))
        if one.alone:
            self._alone = action.unit
        elif isinstance(action, Expand) and (
            not self._may_expand_again(action.stage)
            or self._may_stream(action.stage) < action.stop - action.start
        ):
            self._broken(f"{action} with {sum(self._waiting)} items waiting")
        self._begin_unit(action)
        self._processing += isinstance(action, Process)
        return True

    def _taken_meanwhile(self) -> bool:
        """Whether something beside the stages has begun in the place of sources that came."""
        if not any(isinstance(one, Extra) for one in self._units.values()):
            return False
        arrived = self._in_flight(self._arriving)
        return any(now > bound for now, bound in zip(arrived, self._bounds, strict=True))

    def _waits_above(self, depth: int) -> bool:
        """Whether something less deep may find what is held back of a level."""
        if self.program.sources_known and not self._ended:
            return True
        units = [one for one in self._units.values() if not isinstance(one, Extra)]
        lists = [self._lists[one.parent, one.offset] for one in units if one.parent >= 0]
        sources = len(lists) < len(units) or self._arriving
        lists += chain.from_iterable(self._queues)
        lists += [self._lists[one.parent] for one in self._again if one.parent is not None]
        sources = sources or any(
            one.parent is None and one.stage <= self._last for one in self._again
        )
        if sources or any(one.depth < depth for one in lists):
            return True
        return any(one.depth < depth for _, one in self._to_follow)

    def _look_at_follow(self, action: Follow) -> None:
        if self._stopped or self.core.paused:
            self._broken(f"{action} after the stop, or in a pause")
        depth = min(self._held, default=0)
        if not self._held or self._waits_above(depth):
            self._broken(f"{action} of what is not held back, or while something is less deep")
        if sum(self._waiting) > self.program.buffered:
            self._broken(f"{action} above the bound of the buffer")
        held = self._held[depth].pop(0)
        if not self._held[depth]:
            del self._held[depth]
        if action != (self._issued, *held.key):
            self._broken(f"{action} before unit {self._issued} of {held.key}")
        self._issued += 1
        self._to_follow.append((action, held))

    def _look_at_extra(self, action: Extra) -> None:
        one = self._next_again()
        if self._quarantined() and (self._busy() or one is None):
            self._broken(f"{action} beside what runs alone, or before it")
        lonely = self._pulling and not self._units and one is None
        self._beside_a_pull = self._room() <= 0 and bool(lonely)
        if self._room() <= 0 and not (lonely or (one and one.alone)):
            self._broken(f"{action} where there is no room")
        if one is not None and one.stage > self._last:
            if (action.number, action.crashes) != (one.start, one.crashes):
                self._broken(f"{action} before {one}, which a dead worker took down")
            self._again.remove(one)
            if one.alone:
                self._alone = action.unit
        else:
            if one is not None and (one.alone or one.stage == self._last):
                self._broken(f"{action} before {one}, which a dead worker took down")
            if not self._extras or (action.number, action.crashes) != (self._extras.pop(0), 0):
                self._broken(f"{action}, which is not the next that was asked for")
        self._begin_unit(action)

    def _may_expand_again(self, stage: int) -> bool:
        alone = not any(self._expecting(stage)) and not self._queues[self._last]
        return alone or self._may_expand(stage)

    def _look_at_sources(self, action: Expand) -> None:
        if not self._arriving:
            self._broken(f"{action} without new sources")
        start = len(self._sources) - self._arriving
        inline = self._inline_of(0)
        if action[1:] != (0, start, -1, 0, start, len(self._sources), inline, 0, -1):
            self._broken(f"{action} is not that of sources {start} on, {inline} items inline")
        self._arriving = 0
        self._begin_unit(action)

    def _look_at_expansion(self, action: Action) -> None:
        """Whether an expansion, or the pull before one, may begin now (rules 2 to 5)."""
        if self._room() <= 0:
            self._broken(f"{action} where there is no room")
        if self._stopped:
            self._broken(f"{action} after the stop")
        if self._held_up() or self._alone is not None or self._extras:
            self._broken(f"{action} while something has to run again, or was asked for")
        leaves = self._queues[self._last]
        if self._expansions() - self._giving() >= self._most_expansions():
            self._broken(
                f"{action} beside {self._expansions()} expansions while {len(leaves)} lists wait"
            )
        extras = any(isinstance(one, Extra) for one in self._units.values())
        if leaves and not (self._processing or extras):
            # Expansions are kept in flight; they must not go on taking the place of a batch.
            self._overtaking += 1
            if self._overtaking > self._window.threads // 2:
                self._broken(f"{action} overtakes items of which none is in flight, again")
        stage = action.stage if isinstance(action, Expand) else 0
        if not self._may_expand(stage):
            self._broken(f"{action} with {sum(self._waiting)} items waiting")
        if self._may_stream(stage) < 1:
            self._broken(f"{action} leaves no room for what is given on the way")

    def _expected(self, stage: int) -> int:
        known, given = self._known[stage], self._fan_outs[stage]
        return max(1, -(-given // known)) if known else UNKNOWN_FAN_OUT

    def _expected_to_wait(self, stage: int) -> int:
        """What of an expansion's items is expected to wait."""
        item_s = self._durations[self._last].mean_s
        units_alone = self._window.in_flight is None and self.program.batch is None
        units_alone = units_alone and self.program.max_items is None
        leads = units_alone and stage + 1 == self._last
        here = leads and self._expected(stage) <= inline_items(item_s)
        if here and self._left_of:
            return -int(-self._left // self._left_of)
        return self._expected(stage)

    def _fits(self, stage: int, more: int) -> bool:
        """Whether what so many further expansions are expected to leave fits into the buffer."""
        coming, expecting = more * self._expected_to_wait(stage), self._expecting(stage)
        for other, number in enumerate(expecting):
            coming += number * self._expected_to_wait(other)
        credible = AHEAD * GROWTH * self._known[stage]
        if expecting[stage] + more > max(self.program.buffered // UNKNOWN_FAN_OUT, credible):
            return False
        return self._counted() + coming <= self._bound()

    def _counted(self) -> int:
        """What waits below the bound: not what was found by items, and is to be expanded."""
        return sum(self._waiting) - self._uncounted()

    def _uncounted(self) -> int:
        inner = [items for queue in self._queues[: self._last] for items in queue]
        return sum(len(items.todo) for items in inner if items.depth)

    def _bound(self) -> int:
        """The bound, above a list that is longer than it."""
        if sum(self._waiting[: self._last]) - self._uncounted() <= self.program.buffered:
            return self.program.buffered
        deepest = max(stage for stage in range(self._last) if self._queues[stage])
        return self.program.buffered + self._queues[deepest][0].size

    def _may_expand(self, stage: int) -> bool:
        if not any(self._expecting(stage)):
            inner = any(self._waiting[: self._last])
            below = self._counted() <= self._bound()
            return below or (inner and not self._queues[self._last])
        return self._fits(stage, 1)

    def _look_at_pull(self, action: Pull) -> None:
        if self._ended or self._pulling or self._limited:
            self._broken("sources are asked for that cannot come, or are not wanted")
        if any(self._waiting[: self._last]):
            self._broken("sources are asked for while inner items wait")
        if sum(self._waiting) > self.program.buffered:
            self._broken("sources are asked for above the bound of the buffer")
        if self._growing():
            self._broken("groups of sources are small, and more are asked for than needed")
        most = min(self._group(0, self._sources_left()), self._room())
        self._look_at_group(action, 0, action.most, most)
        self._pulling = action.most
        self._order.append(PULL)
        self._flying += action.most
        self._expanding[0] += action.most

    def _look_at_group(self, action: Action, stage: int, size: int, most: int) -> None:
        """Whether as much begins together as is worth it and fits."""
        most = min(most, self._may_stream(stage))
        if not 1 <= size <= most:
            self._broken(f"{action}: it may be {most}")
        if size > 1 and not self._fits(stage, size):
            self._broken(f"{action}: more than the buffer is expected to hold")
        if size < most and self._fits(stage, size + 1):
            self._broken(f"{action}: it may be {most}, and they fit")

    def _sources_left(self) -> int | None:
        if not self.program.sources_known:
            return None
        return max(1, self.program.sources - len(self._sources))

    def _growing(self) -> bool:
        """Whether enough sources are in flight, as groups are small and will be larger (rule 7)."""
        item_s = self._durations[self._last].mean_s
        if self._hurried or self._last > 1 or item_s is None:
            return False
        if self._expected(0) > inline_items(item_s):
            return False
        if self._expansions() - self._giving() < AHEAD * self._busy_threads():
            return False
        left = self._sources_left()
        return self._group(0, left) < self._group(0, left, seen=LARGEST_GROUP)

    def _group(self, stage: int, left: int | None, seen: int | None = None) -> int:
        """Sources, or inner items, in one unit, by own books; or if so many had been expanded."""
        parse_s, item_s = self._durations[stage].mean_s, self._durations[self._last].mean_s
        if self.program.batch is not None or parse_s is None:
            return 1
        leads, expected = stage + 1 == self._last, self._expected(stage)
        if leads and item_s is None and self._fan_outs[stage] > 0:
            return 1  # nobody knows whether lists are short
        if seen is None:
            seen = GROWTH * self._known[stage] // self._window.threads
        ceiling = min(self._ceiling(), LARGEST_GROUP, max(1, seen))
        if leads and item_s is not None and expected <= inline_items(item_s):
            parse_s += expected * item_s
        elif left is not None and (item_s is not None or not leads):
            ceiling = min(ceiling, -(-left // (AHEAD * self._window.threads)))
        return unit_size(parse_s, left, self._window.threads, ceiling)

    def _inline_of(self, stage: int) -> int:
        if self.program.batch is not None or stage + 1 < self._last or self.program.max_items:
            return 0
        return inline_items(self._durations[self._last].mean_s)

    def _look_at_inner(self, action: Expand) -> None:
        deepest = next((s for s in range(self._last - 1, -1, -1) if self._queues[s]), None)
        if deepest is None or action.stage != deepest:
            self._broken(f"{action} while items of stage {deepest} wait")
        items = self._queues[deepest][0]
        inline = 0 if items.crashes else self._inline_of(deepest)
        first = items.todo[0]
        place = (items.source, *items.key, first)
        if action[2:6] != place or action[7:] != (inline, items.crashes, -1):
            self._broken(f"{action} is not the next: that is {place}, {inline} items inline")
        size = action.stop - action.start
        most = min(self._group(deepest, self._waiting[deepest]), self._room())
        self._look_at_group(action, deepest, size, min(most, len(items.run(items.size))))
        if deepest not in self.program.streaming and self._goes_together(items):
            while most > size and not self._fits(deepest, most):
                most -= 1
            self._party = action.unit, deepest, most - size
        self._submit(items, size)
        self._begin_unit(action)

    def _look_at_process(self, action: Process) -> None:
        queue = self._queues[self._last]
        if not queue or self._extras:
            self._broken(f"{action} while no item waits, or before what was asked for")
        items = queue[0]
        if action[1:5] != (self._last, items.source, *items.key):
            self._broken(f"{action} is not of the list that came first, {items.key}")
        size = self._batch_of(items)
        if action.crashes != items.crashes:
            self._broken(f"{action} of a list that has seen {items.crashes} deaths")
        first = items.todo[0]
        if (action.start, action.stop) != (first, first + size):
            self._broken(f"{action} is not the next batch, {first} to {first + size}")
        if self._room() <= 0:
            self._broken(f"{action} where there is no room")
        if self._enough():
            self._broken(f"{action} beside {self._processing}, which is enough for each thread")
        mean_s = self._durations[self._last].mean_s
        if mean_s is not None and self._goes_together(items):
            waiting, threads = self._waiting[self._last], self._window.threads
            each_s = max(mean_s, ALONG_S)
            most = min(unit_size(each_s, waiting, threads, self._ceiling()), self._room())
            self._party = action.unit, self._last, most - size
        self._submit(items, size)
        self._begin_unit(action)
        self._processing += 1
        self._overtaking = 0

    def _goes_together(self, items: _Items) -> bool:
        """Whether a unit of a list may be one of several (rule 11)."""
        return items.depth > 0 and not items.crashes and self.program.batch is None

    def _one_more(self) -> _Items | None:
        """The list that goes together with the unit that began last, if one does."""
        if self._party is None:
            return None
        _, stage, most = self._party
        items = next(iter(self._queues[stage]), None)
        if items is None or not self._goes_together(items):
            return None
        return items if len(items.run(items.size)) <= most else None

    def _look_at_one_more(self, action: Expand | Process) -> None:
        items = self._one_more()
        if items is None or self._party is None:
            self._broken(f"{action} goes together with others, and must not")
        first, stage, most = self._party
        run = items.run(items.size)
        inline = (self._inline_of(stage),) if isinstance(action, Expand) else ()
        place = (stage, items.source, *items.key, run[0], run[-1] + 1, *inline, 0, first)
        if action[1:] != place:
            self._broken(f"{action} is not the next that goes along: that is {place}")
        self.went_together += 1
        self._party = first, stage, most - len(run)
        self._submit(items, len(run))
        self._begin_unit(action)
        self._processing += isinstance(action, Process)

    def _look_whether_more_go_along(self) -> None:
        if (items := self._one_more()) is not None:
            self._broken(f"{items.key} does not go together with what began last")
        self._party = None

    def _batch_of(self, items: _Items) -> int:
        left = len(items.run(items.size))
        if self.program.batch is None:
            mean_s, threads = self._durations[self._last].mean_s, self._window.threads
            if mean_s is not None and items.depth:
                mean_s = max(mean_s, ALONG_S)
            waiting = self._waiting[self._last]
            return min(left, unit_size(mean_s, waiting, threads, self._ceiling()))
        return min(left, self.program.batch, self._window.in_flight or left)

    def _submit(self, items: _Items, count: int) -> None:
        del items.todo[:count]
        self._waiting[items.stage] -= count
        if not items.todo:
            self._queues[items.stage].popleft()

    def _begin_unit(self, action: Expand | Process | Extra) -> None:
        if self._stopped or self.core.paused:
            self._broken(f"{action} after the stop, or in a pause")
        if action.unit != self._issued:
            self._broken(f"{action}: the next unit is {self._issued}")
        self._issued += 1
        self._units[action.unit] = action
        self._order.append(action.unit)
        self._flying += 1 if isinstance(action, Extra) else action.stop - action.start
        if isinstance(action, Expand):
            self._expanding[action.stage] += action.stop - action.start
            if action.beside >= 0:
                return  # it takes its turn with the first
            turn = self._expansions() - bool(self._pulling) <= AHEAD * self._busy_threads()
            if (self.core.turn(action.unit) is not Turn.BEHIND) != turn:
                self._broken(f"{action} {'does not take' if turn else 'takes'} its turn")

    def _close(self, subtree: _Subtree | None, action: Action) -> None:
        if subtree is None:
            self._broken(f"{action} of what is not there, or is closed already")
        if subtree.alive:
            self._broken(f"{action} while {subtree.alive} are alive below it")
        if subtree.closed:
            self._broken(f"{action} a second time")
        subtree.closed = True
        self._due.pop(id(subtree), None)

    # -- what holds after each step --------------------------------------------------------------

    def _check_state(self) -> None:
        core, program = self.core, self.program
        waiting = sum(self._waiting)
        if core.flying != self._flying:
            self._broken(f"flying is {core.flying}, in flight are {self._flying}")
        if core.waiting != waiting:
            self._broken(f"waiting is {core.waiting}, {waiting} items wait")
        arrived = len(self._sources) if program.adopted is None else 0
        if core.sources != arrived:
            self._broken(f"sources is {core.sources}, arrived have {arrived}")
        if core.pulling != bool(self._pulling):
            self._broken(f"pulling is {core.pulling}, asked for are {self._pulling}")
        over = self._stopped or self._ended or self._limited
        finished = not (self._order or waiting or self._again or self._extras) and over
        finished = finished and not (self._held or self._to_follow)
        if core.finished != finished:
            self._broken(f"finished is {core.finished}, and {len(self._order)} are in flight")
        progress = core.progress
        if not 0 <= progress.percent <= 100 or (progress.percent == 100) != finished:
            self._broken(f"finished is {finished}, shown are {progress.percent} % of {progress}")
        if progress.left < 0 or (finished and progress.left):
            self._broken(f"finished is {finished}, and left are {progress.left} of {progress}")
        for stage, tally in enumerate(core.tallies):
            own = self._tallies[stage]
            if [tally.discovered, tally.done, tally.failed, tally.resumed, tally.not_run] != own:
                self._broken(f"stage {stage}: {tally}, counted were {own}")
        usual = program.adopted is None and not (
            self._surprised or self.led_on or self.streamed or self.repeated
        )
        if program.fan_out is not None and usual:
            size = program.fan_out
            unknown = min(self._most_unknown, max(1, program.buffered // UNKNOWN_FAN_OUT))
            more = unknown * max(0, size - UNKNOWN_FAN_OUT)  # than was expected of them
            bound = max(program.buffered + max(size, more), unknown * size)
            bound += (self._last - 1) * size
            if waiting > bound:
                self._broken(f"{waiting} items wait, the bound is {bound}")
        # Nothing is kept but what is open: each open list has something waiting or in flight.
        again = sum(one.size for one in self._again)
        levels = self._last * (1 + self.deepest) + self.deepest
        held = sum(map(len, self._held.values())) + len(self._to_follow)
        if len(core._lists) > levels * (waiting + again + self._flying) + (1 + levels) * held:
            self._broken(f"{len(core._lists)} lists for {waiting + self._flying} open items")
        if set(core._lists_of) != {unit for unit, _ in core._lists}:
            self._broken(f"lists are counted of units {set(core._lists_of)}, others are open")
        if len(core._units) != len(self._units):
            self._broken(f"{len(core._units)} units are kept, in flight are {len(self._units)}")
        if sum(map(len, core._waiting)) != sum(map(len, self._queues)):
            self._broken("a queue keeps what does not wait")
        self._check_expected_items()
        if not (self._stopped or core.paused):
            self._check_nothing_is_missing()

    def _check_expected_items(self) -> None:
        expected = self._waiting[self._last]
        to_come = self._waiting[: self._last]
        if self.program.sources_known and self.program.adopted is None:
            to_come[0] += max(0, self.program.sources - len(self._sources))
        for stage, number in enumerate(to_come):
            if all(self._known[stage:]):
                expected += number * prod(map(self._expected, range(stage, self._last)))
        if self.core.expected_items != expected:
            self._broken(f"expected are {self.core.expected_items} items, by own books {expected}")

    def _check_nothing_is_missing(self) -> None:
        """Room in the window is used if anything may use it."""
        idle = not (self._to_follow or self._busy() or self._again or any(self._waiting))
        if self._held and idle and not self._waits_above(min(self._held)):
            self._broken("what was held back is not followed, and nothing else is there")
        if self._quarantined():
            if not self._busy():
                self._broken("nothing is in flight, and what has to run alone does not begin")
            return
        room = self._room()
        if self._extras and self._pulling and not (self._units or self._again):
            self._broken("what was asked for waits for a source that may be long in coming")
        if room <= 0:
            return
        if one := self._next_again():
            fits = one.size <= room
            if one.stage < self._last:
                fits = self._may_expand_again(one.stage) and self._may_stream(one.stage) > 0
            if fits:
                self._broken(f"room for {room}, and {one} does not run again")
            if one.stage >= self._last:
                return
        if self._extras:
            self._broken(f"room for {room}, and what was asked for does not begin")
        leaves = self._queues[self._last]
        if leaves and not self._enough() and self._batch_of(leaves[0]) <= room:
            self._broken(f"room for {room}, and items wait")
        no_more = self._ended or self._pulling or self._limited
        more = any(self._waiting[: self._last]) or not no_more
        wanted = self._expansions() - self._giving() < self._most_expansions()
        inner = [stage for stage in range(self._last) if self._waiting[stage]]
        deepest = max(inner, default=0)
        may = self._may_expand(deepest) and self._may_stream(deepest) > 0
        waits = not inner and self._growing()
        self.held_back += waits
        if more and wanted and not self._held_up() and may and not waits:
            self._broken(f"room for {room}, and no expansion begins")

    def _check_end(self) -> None:
        core = self.core
        kept = ("_lists", "_lists_of", "_units", "_flying", "_expansions", "_turns")
        kept += ("_suspects", "_alone", "_forks", "_extras", "_extras_flying")
        kept += ("_given", "_item_forks", "_held", "_follows")
        left = {name: value for name in kept if (value := getattr(core, name))}
        left |= {
            name: any(getattr(core, name))
            for name in ("_waits", "_expanding", "_uncounted", "_giving")
        }
        left = {name: value for name, value in left.items() if value}
        if left or any(core._waiting) or core._pulling:
            self._broken(f"at the end there is still {left or 'something'}")
        parts = [*self._sources, *self._given_by.values(), *self._told.values()]
        open_ones = [part for part in parts if not part.closed]
        if open_ones:
            self._broken(f"{open_ones[0].name} was never closed")
        for stage, tally in enumerate(core.tallies):
            ended = tally.done + tally.failed + tally.resumed + tally.not_run
            if tally.discovered != ended:
                self._broken(f"stage {stage} does not add up: {tally}")
        if core.roots.discovered != core.roots.ended:
            self._broken(f"the sources do not add up: {core.roots}")
        if core.too_deep != self.too_deep:
            self._broken(f"too deep are {core.too_deep}, by own books {self.too_deep}")
        failed, known, complete = self._standing()
        standing = core.standing
        if (standing.failed, standing.known, standing.complete) != (failed, known, complete):
            self._broken(f"{standing}, counted were {failed} of {known}, complete: {complete}")
        if core.rejected != self.program.policy.rejects(failed, known):
            self._broken(f"rejected is {core.rejected} with {failed} of {known} failed")
        for unit in self._answered[-20:]:
            self._refuses(self.random.choice(EVENTS), unit)
        self._refuses("sources_arrived", 0)
        self._refuses("sources_arrived", 1)
        self._check_state()

    # -- what it must refuse ---------------------------------------------------------------------

    def _refuses_what_nobody_waits_for(self) -> None:
        self._refuses("sources_arrived", self._pulling + 1)
        if not self._pulling:
            self._refuses("sources_arrived", 0)
        unit = self.random.choice([*self._answered[-50:], self._issued, self._issued + 7, -1])
        self._refuses(self.random.choice(EVENTS), unit)
        self._check_state()  # and nothing has changed

    def _refuses_what_does_not_add_up(self) -> None:
        for unit, action in self._units.items():
            if isinstance(action, Extra):
                self._refuses("processed", unit)
                self._refuses("expanded", unit)
                continue
            self._refuses("extra_ended", unit)
            size = action.stop - action.start
            if isinstance(action, Process):
                self._refuses("expanded", unit)
                self._refuses("expansion_lost", unit)
                self._refuses("processed", unit, failed=size, not_run=1)
                self._refuses("processed", unit, failed=-1)
            else:
                self._refuses("processed", unit)
                self._refuses("expanded", unit, [Found()] * (size + 1))
                wrong = self.random.choice(WRONG)
                self._refuses("expanded", unit, [*[Found()] * (size - 1), wrong])
        self._check_state()

    def _refuses(self, event: str, *arguments: Any, **keywords: Any) -> None:
        if event == "expanded" and len(arguments) == 1:
            arguments = (*arguments, [Found(3)])
        try:
            getattr(self.core, event)(*arguments, **keywords)
        except IllegalEvent as error:
            if event != "sources_arrived" and f"unit {arguments[0]} " not in str(error):
                self._broken(f"the refusal of unit {arguments[0]} does not name it: {error}")
        else:
            self._broken(f"{event}{arguments} was taken, and nothing in flight waits for it")

    def _broken(self, message: str) -> NoReturn:
        raise BrokenPromise(f"step {len(self.log)}: {message}")


WRONG = (
    *(Found(-1), Found(2, 3), Found(3, 1, failed=1, not_run=1), Found(3, 3, failed=-1, not_run=1)),
    *(Found(2, 2, lost=True, known=True), Found(2, skipped=True)),
    *(Found(2, 1, left=((0, 2),)), Found(2, 1, left=((1, 3),)), Found(2, left=((1, 0),))),
    *(Found(2, 1, resumed=2), Found(2, 2, failed=1, resumed=2), Found(3, 1, left=((2, 3), (0, 1)))),
)
EVENTS = ("expanded", "expansion_lost", "processed", "extra_ended", "crashed")


@dataclass(frozen=True)
class IndexedFailure:
    """A failure as far as the assembly looks at it."""

    index: tuple[int, ...]


def _positions(action: Expand | Process) -> range:
    return range(action.start, action.stop)


def _ranges(positions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Positions in order, as ranges that do not touch."""
    ranges: list[tuple[int, int]] = []
    for position in positions:
        if ranges and ranges[-1][1] == position:
            ranges[-1] = (ranges[-1][0], position + 1)
        else:
            ranges.append((position, position + 1))
    return tuple(ranges)


def replay(log: list[Step], program: Program) -> list[list[Action]]:
    """Tell a new core the events of a log; give what it answers."""
    core = program.core()
    return [getattr(core, step.event)(*step.arguments, **step.keywords) for step in log]


def main(seed: int, stages: int | None = None) -> int:
    """Run one seed and write down what happened."""
    simulation = Simulation(seed, stages=stages)
    broken: Exception | None = None
    try:
        simulation.run()
    except Exception as error:  # a core that is at fault may raise anything
        broken = error
    write = sys.stdout.write
    write(f"{simulation.program}\n")
    for number, step in enumerate(simulation.log, 1):
        keywords = "".join(f", {name}={value}" for name, value in step.keywords.items())
        write(f"{number:4} {step.event}{step.arguments}{keywords}\n")
        for action in step.actions:
            write(f"       {action}\n")
    write(f"broken: {broken!r}\n" if broken else "every promise was kept\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
