"""What the core asks for. Every `Pull`, `Expand` and `Process` is answered by one event.

| action | means | answered by exactly one of |
|---|---|---|
| `Pull` | take the next sources | `sources_arrived` |
| `Expand` | run an expanding stage | `expanded`, `expansion_lost`, `crashed` |
| `Process` | run the last stage on consecutive items | `processed`, `crashed` |
| `Release` | the lists of a unit are not needed any more | nothing |
| `SourceDone` | all that came from a source has ended | nothing |
"""

from __future__ import annotations

from typing import NamedTuple


class Pull(NamedTuple):
    """Take up to `most` sources."""

    most: int


class Expand(NamedTuple):
    """Run stage `stage` on the items `start` to `stop` (exclusive) of a list.

    Stage 0 runs on sources: there `parent` is -1, and positions are those of the sources. A
    list of at most `inline` items is worked on where it was found. Workers have died with it
    `crashes` times.
    """

    unit: int
    stage: int
    source: int
    parent: int
    offset: int
    start: int
    stop: int
    inline: int
    crashes: int = 0


class Process(NamedTuple):
    """Run the last stage on the items `start` to `stop` of list `offset` of unit `parent`.

    Workers have died with them `crashes` times.
    """

    unit: int
    stage: int
    source: int
    parent: int
    offset: int
    start: int
    stop: int
    crashes: int = 0


class Release(NamedTuple):
    """All lists that unit `unit` gave have ended: they can be forgotten."""

    unit: int


class SourceDone(NamedTuple):
    """Everything that came from source `source` has ended."""

    source: int


Action = Pull | Expand | Process | Release | SourceDone


class Found(NamedTuple):
    """How the expansion of one item ended, part of the answer to an `Expand`.

    Args:
        size: how many items it gave.
        ended: how many of them, from the first on, were worked on where they were found.
        failed: how many of those failed.
        not_run: how many of those were not begun, because the run had been stopped.
        lost: the expansion itself failed.
        skipped: the expansion was not begun, because the run had been stopped.
        orphans: items that were lost with the worker that they ran on, as ranges in order;
            with them `ended` counts all others, wherever they stand.
    """

    size: int = 0
    ended: int = 0
    failed: int = 0
    not_run: int = 0
    lost: bool = False
    skipped: bool = False
    orphans: tuple[tuple[int, int], ...] = ()
