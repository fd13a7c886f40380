"""What the core asks for. Every `Pull`, `Expand` and `Process` is answered by one event.

| action | means | answered by exactly one of |
|---|---|---|
| `Pull` | take the next source | `source_arrived`, `sources_ended` |
| `Expand` | run an expanding stage | `expanded`, `ran_whole`, `expansion_failed`, `…_not_run` |
| `Process` | run the last stage on consecutive items | `processed` |
| `Release` | the list of a node is not needed any more | nothing |
| `SourceDone` | all that came from a source has ended | nothing |
"""

from __future__ import annotations

from typing import NamedTuple


class Pull(NamedTuple):
    """Take the next source from the sources."""


class Expand(NamedTuple):
    """Run stage `stage` on the item at `position` of node `parent`.

    Stage 0 runs on sources: there `parent` is -1 and `position` is the source's own.
    """

    unit: int
    stage: int
    source: int
    parent: int
    position: int


class Process(NamedTuple):
    """Run the last stage on the items `start` to `stop` (exclusive) of node `parent`."""

    unit: int
    stage: int
    source: int
    parent: int
    start: int
    stop: int


class Release(NamedTuple):
    """All items of node `node` have ended: its list can be forgotten."""

    node: int


class SourceDone(NamedTuple):
    """Everything that came from source `source` has ended."""

    source: int


Action = Pull | Expand | Process | Release | SourceDone
