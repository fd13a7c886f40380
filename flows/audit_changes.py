"""Audit the Python files that are new or have changed since the last time.

A journal has the measures of all others, so the report is of everything, and the work is that
of what changed. `deployments/prefect.yaml` has it run every hour.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import State, flow
from pydantic import Field

from evolve_tasks import EvolveFailed, EvolveOptions, evolve
from flows.auditing import (
    checked_root,
    excluded_directories,
    file_state,
    measure_function,
    parse_functions,
    python_files,
)
from flows.code_audit import BATCH, WORST, Audit, audit_of, concluded, publish, task_runner
from flows.command_line import existing_cluster, refuse_empty_address

# A file that is no valid Python fails alone, and a task run for each file is enough.
OPTIONS = EvolveOptions(on_failure="ignore", batch=BATCH, record="sources")


@flow(name="audit-changes", task_runner=existing_cluster() or task_runner())
def audit_changes(
    root: str | None = None,
    worst: Annotated[int, Field(ge=1)] = WORST,
    options: EvolveOptions = OPTIONS,
) -> State[Audit]:
    """Measure the functions of new and changed Python files, and report on all files.

    Files that cannot be parsed are failures in the result and in the state's message, and
    are tried again the next time.

    Args:
        root: directory to audit, on the machine that runs the flow. Empty: the standard
            library of the Python that runs it, without its tests.
        worst: number of functions in the table of the worst.
        options: how the work is driven, bounded, recorded and resumed. Without a journal it
            uses one of its own for each root.

    Returns:
        A completed state that holds the `Audit` of all files.

    Raises:
        ValueError: deployed for a cluster, and without its address; nothing was started.
        NotADirectoryError: there is no such root; nothing was started.
        NothingAudited: all of it failed.
        EvolveFailed: there were more failures than `options.on_failure` accepts; the tables
            are there all the same.
    """
    refuse_empty_address()
    directory = checked_root(root)
    unreadable: list[dict[str, str]] = []

    def note(name: str, error: OSError) -> None:
        unreadable.append({"file": name, "error": f"{type(error).__name__}: {error}"})

    if not options.journal:
        options = options.model_copy(update={"journal": f"audit of {directory}"})
    extras: dict[str, Any] = {}
    if isinstance(options.journal, str):  # the retries of one run have the files as they were
        extras["fingerprint"] = file_state
    try:
        outcome = evolve(
            python_files(directory, excluded_directories(root, False, None), note),
            parse_functions,
            measure_function,
            options=options,
            **extras,
        )
    except EvolveFailed as failed:
        publish(audit_of(failed.outcome, unreadable), worst)
        raise
    return concluded(audit_of(outcome, unreadable), worst)
