"""Measure peers beside evolve in one run, and add them to RESULTS.md: `make bench-peers`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.cluster import prefect_server
from benchmarks.command_line import home, leave_in_order, wanted

NAMES = ("ray", "threads")


def main() -> int:
    """Measure; evolve's own rows are measured again, so that ratios are of one run."""
    asked = wanted("python -m benchmarks.peers", __doc__ or "", NAMES)
    leave_in_order()
    with home() as directory, prefect_server(Path(directory) / "prefect"):
        # Prefect reads its settings when it is imported, and now they are those of our server.
        from benchmarks import beside_ray, beside_threads
        from benchmarks.machine import machine
        from benchmarks.results import keep
        from benchmarks.running import Measuring, SectionModule
        from benchmarks.suite import measure_on
        from benchmarks.table import Run

        sections: dict[str, SectionModule] = {"ray": beside_ray, "threads": beside_threads}
        measuring = Measuring(Run(asked.command, machine(), []), asked.sizes)
        chosen = [sections[name] for name in asked.only or NAMES]
        measure_on(measuring, Path(directory) / "dask", 1, chosen)
    measuring.show()
    if asked.into is not None:
        keep(measuring.run, asked.into)
    return int(measuring.failed)


if __name__ == "__main__":
    sys.exit(main())
