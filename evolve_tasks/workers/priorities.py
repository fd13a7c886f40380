"""Dask priorities of the units of a run; a higher number runs first."""

from __future__ import annotations

from typing import Final

EXPAND: Final = 0  # new sources come last, but for the one that the core keeps in flight
PROCESS: Final = 10  # as in the example
MEASURE: Final = 100  # takes microseconds, and a whole list waits for it
