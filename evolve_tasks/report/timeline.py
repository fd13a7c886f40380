"""The timeline of a run as a picture: a lane for each worker thread, and above them how busy."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import ceil
from typing import Any

# Characters of the picture. In an artifact they become a third more, and stay below 200 KB.
LARGEST = 140_000

# Readable on the light theme and on the dark one: neither near white nor near black.
EXPANDING = "#3b82f6"
PROCESSING = "#14b8a6"
FAILED = "#ef4444"
INK = "#758095"
TINY = 0.05  # of a level: less is not drawn
LEVELS = 8  # heights of a column that was busy for a part of its time

WIDTH, LEFT, RIGHT = 960, 52, 12
CURVE, LANE, GAP, TOP, BOTTOM = 64, 16, 4, 34, 30


def timeline_svg(timeline: Mapping[str, Any], duration_s: float) -> str:
    """Draw a timeline.

    Args:
        timeline: as `Lanes.facts` gives it.
        duration_s: seconds that the run took, or has taken so far.

    Returns:
        A whole SVG document of bounded size, however long the run.

    Example:
        >>> from evolve_tasks.report.lanes import Lanes
        >>> timeline_svg(Lanes(0.0).facts(), 1.0).startswith("<svg")
        True
    """
    lanes = list(timeline["lanes"])
    while True:
        picture = "".join(_drawn(timeline, lanes, duration_s))
        if len(picture) <= LARGEST or not lanes:
            return picture
        lanes = lanes[: len(lanes) // 2]


def timeline_image(timeline: Mapping[str, Any], duration_s: float) -> str:
    """Draw a timeline as the address of an image, which markdown and HTML show."""
    picture = timeline_svg(timeline, duration_s).encode()
    return "data:image/svg+xml;base64," + b64encode(picture).decode()


def _drawn(
    timeline: Mapping[str, Any], lanes: Sequence[Mapping[str, Any]], duration_s: float
) -> Iterator[str]:
    column_s, threads = timeline["column_s"], timeline["threads"]
    busy = timeline["busy_s"]
    span_s = max(duration_s, column_s * len(busy), column_s)
    lanes_at = TOP + CURVE + 14
    height = lanes_at + len(lanes) * (LANE + GAP) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / span_s
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="system-ui,sans-serif" font-size="11" '
        f'fill="{INK}"><title>Timeline of {threads} worker threads</title>'
    )
    yield from _legend(threads, len(lanes))
    # A cluster may have grown since the run began.
    at_once = ceil(max(busy, default=0.0) / column_s - TINY) if column_s else 0
    most = max(timeline.get("cluster_threads") or threads, at_once)
    yield from _curve(busy, column_s, most, scale)
    yield from _axis(span_s, scale, height - BOTTOM + 4)
    for number, lane in enumerate(lanes):
        y = lanes_at + number * (LANE + GAP)
        yield (
            f'<text x="{LEFT - 6}" y="{y + 12}" text-anchor="end">{escape(str(lane["name"]))}'
            f"</text>"
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - RIGHT}" height="{LANE}" '
            f'fill="{INK}" opacity=".1"/>'
        )
        yield from _lane(lane, column_s, scale, y)
    yield "</svg>"


def _legend(threads: int, shown: int) -> Iterator[str]:
    x = LEFT
    for colour, word in ((EXPANDING, "expanding"), (PROCESSING, "processing"), (FAILED, "failed")):
        yield f'<rect x="{x}" y="9" width="10" height="10" rx="2" fill="{colour}"/>'
        yield f'<text x="{x + 15}" y="18">{word}</text>'
        x += 92
    hidden = f", {shown} of them shown one by one" if shown < threads else ""
    words = f"{threads} worker thread{'' if threads == 1 else 's'}{hidden}"
    yield f'<text x="{WIDTH - RIGHT}" y="18" text-anchor="end">{words}</text>'


def _curve(busy: Sequence[float], column_s: float, threads: int, scale: float) -> Iterator[str]:
    bottom = TOP + CURVE
    yield (
        f'<path d="M{LEFT} {TOP}H{WIDTH - RIGHT}M{LEFT} {bottom}H{WIDTH - RIGHT}" '
        f'stroke="{INK}" opacity=".35" stroke-dasharray="2 4"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">100%</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">busy</text>'
    )
    if not busy or not threads:
        return
    points = []
    for seconds in busy:
        share = min(1.0, seconds / (column_s * threads))
        points.append(f"V{bottom - share * CURVE:.0f}h{column_s * scale:.1f}")
    yield (
        f'<path d="M{LEFT} {bottom}{"".join(points)}V{bottom}Z" fill="{PROCESSING}" opacity=".3"/>'
    )


def _axis(span_s: float, scale: float, y: int) -> Iterator[str]:
    step = _step(span_s)
    marks = []
    number = 0
    while number * step <= span_s:
        x = LEFT + number * step * scale
        marks.append(f"M{x:.0f} {TOP}V{y}")
        yield f'<text x="{x:.0f}" y="{y + 13}" text-anchor="middle">{_clock(number * step)}</text>'
        number += 1
    yield f'<path d="{"".join(marks)}" stroke="{INK}" opacity=".18"/>'


def _step(span_s: float) -> float:
    """A round number of seconds of which four to nine fit."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900):
        if span_s / step <= 9:
            return float(step)
    hour = 1800.0
    while span_s / hour > 9:
        hour *= 2
    return hour


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02} min"
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02} h"


def _lane(lane: Mapping[str, Any], column_s: float, scale: float, y: int) -> Iterator[str]:
    expanding, processing = lane["expanding_s"], lane["processing_s"]
    # What expanded stands below what processed, where a column has both.
    below = [min(1.0, seconds / column_s) for seconds in expanding]
    above = [min(1.0 - one, s / column_s) for one, s in zip(below, processing, strict=True)]
    width = column_s * scale
    for colour, shares, floor in (
        (EXPANDING, below, [0.0] * len(below)),
        (PROCESSING, above, below),
    ):
        drawn: list[str] = []
        for start, stop, share, low in _runs(shares, floor):
            top = y + LANE * (1.0 - low - share)
            drawn.append(
                f"M{LEFT + start * width:.1f} {top:.1f}h{(stop - start) * width:.1f}"
                f"v{LANE * share:.1f}h-{(stop - start) * width:.1f}z"
            )
        if drawn:
            yield f'<path d="{"".join(drawn)}" fill="{colour}"/>'
    marks = "".join(
        f"M{LEFT + column * width:.1f} {y - 2}v{LANE + 4}"
        for column, failed in enumerate(lane["failed"])
        if failed
    )
    if marks:
        yield f'<path d="{marks}" stroke="{FAILED}" stroke-width="2"/>'


def _runs(
    shares: Sequence[float], floors: Sequence[float]
) -> Iterator[tuple[int, int, float, float]]:
    """Columns that look the same, taken together: start, stop, share and where it stands."""
    at = 0
    steps = []
    for share, floor in zip(shares, floors, strict=True):
        low = ceil(floor * LEVELS - TINY)
        # Rounded up, so that what was short is seen.
        steps.append((min(LEVELS - low, ceil(share * LEVELS - TINY)) / LEVELS, low / LEVELS))
    while at < len(steps):
        stop = at + 1
        while stop < len(steps) and steps[stop] == steps[at]:
            stop += 1
        share, floor = steps[at]
        if share:
            yield at, stop, share, floor
        at = stop
