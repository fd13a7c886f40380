"""Dask priorities of the units of a run; a higher number runs first."""

from __future__ import annotations

from typing import Final

EXPAND: Final = 0  # sources that the core puts behind all items
PROCESS: Final = 10  # as in the example; so are expansions that take their turn among the items
# A source that submits its items itself: among equals Dask puts what a task submits before all
# that the flow has submitted since, and a long parse would be begun last.
NESTED: Final = 11
MEASURE: Final = 100  # takes microseconds, and a whole list waits for it
