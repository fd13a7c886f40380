"""When each worker thread was at what, in columns of time that widen as the run goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COLUMNS = 240  # one for each four pixels of the picture
FIRST_COLUMN_S = 0.02  # the picture of a run of five seconds is full; a longer one widens them
MOST_LANES = 24  # threads that are shown one by one: more would not be read

EXPANDING, PROCESSING, FAILED = range(3)


@dataclass(slots=True)
class Lane:
    """What one thread did: busy seconds in each column, and how much failed in it."""

    worker: str
    thread: int  # that has it now
    until: float = 0.0  # when it was last seen at work, in seconds since the run began
    columns: list[list[float]] = field(
        default_factory=lambda: [[0.0] * COLUMNS for _ in (EXPANDING, PROCESSING, FAILED)]
    )


class Lanes:
    """Busy time of threads; its size does not grow with the run.

    Args:
        began: when the run began, in seconds since the epoch.

    Example:
        >>> lanes = Lanes(began=100.0)
        >>> lanes.add("tcp://one", 1, 100.0, 100.03, PROCESSING)
        >>> [round(seconds, 3) for seconds in lanes.busy()]
        [0.02, 0.01]
    """

    def __init__(self, began: float) -> None:
        self.column_s = FIRST_COLUMN_S
        self._began = began
        self._lanes: dict[str, list[Lane]] = {}  # of each worker
        self._busy = [0.0] * COLUMNS
        self._last = 0.0

    @property
    def threads(self) -> int:
        """How many threads were at work, on all workers that there were."""
        return sum(map(len, self._lanes.values()))

    def _all(self) -> list[Lane]:
        return [lane for lanes in self._lanes.values() for lane in lanes]

    def add(
        self, worker: str, thread: int, started: float, ended: float, kind: int, failed: int = 0
    ) -> None:
        """Note that a thread was at work.

        Args:
            worker: address or name of its worker.
            thread: the thread.
            started: seconds since the epoch; clocks of other machines may be ahead or behind.
            ended: likewise.
            kind: `EXPANDING` or `PROCESSING`.
            failed: how much of it failed.
        """
        start = max(0.0, started - self._began)
        stop = max(start, ended - self._began)
        while stop >= self.column_s * COLUMNS:
            self._widen()
        self._last = max(self._last, stop)
        lane = self._lane(worker, thread, start)
        lane.until = max(lane.until, stop)
        at, width = int(start / self.column_s), self.column_s
        for column in range(at, int(stop / width) + 1):
            seconds = min(stop, (column + 1) * width) - max(start, column * width)
            self._busy[column] += seconds
            if lane.columns:
                lane.columns[kind][column] += seconds
        if failed and lane.columns:
            lane.columns[FAILED][int(stop / width)] += failed

    def _lane(self, worker: str, thread: int, start: float) -> Lane:
        """The lane of a thread; one that has ended leaves its lane to the next.

        Dask starts a thread in place of each that secedes, as a nested source does.
        """
        lanes = self._lanes.setdefault(worker, [])
        for lane in lanes:
            if lane.thread == thread:
                return lane
        for lane in lanes:
            if lane.until <= start:
                lane.thread = thread
                return lane
        # Where threads are many, what they did one by one is not kept.
        lane = (
            Lane(worker, thread, columns=[]) if self.threads >= MOST_LANES else Lane(worker, thread)
        )
        lanes.append(lane)
        return lane

    def _widen(self) -> None:
        self.column_s *= 2
        self._busy = _halved(self._busy)
        for lane in self._all():
            lane.columns = [_halved(columns) for columns in lane.columns]

    def busy(self) -> list[float]:
        """Busy seconds of all threads, in each column."""
        return self._busy[: self.columns]

    @property
    def columns(self) -> int:
        """Columns in which something happened, from the first on."""
        return min(COLUMNS, int(self._last / self.column_s) + 1)

    def facts(self) -> dict[str, Any]:
        """All of it, ready for JSON: one entry for each thread that is shown, oldest first."""
        threads = []
        for worker, lanes in enumerate(self._lanes.values()):
            for number, lane in enumerate(lanes):
                if not lane.columns:
                    continue
                expanding, processing, failed = (
                    [round(value, 4) for value in columns[: self.columns]]
                    for columns in lane.columns
                )
                threads.append(
                    {
                        "name": f"{worker}.{number}",
                        "worker": lane.worker,
                        "expanding_s": expanding,
                        "processing_s": processing,
                        "failed": [int(count) for count in failed],
                    }
                )
        return {
            "column_s": self.column_s,
            "threads": self.threads,
            "busy_s": [round(value, 4) for value in self.busy()],
            "lanes": threads,
        }


def _halved(columns: list[float]) -> list[float]:
    pairs = zip(columns[::2], columns[1::2], strict=True)
    return [one + other for one, other in pairs] + [0.0] * (COLUMNS // 2)
