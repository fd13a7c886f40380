"""What comes back to the flow from what it asked for, and how it is read there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from distributed import KilledWorker

from evolve_tasks.core.actions import Found
from evolve_tasks.core.suspects import MOST_DEATHS
from evolve_tasks.feeding import Arrival
from evolve_tasks.naming import short_repr
from evolve_tasks.outcome import Failure
from evolve_tasks.unreadable import RULE, Salvaged
from evolve_tasks.workers.calls import (
    BatchResult,
    Collected,
    Combined,
    Discovery,
    Measure,
    NestedResult,
    SourceEnd,
    Together,
)
from evolve_tasks.workers.failing import failure_from
from evolve_tasks.workers.salvaging import Unreadable, salvaged
from evolve_tasks.workers.streaming import Chunk
from evolve_tasks.workers.transport import Packed, Unpacked


@dataclass(frozen=True, slots=True)
class Lost:
    """A unit that Dask gave up: its worker died with it, or it could not be sent."""

    error: BaseException

    @property
    def crashed(self) -> bool:
        """Whether its worker died with it."""
        return isinstance(self.error, KilledWorker)


@dataclass(frozen=True, slots=True)
class Followed:
    """What was held back is to be taken apart; nobody had to be asked."""


FOLLOWED = Followed()

Answer = (
    Measure
    | BatchResult
    | NestedResult
    | Together
    | Collected
    | Combined
    | Lost
    | Arrival
    | Chunk
    | Followed
)

PULLED = -1  # in place of a unit: what a `Pull` has brought


def readable(answer: Answer) -> Answer:
    """Unpack the values of an answer; set apart what cannot be unpacked here.

    A value may be pickled on a worker and yet not be unpickled in the flow: its class is not
    there, or takes other arguments than it passes on.
    """
    parts: list[Measure | BatchResult | Collected] = []
    match answer:
        case Chunk():
            return _read(answer)
        case Collected():
            parts = [answer]
        case Measure() | BatchResult():
            parts = [answer]
        case NestedResult():
            parts = [answer.measure, *(batch.result for batch in answer.batches)]
    for part in parts:
        try:
            if isinstance(part, Collected):
                part.value = Unpacked(part.value.value())
                continue
            part.values = _values_of(part)
            if isinstance(part, Measure) and part.items is not None:
                part.items = Unpacked(part.items.elements())
            for one in _discoveries_of(part):
                one.items = Unpacked(one.items.value())
        except Exception as error:
            return Lost(
                TypeError(
                    "results came back, but cannot be unpickled in the flow's process "
                    f"({type(error).__name__}: {error}); {RULE}"
                )
            )
    return answer


def _values_of(part: Measure | BatchResult) -> Unpacked:
    try:
        return Unpacked(part.values.value())
    except Exception:
        if _discoveries_of(part) or _combined(part):
            raise  # it led further, or is in what all of them come to
        levels = 1 if isinstance(part, BatchResult) else 2
        return Salvaged(salvaged(part.values.payload, levels))


def _combined(part: Measure | BatchResult) -> bool:
    if isinstance(part, BatchResult):
        return part.parts is not None
    return any(end.parts is not None for end in part.ends)


def _read(chunk: Chunk) -> Chunk:
    try:
        return chunk._replace(items=Packed(chunk.payload).value(), payload=b"")
    except Exception as error:
        try:
            items = salvaged(chunk.payload, 1)
        except Exception:
            return chunk._replace(
                unreadable="it was given on the way, and cannot be unpickled in the flow's process "
                f"({type(error).__name__}: {error}); give plain values, or see that their classes "
                "are installed there and can be made from what they pickle"
            )
    # Whoever is to work on one of them tells of it.
    marked = [
        replace(item, error=f"{item.error}, in the flow's process")
        if type(item) is Unreadable
        else item
        for item in items
    ]
    return chunk._replace(items=marked, payload=b"")


def _discoveries_of(part: Measure | BatchResult) -> Sequence[Discovery]:
    if isinstance(part, BatchResult):
        return part.discoveries
    return [one for end in part.ends for one in end.discoveries]


def failure_of(lost: Lost, stage: str, index: tuple[int, ...], item: Any) -> Failure:
    """Describe what was lost as a failure, without its source."""
    if not isinstance(lost.error, KilledWorker):
        return failure_from(lost.error, stage=stage, index=index, item=item)
    return Failure(
        stage=stage,
        source=None,
        index=index,
        item=short_repr(item),
        error_type="KilledWorker",
        message=f"{MOST_DEATHS} workers died while they worked on it, the last time on it alone "
        f"({lost.error.last_worker.address}): it was out of memory, or its code ends the process; "
        "the worker's own log may say more",
        attempts=MOST_DEATHS,
        crashed=True,
    )


def found_of(end: SourceEnd) -> Found:
    """How the expansion of one source ended, for the core."""
    failed, lost = len(end.failures), end.failure is not None
    return _found(end.size, end.ended, failed, end.not_run, lost, end.skipped, end.given)


# Most sources end as others did.
@lru_cache(maxsize=1_024)
def _found(
    size: int, ended: int, failed: int, not_run: int, lost: bool, skipped: bool, start: int
) -> Found:
    return Found(size, ended, failed, not_run, lost, skipped, start=start)


def found_nested(answer: NestedResult) -> list[Found]:
    """What became of the items of a nested unit.

    They have ended on the spot or in its batches, were never begun, or their worker died.
    """
    done = [end.ended - end.not_run for end in answer.measure.ends]
    failed = [len(end.failures) for end in answer.measure.ends]
    orphans: list[list[tuple[int, int]]] = [[] for _ in answer.measure.ends]
    for batch in answer.batches:
        done[batch.offset] += batch.stop - batch.start - batch.result.not_run
        failed[batch.offset] += len(batch.result.failures)
    for one in answer.orphans:
        orphans[one.offset].append((one.start, one.stop))
    found = []
    for offset, end in enumerate(answer.measure.ends):
        ended = end.size - sum(stop - start for start, stop in orphans[offset])
        found.append(
            found_of(end)._replace(
                ended=ended,
                failed=failed[offset],
                not_run=ended - done[offset],
                left=tuple(sorted(orphans[offset])) or None,
                orphaned=bool(orphans[offset]),
            )
        )
    return found
