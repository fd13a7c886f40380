"""What travels to and from the workers: calls there, expansions and batch results back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from dask.sizeof import sizeof
from prefect import Task

from evolve_tasks.core.folding import Block
from evolve_tasks.journal import is_sure
from evolve_tasks.naming import label_below
from evolve_tasks.outcome import Failure
from evolve_tasks.stages import Stage
from evolve_tasks.workers.transport import Packed, Resting, Unpicklable


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What each worker has to know of a run; it travels once to each.

    Args:
        run: unique name of the run.
        stages: the stages.
        surroundings: what is around the run in its run context, as `surrounded` takes it.
        failures_recorded: an item that fails gets a task run even where items have none.
        fail_fast: a unit ends at its first failure.
        terminal_pid: process that shows progress on its terminal, if one does.
        journaled: the flow wants a token of the items that each source gives.
        resources: Dask worker resources that a unit takes, by stage.
        label: gives an item its short name; `None`: its position is its name.
        importance: its priority beside other runs on the cluster.
        most_items: items that are wanted of the run; `None` for all.
        unique: the flow wants to know what stands for each item that is found.
        key: what makes two items the same then; `None`: they are compared themselves.
        collect: what is called with each source that has ended, or inner item, by its stage.
        reduce: what combines two results; `None` for nothing.
        values_wanted: the flow wants each result, also where they are combined.
        free_tags: tags of the stages and around them that are no limits on concurrency.
    """

    run: str
    stages: tuple[Stage, ...]
    surroundings: dict[str, Any]
    failures_recorded: bool
    fail_fast: bool = False
    terminal_pid: int | None = None
    journaled: bool = False
    resources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    label: Callable[[Any], Any] | None = None
    importance: int = 0
    most_items: int | None = None
    unique: bool = False
    key: Callable[[Any], Any] | None = None
    collect: Mapping[int, Stage] = field(default_factory=dict)
    reduce: Stage | None = None
    values_wanted: bool = True
    free_tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SourceCall:
    """One source of an `ExpandCall`, or one item that is expanded further.

    Args:
        position: position among the sources of the source that it is, or is from.
        label: its short name.
        run_id: id of the task run that records it alone, and name space of its items' ids.
        known: a journal has all of it, and there is nothing to do.
        inner: positions from the source down to it; empty for the source itself.
        depth: how often the last stage has led to it.
    """

    position: int
    label: str
    run_id: UUID
    known: bool = False
    inner: tuple[int, ...] = ()
    depth: int = 0

    @property
    def index(self) -> tuple[int, ...]:
        """Positions from the source down, as in `Failure.index`."""
        return self.position, *self.inner

    def item(self, position: int) -> SourceCall:
        """One of its items, as something that gives items in turn."""
        return SourceCall(
            self.position,
            label_below(self.label, position),
            item_run_id(self.run_id, position),
            inner=(*self.inner, position),
            depth=self.depth,
        )

    def deeper(self) -> SourceCall:
        """The same, as what has led to further items."""
        return replace(self, depth=self.depth + 1)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle in a fifth of the time that a dataclass takes: a unit has hundreds of them."""
        id_ = self.run_id.int
        return _source_call, (self.position, self.label, id_, self.known, self.inner, self.depth)


def _source_call(
    position: int, label: str, run_id: int, known: bool, inner: tuple[int, ...], depth: int
) -> SourceCall:
    return SourceCall(position, label, UUID(int=run_id), known, inner, depth)


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive items of a list that stays on the workers.

    Args:
        label: short name of what gave the list.
        offset: which of its unit's lists it is.
        start: position of the first item in that list.
        stop: position after the last one.
        size: how many items the list had when it was found.
        given: what stands for them, as `SourceEnd.stands_for` said; empty where nobody asked.
    """

    label: str
    offset: int
    start: int
    stop: int
    size: int
    given: str = ""


@dataclass(frozen=True, slots=True)
class Recording:
    """What of a unit Prefect sees.

    Args:
        each: each of its sources or items is a task run.
        unit: id of the task run that the unit is as a whole; `None` if it is none.
        within: id of a task run that is open meanwhile, and to which the unit belongs with
            others; `None` if it belongs to none.
        upstream: the task run that gave its input, if it was recorded.
    """

    each: bool = False
    unit: UUID | None = None
    within: UUID | None = None
    upstream: UUID | None = None


@dataclass(frozen=True, slots=True)
class StreamCall:
    """How items go to the flow while the stage still yields.

    Args:
        unit: the unit that expands.
        allowance: how many items each source may give before the flow says how it goes on.
        given: how many items of each source the flow has already, as a worker has died since.
        digests: the digests of those.
    """

    unit: int
    allowance: int
    given: tuple[int, ...]
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ExpandCall:
    """Run an expanding stage on some sources, or on some items of an outer stage.

    Args:
        stage: position of the stage.
        sources: what is to be known of each.
        items: the sources themselves, as a packed list; nothing where they are `part` of a list.
        inline: a list of at most so many items is worked on where it is found.
        recording: what Prefect sees of it.
        crashes: workers that died with it.
        part: where the items are that are expanded; `None` for sources.
        stream: how items are sent before all are there; `None` if they wait for that.
    """

    stage: int
    sources: tuple[SourceCall, ...]
    items: Packed
    inline: int
    recording: Recording
    crashes: int = 0
    part: Part | None = None
    stream: StreamCall | None = None


@dataclass(frozen=True, slots=True)
class ProcessCall:
    """Run the last stage on consecutive items of a source.

    Args:
        stage: position of the stage.
        source: what gave the items.
        part: where they are.
        recording: what Prefect sees of it.
        crashes: workers that died with them.
        items: the items themselves, as a packed list; `None` where they stay on a worker.
    """

    stage: int
    source: SourceCall
    part: Part
    recording: Recording
    crashes: int = 0
    items: Packed | None = None

    @property
    def label(self) -> str:
        """Short name of the first item."""
        return f"{self.source.label} {self.part.start}"


@dataclass(frozen=True, slots=True)
class CollectCall:
    """Collect what a source gave, or an inner item.

    Args:
        stage: position of the stage whose items are collected.
        source: what is collected.
        given: what the function is called with, as a packed tuple.
        recording: what Prefect sees of it.
        crashes: workers that died with it.
    """

    stage: int
    source: SourceCall
    given: Packed
    recording: Recording
    crashes: int = 0

    @property
    def run_id(self) -> UUID:
        """Id of its task run."""
        return collect_run_id(self.source)


@dataclass(slots=True)
class Collected:
    """How a source was collected.

    Args:
        value: what the function returned, packed.
        failure: why it returned nothing, if it failed.
        recorded: it has a task run of its own.
        span: when and where it ran.
    """

    value: Packed
    failure: Failure | None
    recorded: bool
    span: Span


@dataclass(frozen=True, slots=True)
class CombineCall:
    """Combine parts that units came to.

    Args:
        groups: N >= 1 groups of blocks, in order, each of which becomes one part.
        label: what its task run's name has in brackets.
        index: positions from the source down to the first list, for a failure.
        recording: what Prefect sees of it.
        crashes: workers that died with it.
    """

    groups: list[list[Block]]
    label: str
    index: tuple[int, ...]
    recording: Recording
    crashes: int = 0


@dataclass(slots=True)
class Combined:
    """What groups came to.

    Args:
        parts: the parts, each packed; none if it failed.
        failure: why it failed.
        recorded: it was a task run.
        span: when and where it ran.
    """

    parts: list[Packed]
    failure: Failure | None
    recorded: bool
    span: Span


def collect_run_id(source: SourceCall) -> UUID:
    """Id of the task run that collects a source."""
    return uuid5(source.run_id, "collect")


def item_run_id(source_run_id: UUID, position: int) -> UUID:
    """Id of an item's task run: the same when the item is run again after a worker died."""
    return uuid5(source_run_id, str(position))


@dataclass(slots=True)
class Span:
    """When and where a unit ran, in seconds since the epoch."""

    started: float = 0.0
    ended: float = 0.0
    worker: str = ""
    thread: int = 0

    def part(self, begin: float, end: float) -> Span:
        """A part of it, as shares of the whole."""
        took = self.ended - self.started
        return replace(self, started=self.started + begin * took, ended=self.started + end * took)


@dataclass(slots=True)
class Discovery:
    """Items that items of the last stage have found for one stage.

    Args:
        stage: the stage that is to work on them.
        owners: position of each item that found some, and how many it found; in order.
        items: all of them, as a packed list.
        keys: what stands for each, where they are compared.
    """

    stage: int
    owners: list[tuple[int, int]]
    items: Packed
    keys: bytes = b""


@dataclass(slots=True)
class Parts:
    """What consecutive items come to, as far as they can be combined without others.

    Args:
        blocks: nodes of their list's tree, each with a packed part.
        own: position and packed part of items that led further, which stand alone.
        failure: why there are none, if combining failed.
    """

    blocks: list[Block] = field(default_factory=list)
    own: list[tuple[int, Packed]] = field(default_factory=list)
    failure: Failure | None = None


@dataclass(slots=True)
class SourceEnd:
    """How the expansion of one source ended.

    Args:
        size: items that it gave.
        failure: why it gave no more, if it failed.
        skipped: it was not begun, because the run had been stopped.
        ended: its first items that were worked on where they were found.
        failures: those of them that failed.
        not_run: those of them that were not begun.
        recorded: positions of those that have a task run.
        has_run: the source has a task run of its own.
        token: what its items are known by in a journal, if there is one.
        keys: what stands for each of its items, where they are compared.
        discoveries: what items that were worked on have found.
        given: items that were sent before, and are not among `size`.
        parts: what items that were worked on come to, where results are combined.
    """

    size: int = 0
    failure: Failure | None = None
    skipped: bool = False
    ended: int = 0
    # None of them has lists of its own where there is nothing: they come by the thousand, and what
    # the garbage collector has to look at costs more than all else that is done for a source.
    failures: Sequence[Failure] = ()
    not_run: int = 0
    recorded: Sequence[int] = ()
    has_run: bool = False
    token: str = ""
    keys: bytes = b""
    discoveries: Sequence[Discovery] = ()
    given: int = 0
    parts: Parts | None = None
    _stands_for: str | None = field(default=None, compare=False, repr=False)

    def stands_for(self) -> str:
        """What tells its items from others, where that is known; or else nothing."""
        if self._stands_for is None:
            keys = blake2b(self.keys, digest_size=8).hexdigest() if self.keys else ""
            self._stands_for = self.token if self.token and is_sure(self.token) else keys
        return self._stands_for

    def __reduce__(self) -> tuple[type[SourceEnd], tuple[Any, ...]]:
        """Pickle in a fifth of the time that a dataclass takes: a unit has hundreds of them."""
        values = _END_FIELDS(self)
        return SourceEnd, values[:4] if values[4:] == _PLAIN_END else values


_END_FIELDS = attrgetter(*(one.name for one in fields(SourceEnd) if not one.name.startswith("_")))
_PLAIN_END = _END_FIELDS(SourceEnd())[4:]  # as most have it


@dataclass(slots=True)
class Measure:
    """What the flow learns of an expansion: how many items, or why there are none.

    Args:
        ends: how each source ended.
        values: packed; for each source the results of its items that were worked on already.
        items: packed, what was expanded, where it was inner items that are collected.
        parse_s: seconds that expanding took.
        inline_s: seconds that the items took.
        recorded: the unit was a task run.
        span: when and where it ran.
        nbytes: what its lists take in the worker's memory, about; with those of units with which
            it went together.
        beside: items that those have left.
    """

    ends: list[SourceEnd]
    values: Packed
    parse_s: float
    inline_s: float
    recorded: bool
    span: Span
    items: Packed | None = None
    nbytes: int = 0
    beside: int = 0

    @property
    def left(self) -> int:
        """Items that have not ended."""
        return sum(end.size - end.ended for end in self.ends)

    def divided(self, counts: Sequence[int]) -> list[Measure]:
        """The same for several units that were expanded as one, so many sources of each.

        The first stands for the task run that all of them were.
        """
        total, values, left = len(self.ends), self.values.value(), self.left
        items = None if self.items is None else self.items.value()
        measures, at = [], 0
        for count in counts:
            part, share = slice(at, at + count), count / total
            measure = Measure(
                self.ends[part],
                Packed.of(values[part]),
                self.parse_s * share,
                self.inline_s * share,
                self.recorded and at == 0,
                self.span.part(at / total, (at + count) / total),
                None if items is None else Packed.of(items[part]),
                self.nbytes,
            )
            measure.beside = left - measure.left
            measures.append(measure)
            at += count
        return measures


@dataclass(slots=True)
class Expansion:
    """What an expanding unit gave. It stays on the worker; the flow sees `measure` only.

    Args:
        lists: the items of each source; empty where nothing is left to do with them. On another
            worker they are `Resting` until somebody asks for them: `items` is how to.
        measure: what the flow is told.
    """

    lists: list[Any]
    measure: Measure

    def __post_init__(self) -> None:
        self.measure.nbytes = sum(int(sizeof(items)) for items in self.lists)

    def items(self, offset: int) -> Any:
        """The items of one source, wherever this came from."""
        items = self.lists[offset]
        if not isinstance(items, Resting):
            return items
        try:
            self.lists[offset] = items.value()
        except Unpicklable:
            return items.elements()  # it may go on to a worker that can make all of them
        return self.lists[offset]

    def __reduce__(self) -> tuple[type[Expansion], tuple[list[Resting], Measure]]:
        """Leave the items to whoever asks for them: one list that cannot be made harms no other."""
        return Expansion, ([_resting(items) for items in self.lists], self.measure)

    def __sizeof__(self) -> int:
        """What Dask's memory accounting should see."""
        return self.measure.nbytes + len(self.measure.values.payload)


@dataclass(slots=True)
class Slice:
    """Some items of a list, cut out where the list is."""

    items: Any

    def value(self) -> Any:
        """The items, wherever this came from."""
        return self.items.elements() if isinstance(self.items, Resting) else self.items

    def __reduce__(self) -> tuple[type[Slice], tuple[Resting]]:
        """Leave the items to whoever asks for them."""
        return Slice, (_resting(self.items),)

    def __sizeof__(self) -> int:
        """What Dask's memory accounting should see."""
        return int(sizeof(self.items))


def _resting(items: Any) -> Resting:
    return items if isinstance(items, Resting) else Resting.of(items)


@dataclass(slots=True)
class BatchResult:
    """How a batch ended.

    Args:
        values: results of the items that succeeded, in order, packed.
        failures: those that failed, in order.
        not_run: items at its end that were not begun, because the run had been stopped.
        recorded: positions of the items that have a task run.
        unit_recorded: the batch was a task run.
        worked_s: seconds that its items took, without what surrounds them.
        span: when and where it ran.
        discoveries: what its items have found.
        parts: what its items come to, where results are combined.
    """

    values: Packed
    failures: Sequence[Failure]
    not_run: int
    recorded: Sequence[int]
    unit_recorded: bool
    worked_s: float
    span: Span
    discoveries: Sequence[Discovery] = ()
    parts: Parts | None = None


@dataclass(slots=True)
class Together:
    """The answers of units that went together, in their order."""

    answers: Sequence[Measure | BatchResult]


@dataclass(slots=True)
class NestedBatch:
    """A batch that a nested unit had worked on."""

    offset: int
    start: int
    stop: int
    run_id: UUID | None
    result: BatchResult


@dataclass(slots=True)
class Orphans:
    """Items of a batch whose worker died under a nested unit that lives; the run takes them."""

    offset: int
    start: int
    stop: int
    items: Packed


@dataclass(slots=True)
class NestedResult:
    """How sources ended that were worked on in one piece (`nested`).

    Args:
        measure: how they were expanded.
        batches: what became of their items.
        orphans: items whose worker died.
        unseen: batches that were no task runs.
    """

    measure: Measure
    batches: list[NestedBatch] = field(default_factory=list)
    orphans: list[Orphans] = field(default_factory=list)
    unseen: int = 0


class Recorded(NamedTuple):
    """A task run that has ended, as the worker said.

    Args:
        run_id: its id.
        stage: position of its stage.
        label: what its name has in brackets.
        error: why it failed, if it did.
    """

    run_id: UUID
    stage: int
    label: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Something without a result, as only the flow knows: its task run has to say so.

    Args:
        task: the task of its stage.
        run_id: id of its task run.
        name: name of its task run.
        upstream: the task run that gave it, if there is one.
        message: why it was given up.
        crashed: it took down all the workers that it may. Or else it failed: it, or its result,
            could not be brought where it was wanted.
        told: whether the API has heard of another end from a worker; `None` if nobody knows.
    """

    task: Task[..., Any]
    run_id: UUID
    name: str
    upstream: UUID | None
    message: str
    crashed: bool
    told: bool | None
