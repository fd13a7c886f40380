"""What a run was measured on: enough to judge figures by, not whose machine it is."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import psutil  # type: ignore[import-untyped]
from dask.system import CPU_COUNT

PACKAGES = ("evolve-tasks", "prefect", "prefect-dask", "dask", "distributed", "numpy", "psutil")


def machine() -> list[str]:
    """Describe this machine as it is now."""
    memory = psutil.virtual_memory().total / 1e9
    return [
        datetime.now(UTC).strftime("%Y-%m-%d, %H:%M UTC"),
        f"{CPU_COUNT} cores, {memory:.0f} GB, {platform.system()} on {platform.machine()}; "
        f"load average before the first row {os.getloadavg()[0]:.1f}",
        f"{platform.python_implementation()} {platform.python_version()}; "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    ]
