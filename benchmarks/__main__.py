"""Measure everything in one run, print one table, and write RESULTS.md: `make bench`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.cluster import prefect_server
from benchmarks.command_line import home, leave_in_order, wanted

NAMES = ("throughput", "stock", "durations", "first", "growth", "journal", "seen", "core", "skew")


def main() -> int:
    """Measure; a target that is missed is shown, and fails nothing."""
    asked = wanted("python -m benchmarks", __doc__ or "", NAMES)
    leave_in_order()
    with home() as directory, prefect_server(Path(directory) / "prefect"):
        # Prefect reads its settings when it is imported, and now they are those of our server.
        from benchmarks.results import keep
        from benchmarks.suite import measure

        measuring = measure(asked.command, Path(directory), asked.sizes, asked.only or NAMES)
    measuring.show()
    if asked.into is not None:
        keep(measuring.run, asked.into)
    return int(measuring.failed)


if __name__ == "__main__":
    sys.exit(main())
