"""The deployments of `prefect.yaml`, served by one process: no work pool, no worker.

    python deployments/serve.py

Runs are processes that this one starts on its machine, from the directory it was started in;
Ctrl-C ends it and pauses the schedules. Runs use the Dask cluster that DASK_SCHEDULER_ADDRESS
names, or start one each.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.schedules import Cron, Interval

from evolve_tasks import EvolveOptions
from flows.audit_changes import OPTIONS, audit_changes
from flows.code_audit import code_audit
from flows.evolving_files import evolving_files

# Two nights never overlap: a run that would begin while one is under way is Cancelled at once.
ONE_OR_NONE = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
)

# A parameter is JSON. What was not set stays out of it, and has the default of the version that
# runs it.
HOURLY = OPTIONS.model_copy(update={"journal": "audit-changes-hourly"})


def deployments() -> list[Any]:
    """Make the deployments; nothing is sent anywhere yet."""
    return [
        code_audit.to_deployment(
            "nightly",
            schedule=Cron("0 3 * * *", timezone="UTC", slug="every-night"),
            concurrency_limit=ONE_OR_NONE,
            parameters={"root": None},
            tags=["evolve-tasks", "nightly"],
        ),
        audit_changes.to_deployment(
            "hourly",
            schedule=Interval(
                3600,
                anchor_date=datetime(2026, 1, 1, 0, 30, tzinfo=UTC),
                timezone="UTC",
                slug="every-hour",
            ),
            concurrency_limit=ONE_OR_NONE,
            parameters={"root": None, "options": as_json(HOURLY)},
            tags=["evolve-tasks", "incremental"],
        ),
        code_audit.to_deployment("local", parameters={"root": None}, tags=["evolve-tasks"]),
        evolving_files.to_deployment(
            "local", parameters={"strategy": "all"}, tags=["evolve-tasks"]
        ),
    ]


def as_json(options: EvolveOptions) -> dict[str, Any]:
    """Options as a deployment's parameter."""
    return options.model_dump(mode="json", exclude_unset=True)


if __name__ == "__main__":
    serve(*deployments())
