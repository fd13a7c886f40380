"""What is gathered of a run while it is under way; its size does not grow with the run."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any, NamedTuple

from evolve_tasks.naming import LABEL, one_line
from evolve_tasks.report.lanes import EXPANDING, PROCESSING, Lanes

SLOWEST = 10  # sources and items that are named
GROUPS = 30  # kinds of failure that are told apart; the rest is counted as "other"
EXAMPLES = 3  # failures of each kind that are shown


class When(NamedTuple):
    """When and where a unit ran: seconds since the epoch, worker, thread."""

    started: float
    ended: float
    worker: str
    thread: int


@dataclass(slots=True)
class Units:
    """Sizes of a stage's units."""

    count: int = 0
    items: int = 0
    smallest: int = 0
    largest: int = 0

    def add(self, size: int) -> None:
        """Take in a unit."""
        self.smallest = min(self.smallest, size) if self.count else size
        self.largest = max(self.largest, size)
        self.count += 1
        self.items += size

    def facts(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "count": self.count,
            "items": self.items,
            "smallest": self.smallest,
            "largest": self.largest,
            "mean": round(self.items / self.count, 1) if self.count else 0.0,
        }


class Slowest:
    """The slowest of what was timed.

    Example:
        >>> slowest = Slowest()
        >>> for seconds in range(20):
        ...     slowest.add(float(seconds), {"name": f"file {seconds}"})
        >>> slowest.facts()[0]
        {'name': 'file 19', 'seconds': 19.0}
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, dict[str, Any]]] = []
        self._number = count()  # so that what is equally slow need not be comparable

    def add(self, seconds: float, facts: dict[str, Any]) -> None:
        """Take in what was timed."""
        entry = seconds, -next(self._number), facts
        if len(self._heap) < SLOWEST:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def facts(self) -> list[dict[str, Any]]:
        """The slowest first, ready for JSON."""
        return [
            {**facts, "seconds": round(seconds, 4)}
            for seconds, _, facts in sorted(self._heap, reverse=True)
        ]


@dataclass(slots=True)
class Timed:
    """Work on a source and its items, and how many there are."""

    seconds: float = 0.0
    items: int = 0


@dataclass(slots=True)
class Group:
    """Failures of one stage with one type of error."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


class Story:
    """What a run leaves for its report.

    Args:
        began: when it began, in seconds since the epoch.
        stages: names of its stages.
        threads: worker threads of the cluster when it began; 0 if nobody knows.
    """

    def __init__(self, began: float, stages: Sequence[str], threads: int = 0) -> None:
        self.began = began
        self.stages = tuple(stages)
        self._threads = threads
        self.lanes = Lanes(began)
        self._units = [Units() for _ in stages]
        self._fan_outs: Counter[int] = Counter()  # by number of binary digits
        self._largest = self._smallest = self._sources = self._items = 0
        self._slow_sources = Slowest()
        self._slow_items = Slowest()
        self._open: dict[int, Timed] = {}  # sources that have not ended
        self._groups: dict[tuple[str, str], Group] = {}
        # Told by the thread that drives the run, asked by the one that publishes.
        self._lock = Lock()

    @property
    def batch(self) -> float | None:
        """Mean number of items in a unit of the last stage; `None` before there was one."""
        units = self._units[-1]
        return units.items / units.count if units.count else None

    def expanded(
        self,
        when: When,
        sizes: Sequence[tuple[int, int | None]],
        *,
        parse_s: float,
        inline_s: float,
        inline: int,
        failed: int,
        found: Sequence[int] = (),
        stage: int = 0,
        sources: bool = True,
    ) -> None:
        """Note a unit that expanded sources, or items of an inner stage.

        Args:
            when: when and where.
            sizes: of each the position of its source, and what it gave; `None` if it failed.
            parse_s: seconds that expanding took, all of them together.
            inline_s: seconds that items took which were worked on at once.
            inline: how many those were.
            failed: sources and items that failed.
            found: of each, the items of the last stage that its own have found.
            stage: position of the stage that expanded them.
            sources: whether it expanded sources, and not what was found for their stage.
        """
        worked = parse_s + inline_s
        share = parse_s / worked if worked > 0 else 1.0
        between = when.started + (when.ended - when.started) * share
        with self._lock:
            self._units[stage].add(len(sizes))
            if inline:
                self._units[-1].add(inline)
            for (position, size), more in zip(sizes, found or [0] * len(sizes), strict=True):
                timed = self._open.setdefault(position, Timed())
                timed.seconds += worked / len(sizes)
                timed.items += more
                if stage == len(self.stages) - 2:
                    timed.items += size or 0
                if size is not None and stage == 0 and sources:
                    self._note_size(size)
            self._at_work(when._replace(ended=between), EXPANDING, 0 if inline else failed)
            if inline:
                self._at_work(when._replace(started=between), PROCESSING, failed)

    def _note_size(self, size: int) -> None:
        self._smallest = min(self._smallest, size) if self._sources else size
        self._largest = max(self._largest, size)
        self._fan_outs[size.bit_length()] += 1
        self._sources += 1
        self._items += size

    def processed(
        self,
        when: When,
        position: int,
        label: str,
        size: int,
        worked_s: float,
        failed: int,
        found: int = 0,
    ) -> None:
        """Note a batch of items.

        Args:
            when: when and where.
            position: position of their source.
            label: their name.
            size: how many of them ran.
            worked_s: seconds that they took.
            failed: how many failed.
            found: items of the last stage that they have found.
        """
        if not size:
            return
        with self._lock:
            self._units[-1].add(size)
            self._at_work(when, PROCESSING, failed)
            self._slow_items.add(worked_s / size, {"name": label, "count": size})
            if position in self._open:
                self._open[position].seconds += worked_s
                self._open[position].items += found

    def beside(self, when: When, failed: int) -> None:
        """Note what was done beside the stages: a source was collected, or results combined.

        Args:
            when: when and where.
            failed: how much of it failed.
        """
        with self._lock:
            self._at_work(when, PROCESSING, failed)

    def _at_work(self, when: When, kind: int, failed: int) -> None:
        if when.worker:
            self.lanes.add(when.worker, when.thread, when.started, when.ended, kind, failed)

    def source_done(self, position: int, label: str) -> None:
        """Note that a source and all that came from it have ended."""
        with self._lock:
            timed = self._open.pop(position, None)
            if timed is not None:
                self._slow_sources.add(timed.seconds, {"name": label, "items": timed.items})

    def failed(
        self, stage: str, error_type: str, what: str, message: str, task_run: str | None
    ) -> None:
        """Note a failure.

        Args:
            stage: name of its stage.
            error_type: class name of its error.
            what: what failed.
            message: the text of the error.
            task_run: id of its task run, if it has one.
        """
        key = stage, error_type
        with self._lock:
            if key not in self._groups and len(self._groups) >= GROUPS:
                key = stage, "other"
            group = self._groups.setdefault(key, Group())
            group.count += 1
            if len(group.examples) < EXAMPLES:
                group.examples.append(
                    {
                        "what": one_line(what, LABEL),
                        "message": one_line(message, 4 * LABEL),
                        "task_run": task_run,
                    }
                )

    def facts(self) -> dict[str, Any]:
        """All of it, ready for JSON; may be asked for by another thread."""
        with self._lock:
            return self._facts()

    def _facts(self) -> dict[str, Any]:
        return {
            "stages": list(self.stages),
            "units": {
                stage: units.facts() for stage, units in zip(self.stages, self._units, strict=True)
            },
            "fan_out": self._fan_out_facts(),
            "slowest_sources": self._slow_sources.facts(),
            "slowest_items": self._slow_items.facts(),
            "failure_groups": [
                {
                    "stage": stage,
                    "error_type": error_type,
                    "count": group.count,
                    "examples": list(group.examples),
                }
                for (stage, error_type), group in sorted(
                    self._groups.items(), key=lambda entry: -entry[1].count
                )
            ],
            "timeline": {**self.lanes.facts(), "cluster_threads": self._threads},
        }

    def _fan_out_facts(self) -> dict[str, Any]:
        if not self._sources:
            return {"sources": 0}
        return {
            "sources": self._sources,
            "smallest": self._smallest,
            "largest": self._largest,
            "mean": round(self._items / self._sources, 1),
            "histogram": [
                {
                    "from": 1 << (digits - 1) if digits else 0,
                    "to": (1 << digits) - 1 if digits else 0,
                    "sources": number,
                }
                for digits, number in sorted(self._fan_outs.items())
            ],
        }
