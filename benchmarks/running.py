"""Measures sections one after another, tells each row at once, and shows the table at the end."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.cluster import Cluster
from benchmarks.sizes import Sizes
from benchmarks.table import HEAD, Row, Run, Section, cells

WIDTH = 180  # columns of the table, whatever the terminal has: it is read in logs


class SectionModule(Protocol):
    """A module that measures one section of the table."""

    TITLE: str
    READING: str

    def measure(self, cluster: Cluster, sizes: Sizes, /) -> Iterator[Row]:
        """Give the rows, each as soon as it is known."""
        ...


@dataclass(slots=True)
class Measuring:
    """What has been measured so far.

    Args:
        run: grows with each section.
        sizes: how much is measured.
        failed: whether a section ended with an error.
    """

    run: Run
    sizes: Sizes
    failed: bool = False

    def add(self, module: SectionModule, cluster: Cluster) -> None:
        """Measure a section; an error in it becomes a row, and the others are still measured."""
        section = Section(module.TITLE, module.READING)
        self.run.sections.append(section)
        print(f"\n{section.title}", flush=True)
        try:
            for row in module.measure(cluster, self.sizes):
                section.rows.append(row)
                print("  " + " | ".join(filter(None, cells(row))), flush=True)
        except Exception as error:
            traceback.print_exc()
            self.failed = True
            section.rows.append(Row(f"**ended with {type(error).__name__}**", ""))

    def show(self) -> None:
        """Show all of it as one table."""
        table = Table(*HEAD)
        for section in self.run.sections:
            table.add_section()
            table.add_row(f"[bold]{escape(section.title)}")
            for row in section.rows:
                table.add_row(*map(escape, cells(row)))
        Console(width=WIDTH).print(table)
