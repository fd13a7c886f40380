"""What the project states of ratios, in one place; a row without a target has none stated."""

from __future__ import annotations

from benchmarks.table import Target

# Beside plain Dask: a tenth of a second pays for an item's way through evolve many times over.
LONG_ITEMS = Target(median_at_most=1.03)

# Beside plain Dask's item by item: many items in a source, and few.
MANY_ITEMS = Target(median_at_least=100)
FEW_ITEMS = Target(median_at_least=15)

# Beside the stock runner, each item a task run of its own.
TASK_RUNS = Target(median_at_least=10)

# With a journal over without one.
JOURNAL = Target(median_at_most=1.10)

# With all that Prefect shows over with nothing of it.
SEEN = Target(median_at_most=1.05)

# Ray's rates over ours, item by item.
RAY_ITEMS = Target(median_at_most=1 / 20)

# Makespan over what no order of the work goes below.
SKEWED_WORK = Target(worst_at_most=1.10)

# An item of a long run over an item of a run of BASE_ITEMS.
BASE_ITEMS = 10_000
SAME_COST = Target(median_at_most=1.3)

# Growth over these, in a run of a million items.
FLOW_MB = 150
SCHEDULER_MB = 100
WITHIN = Target(worst_at_most=1.0)

# Decisions a second over this.
DECISIONS = 200_000
AT_LEAST = Target(median_at_least=1.0)

# Memory of the core for ten times the items, over that for so many: what is open is the same.
CONSTANT = Target(worst_at_most=1.25)
