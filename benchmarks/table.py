"""Rows with their ratios and targets, and the one table that they make in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True)
class Spread:
    """What was measured several times.

    Args:
        median: the middle one.
        low: the smallest.
        high: the largest.
        count: how many there are (N >= 1).
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Sum up N >= 1 values."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        """The median, and from where to where they go if there are several."""
        if self.count == 1:
            return short(self.median)
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


@dataclass(frozen=True, slots=True)
class Target:
    """What the project states of a ratio.

    Args:
        median_at_most: upper bound for the median; `None` for none.
        worst_at_most: bound for the largest value; `None` for none.
        median_at_least: lower bound for the median; `None` for none.
    """

    median_at_most: float | None = None
    worst_at_most: float | None = None
    median_at_least: float | None = None

    def met(self, ratio: Spread) -> bool:
        """Whether what was measured keeps every bound."""
        return (
            (self.median_at_most is None or ratio.median <= self.median_at_most)
            and (self.worst_at_most is None or ratio.high <= self.worst_at_most)
            and (self.median_at_least is None or ratio.median >= self.median_at_least)
        )

    def __str__(self) -> str:
        """The bounds."""
        bounds = [
            f"{name} {bound:g}"
            for name, bound in (
                ("median ≤", self.median_at_most),
                ("worst ≤", self.worst_at_most),
                ("median ≥", self.median_at_least),
            )
            if bound is not None
        ]
        return ", ".join(bounds)


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was measured.

    Args:
        what: what ran.
        work: on which work.
        ratio: beside what its section says; `None` where there is nothing beside it.
        figure: the absolute figures, which drift with the machine.
        rate: items per second, for the plot; `None` where that means nothing.
        target: what the project states of the ratio.
    """

    what: str
    work: str
    ratio: Spread | None = None
    figure: str = ""
    rate: float | None = None
    target: Target | None = None

    @property
    def verdict(self) -> str:
        """Whether the target was met: yes, **no**, or nothing where there is none."""
        if self.target is None:
            return ""
        if self.ratio is None:
            return "**not measured**"
        return "yes" if self.target.met(self.ratio) else "**no**"


@dataclass(frozen=True, slots=True)
class Section:
    """Rows that are read the same way.

    Args:
        title: what they are about.
        reading: what the ratio is, and how it was measured.
        rows: the rows.
    """

    title: str
    reading: str
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one command; ratios hold within it, not between two of them.

    Args:
        command: what was called.
        machine: what it ran on, line by line.
        sections: what was measured.
    """

    command: str
    machine: list[str]
    sections: list[Section]


HEAD = ("what", "work", "ratio", "figures", "target of the ratio", "met")


def short(value: float) -> str:
    """Three digits that matter: 0.0123, 1.03, 12.3, 4,560."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def cells(row: Row) -> tuple[str, ...]:
    """What stands in a line of the table, in the order of `HEAD`."""
    ratio = "" if row.ratio is None else str(row.ratio)
    target = "" if row.target is None else str(row.target)
    return row.what, row.work, ratio, row.figure, target, row.verdict


def markdown(runs: Sequence[Run]) -> str:
    """Write RESULTS.md: one table, then how to read it and what it was measured on."""
    lines = ["# Results", "", _line(HEAD), "|---|---|---|---|---|---|"]
    sections = [section for run in runs for section in run.sections]
    for section in sections:
        lines.append(_line((f"**{section.title}**", "", "", "", "", "")))
        lines += [_line(cells(row)) for row in section.rows]
    lines += ["", "![Items per second](results.svg)", "", "How to read the ratios:", ""]
    lines.append(
        "- Both sides run in turns; each round has its ratio, shown is the median of the rounds "
        "and from where to where they go. A row without a target has none stated."
    )
    lines += [f"- **{section.title}**: {section.reading}" for section in sections]
    for run in runs:
        lines += ["", f"Measured with `{run.command}`:", ""]
        lines += [f"- {line}" for line in run.machine]
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"
