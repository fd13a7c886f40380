"""Audit the Python files under a directory, and tell which functions are the most complex.

A workflow that evolves: how many functions there are to measure is known only when the files
have been parsed. Run it with `python -m flows.code_audit --help`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from dask.system import CPU_COUNT
from prefect import State, flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evolve_tasks import EvolveFailed, Outcome, evolve
from evolve_tasks.options import StrategyName
from evolve_tasks.report import as_it_is
from flows.auditing import (
    checked_root,
    excluded_directories,
    measure_function,
    parse_functions,
    python_files,
)
from flows.command_line import (
    LocalRunner,
    console,
    existing_cluster,
    limit_console_logs,
    local_cluster,
    positive,
    refuse_empty_address,
    shown,
)

# A file of the standard library has 22 functions, and one function takes a millisecond: a
# batch is mostly a file, and never so long that the last one keeps a CPU waiting.
BATCH = 100
WORST = 20
SHOWN_FAILURES = 20


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        functions: the measures of N >= 0 functions, by file and line.
        failures: `{"file", "error"}` for each file, function or directory that could not be
            audited.
        counts: numbers of files and functions.
        packages: totals of each package.
    """

    functions: list[dict[str, Any]]
    failures: list[dict[str, str]]
    counts: dict[str, int]
    packages: list[dict[str, Any]]

    def __str__(self) -> str:
        """One line: how much was audited, and how much could not be."""
        counts = self.counts
        text = f"{counts['functions']:,} functions in {counts['files']:,} files audited"
        return text + (f", {len(self.failures):,} failures" if self.failures else "")

    @property
    def nothing_succeeded(self) -> bool:
        """Whether there was something to audit, and all of it failed."""
        counts = self.counts
        parsed = counts["files"] > 0
        measured = counts["functions"] > 0 or counts["functions_failed"] == 0
        return bool(self.failures) and not (parsed and measured)

    def worst(self, number: int) -> list[dict[str, Any]]:
        """The most complex functions, the worst first."""
        by_badness = sorted(
            self.functions,
            key=lambda found: (
                -found["complexity"],
                -found["effort"],
                found["file"],
                found["line"],
            ),
        )
        return by_badness[:number]

    def as_json(self) -> dict[str, Any]:
        """All that was found, in an order that does not depend on how it was found."""
        return {"functions": self.functions, "failures": self.failures, "counts": self.counts}


class NothingAudited(RuntimeError):
    """Every file failed; `audit` tells of each."""

    def __init__(self, audit: Audit) -> None:
        """Keep the audit and begin the message with its numbers."""
        first = audit.failures[0]
        super().__init__(
            f"nothing could be audited, {len(audit.failures):,} failures; the first is "
            f"{first['file']}: {first['error']}"
        )
        self.audit = audit


def task_runner(workers: int = CPU_COUNT) -> LocalRunner:
    """Make a local cluster for work that keeps CPUs busy: processes of one thread each.

    Args:
        workers: N >= 1 processes.
    """
    return local_cluster(workers, threads=1, processes=True)


@flow(name="code-audit", task_runner=existing_cluster() or task_runner())
def code_audit(
    root: str | None = None,
    strategy: StrategyName = "auto",
    include_tests: bool = False,
    exclude: list[str] | None = None,
    worst: Annotated[int, Field(ge=1)] = WORST,
    batch: Annotated[int, Field(ge=1)] = BATCH,
    json_file: str | None = None,
) -> State[Audit]:
    """Measure the complexity of every function in the Python files under a directory.

    Files that cannot be parsed are failures in the result and in the state's message; the
    flow run fails if nothing could be audited.

    Args:
        root: directory to audit, on the machine that runs the flow. Empty: the standard
            library of the Python that runs it, without what was installed beside it.
        strategy: how the work is driven: auto, as_completed, async, nested or sequential.
        include_tests: audit the standard library's own tests too. No other directory has
            its tests left out.
        exclude: names of directories to leave out, wherever they are under root.
        worst: number of functions in the table of the worst.
        batch: functions that are measured together in one Dask task.
        json_file: file to write everything to that was found, on the machine that runs the
            flow.

    Returns:
        A completed state that holds the `Audit`.

    Raises:
        ValueError: deployed for a cluster, and without its address; nothing was started.
        NotADirectoryError: there is no such root; nothing was started.
        NothingAudited: all of it failed.
    """
    refuse_empty_address()
    directory = checked_root(root)
    unreadable: list[dict[str, str]] = []

    def note(name: str, error: OSError) -> None:
        unreadable.append({"file": name, "error": f"{type(error).__name__}: {error}"})

    outcome = evolve(
        python_files(directory, excluded_directories(root, include_tests, exclude), note),
        parse_functions,
        measure_function,
        strategy=strategy,
        on_failure="ignore",
        batch=batch,
        # A task run for each file: one for each function would keep a server on SQLite busy
        # for ten minutes.
        record="sources",
    )
    audit = audit_of(outcome, unreadable)
    if json_file is not None:
        Path(json_file).write_text(json.dumps(audit.as_json(), indent=1) + "\n", encoding="ascii")
    return concluded(audit, worst)


def concluded(audit: Audit, worst: int) -> State[Audit]:
    """Publish an audit, and give the state in which its flow run ends.

    Args:
        audit: what was found.
        worst: number of functions in the table of the worst.

    Raises:
        NothingAudited: all of it failed.
    """
    publish(audit, worst)
    if audit.nothing_succeeded:
        raise NothingAudited(audit)
    name = "CompletedWithFailures" if audit.failures else "Completed"
    return Completed(name=name, message=str(audit), data=audit)


def audit_of(outcome: Outcome, unreadable: Iterable[dict[str, str]] = ()) -> Audit:
    """Put an outcome into the form that people read.

    Args:
        outcome: of `parse_functions` and `measure_function` over sorted files.
        unreadable: directories that could not be listed, as failures.

    Returns:
        The audit, in order of file and line.
    """
    unreadable = list(unreadable)
    failures = [
        {
            "file": failure.source.name,
            "error": f"{failure.error_type}: {failure.message}"
            + (f" (in {failure.item})" if len(failure.index) > 1 else ""),
        }
        for failure in outcome.failures
    ]
    measured = outcome.counts.done + outcome.counts.resumed
    counts = {
        "files": outcome.counts.sources - outcome.counts.sources_failed,
        "files_failed": outcome.counts.sources_failed,
        "directories_failed": len(unreadable),
        "functions": measured,
        "functions_failed": outcome.counts.discovered - measured,
    }
    return Audit(
        functions=outcome.results,
        failures=sorted(failures + unreadable, key=lambda failure: failure["file"]),
        counts=counts,
        packages=package_totals(outcome),
    )


def package_of(name: str) -> str:
    """The package of a file: its first directory under the root, or `.` for none."""
    first, slash, _ = name.partition("/")
    return first if slash else "."


def package_totals(outcome: Outcome) -> list[dict[str, Any]]:
    """Sum up each package, the one with the most complexity first.

    Args:
        outcome: as in `audit_of`.
    """
    failed = {failure.source for failure in outcome.failures if len(failure.index) == 1}
    failures = Counter(package_of(failure.source.name) for failure in outcome.failures)
    files: Counter[str] = Counter()
    complexities: dict[str, list[int]] = {}
    for source, functions in outcome.by_source:
        package = package_of(source.name)
        files[package] += source not in failed
        complexities.setdefault(package, []).extend(found["complexity"] for found in functions)
    totals = [
        {
            "package": package,
            "files": files[package],
            "failures": failures[package],
            "functions": len(found),
            "complexity": sum(found),
            "mean": round(sum(found) / len(found), 1) if found else 0.0,
            "worst": max(found, default=0),
        }
        for package, found in complexities.items()
    ]
    return sorted(totals, key=lambda total: (-total["complexity"], total["package"]))


def worst_rows(audit: Audit, number: int) -> list[dict[str, Any]]:
    """Rows of the table of the worst functions, ready for a terminal and for an artifact."""
    return [
        {
            "function": shown(found["qualified_name"]),
            "place": shown(f"{found['file']}:{found['line']}"),
            "complexity": found["complexity"],
            "rank": found["rank"],
            "MI": round(found["maintainability"], 1),
            "effort": round(found["effort"]),
            "lines": found["lines"],
        }
        for found in audit.worst(number)
    ]


def failure_rows(audit: Audit) -> list[dict[str, str]]:
    """Rows of the table of failures; an error is cut to its first line."""
    return [
        {"file": shown(failure["file"]), "error": shown(failure["error"].partition("\n")[0])}
        for failure in audit.failures
    ]


def package_rows(audit: Audit) -> list[dict[str, Any]]:
    """Rows of the table of packages."""
    return [{**total, "package": shown(total["package"])} for total in audit.packages]


def publish(audit: Audit, worst: int) -> None:
    """Make the tables artifacts of the flow run.

    Args:
        audit: what was found.
        worst: number of functions to show.
    """
    tables: list[tuple[str, list[Any], str]] = [
        ("code-audit-worst", worst_rows(audit, worst), f"The most complex functions. {audit}."),
        ("code-audit-packages", package_rows(audit), "Totals of each package."),
        ("code-audit-failures", failure_rows(audit), "What could not be audited."),
    ]
    for key, rows, description in tables:
        if rows:
            table = [{name: as_it_is(value) for name, value in row.items()} for row in rows]
            create_table_artifact(table=table, key=key, description=description)


def show(audit: Audit, worst: int, out: Console) -> None:
    """Print the tables.

    Args:
        audit: what was found.
        worst: number of functions, and of packages, to show.
        out: where to.
    """
    packages, failures = package_rows(audit), failure_rows(audit)
    out.print(_table("Totals of each package", packages[:worst]))
    if len(packages) > worst:
        out.print(f"and {len(packages) - worst:,} more packages", highlight=False)
    if failures:
        out.print(_table("What could not be audited", failures[:SHOWN_FAILURES]))
        if len(failures) > SHOWN_FAILURES:
            out.print(f"and {len(failures) - SHOWN_FAILURES:,} more failures", highlight=False)
    out.print(_table("The most complex functions", worst_rows(audit, worst)))
    out.print(str(audit), highlight=False)


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name, value in (rows[0] if rows else {"nothing": ""}).items():
        numeric = isinstance(value, int | float)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else escape(value)


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        SystemExit: it is wrong, or asks for help.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.code_audit", description=__doc__)
    parser.add_argument(
        "--root", metavar="DIR", help="directory to audit (default: Python's standard library)"
    )
    parser.add_argument(
        "--strategy", choices=get_args(StrategyName), default="auto", help="(default: auto)"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything that was found")
    parser.add_argument(
        "--include-tests",
        action="store_true",
        help="with the standard library's tests; no other directory has its tests left out",
    )
    parser.add_argument(
        "--exclude",
        metavar="NAME",
        action="append",
        help="leave out directories of this name (may be repeated)",
    )
    parser.add_argument(
        "--worst", type=positive, default=WORST, metavar="N", help=f"(default: {WORST})"
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=BATCH,
        metavar="N",
        help=f"functions in one Dask task (default: {BATCH})",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=CPU_COUNT,
        metavar="N",
        help=f"worker processes, of one thread each (default: one for each CPU, {CPU_COUNT})",
    )
    parser.add_argument("--verbose", action="store_true", help="show what Prefect and Dask log")
    arguments = parser.parse_args(argv)
    try:
        arguments.directory = checked_root(arguments.root)
    except NotADirectoryError as error:
        parser.error(str(error))
    if arguments.json is not None:
        arguments.json = os.path.abspath(arguments.json)
        parent = os.path.dirname(arguments.json)
        if not os.path.isdir(parent):
            parser.error(f"--json: directory {parent!r} does not exist; make it first")
        if os.path.isdir(arguments.json):
            parser.error(f"--json: {arguments.json!r} is a directory; give a file in it")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run an audit from the command line.

    Args:
        argv: the arguments; those of the process if not given.

    Returns:
        The exit code: 0, or 1 if nothing could be audited or the run broke.
    """
    arguments = arguments_of(argv)
    if not arguments.verbose:
        limit_console_logs()
    run = code_audit.with_options(task_runner=task_runner(arguments.workers))
    out = console()
    try:
        audit = run(
            root=None if arguments.root is None else arguments.directory,
            strategy=arguments.strategy,
            include_tests=arguments.include_tests,
            exclude=arguments.exclude,
            worst=arguments.worst,
            batch=arguments.batch,
            json_file=arguments.json,
        )
    except NothingAudited as error:
        show(error.audit, arguments.worst, out)
        sys.stderr.write(f"{shown(str(error))}\n")
        return 1
    except EvolveFailed as error:
        sys.stderr.write(f"the audit ended early: {shown(str(error))}\n")
        return 1
    assert isinstance(audit, Audit)
    show(audit, arguments.worst, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
