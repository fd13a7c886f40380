"""The rates of the table as bars, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log10
from xml.etree import ElementTree

import pygal  # type: ignore[import-untyped]
from pygal.style import Style  # type: ignore[import-untyped]

from benchmarks.table import Run, short

SVG = "http://www.w3.org/2000/svg"
ROW_PX, MARGIN_PX = 26, 110
# Grey text and no background: readable on a light page and on a dark one.
STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="#888888",
    foreground_strong="#888888",
    foreground_subtle="#88888855",
    font_family="system-ui, sans-serif",
    title_font_size=15,
    label_font_size=12,
    major_label_font_size=12,
    value_font_size=12,
    opacity="1",
    value_colors=("#ffffff",),
    guide_stroke_color="#88888855",
    major_guide_stroke_color="#88888855",
    colors=("#3b82c4", "#e4882b", "#4c9f70", "#8e6bb0"),
)


def svg(runs: Sequence[Run]) -> str:
    """Draw every row that has a rate; who ran it has a colour."""
    rows = [row for run in runs for section in run.sections for row in section.rows if row.rate]
    colors: dict[str, str] = {}
    labels: list[str] = []
    bars: list[dict[str, object]] = []
    for row in rows:
        who = row.what.split(",")[0]
        colors.setdefault(who, STYLE.colors[len(colors) % len(STYLE.colors)])
        labels.append(f"{row.what}, {row.work}")
        bars.append({"value": row.rate, "color": colors[who]})
    decades = _decades([row.rate for row in rows if row.rate] or [1.0])
    chart = pygal.HorizontalBar(
        style=STYLE,
        js=[],
        title="Items per second, on a logarithmic axis",
        width=960,
        height=MARGIN_PX + ROW_PX * len(bars),
        range=(decades[0], decades[-1]),
        logarithmic=True,
        zero=decades[0],  # where bars begin
        print_values=True,
        show_legend=False,
        value_formatter=short,
        truncate_label=-1,
    )
    chart.y_labels = decades
    # The first row of the table stands at the top, and bars are drawn from the bottom up.
    chart.x_labels = labels[::-1]
    chart.add("", bars[::-1])
    return _still(chart.render())


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten from the one below the least value to the one above the largest."""
    # Strictly below, so that the least one is a bar, too.
    least, largest = ceil(log10(min(values))) - 1, ceil(log10(max(values)))
    return [10.0**power for power in range(least, largest + 1)]


def _still(drawn: bytes) -> str:
    """Leave out the scripts: a page that shows an image runs none."""
    ElementTree.register_namespace("", SVG)
    tree = ElementTree.fromstring(drawn)
    for parent in tree.iter():
        for child in [child for child in parent if child.tag == f"{{{SVG}}}script"]:
            parent.remove(child)
    return ElementTree.tostring(tree, encoding="unicode") + "\n"
