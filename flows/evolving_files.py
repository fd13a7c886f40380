"""The example of evolving workflows: read files, then process what was found in each of them.

How many items there are is known only when the files have been read. The same work is done
with each strategy, and a table compares them. Run it with
`python -m flows.evolving_files --help`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast, get_args

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.states import Completed
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evolve_tasks import EvolveFailed, evolve_iter
from evolve_tasks.options import StrategyName
from flows.command_line import (
    LocalRunner,
    console,
    limit_console_logs,
    local_cluster,
    positive,
    shown,
)

Wanted = Literal["all", "sequential", "as_completed", "async", "nested", "auto"]
ALL: tuple[StrategyName, ...] = ("sequential", "as_completed", "async", "nested")

FILES = 10
MOST_ITEMS = 10
# As many as the original example has: its work is sleeping, which needs no CPU, so there may
# be more threads than CPUs.
THREADS = 6
PARSE_S = 1.0
PROCESS_S = 0.25


@dataclass(frozen=True, repr=False)
class File:
    """A file to read.

    Args:
        name: its name.
        seed: with the name, it decides what is in the file.
        scale: factor for the times of waiting.
    """

    name: str
    seed: int = 0
    scale: float = 1.0

    def __repr__(self) -> str:
        """Its name: that is what the UI and failures show of a source."""
        return self.name

    def chance(self, *place: int) -> random.Random:
        """Random numbers that are the same in each process, strategy and order of work."""
        return random.Random("/".join(map(str, (self.seed, self.name, *place))))


@dataclass(frozen=True)
class Item:
    """A number that was found in a file, and where."""

    x: float
    file: File
    position: int


@task
def parse_file(file: File) -> list[Item]:
    """Read a file, which takes up to a second, and give the 1 to 10 items that are in it."""
    chance = file.chance()
    time.sleep(chance.random() * PARSE_S * file.scale)
    return [
        Item(chance.random(), file, position) for position in range(chance.randint(1, MOST_ITEMS))
    ]


@task
def process_item(item: Item) -> float:
    """Process an item, which takes up to a quarter of a second."""
    chance = item.file.chance(item.position)
    time.sleep(chance.random() * PROCESS_S * item.file.scale)
    return item.x + 1


@dataclass(frozen=True)
class StrategyRun:
    """How one strategy did.

    Args:
        strategy: which.
        seconds: from the start to the last result, on a cluster that was already there.
        first_s: until the first result; `None` without one.
        results: what came out, in order of file and item.
        error: why it failed; empty if it did not.
        speed_up: how many times faster than `sequential`; `None` if that did not run.
    """

    strategy: str
    seconds: float = 0.0
    first_s: float | None = None
    results: list[float] = field(default_factory=list)
    error: str = ""
    speed_up: float | None = None

    def row(self) -> dict[str, Any]:
        """Its row in the table, ready for a terminal and for an artifact."""
        return {
            "strategy": self.strategy,
            "seconds": f"{self.seconds:.2f}",
            "speed-up": "" if self.speed_up is None else f"{self.speed_up:.1f}",
            "items": str(len(self.results)),
            "first result after (s)": "" if self.first_s is None else f"{self.first_s:.2f}",
            "remark": shown(self.error.partition("\n")[0]),
        }


class ExampleFailed(RuntimeError):
    """A strategy failed, or two gave different results; `runs` tells of each."""

    def __init__(self, runs: Sequence[StrategyRun]) -> None:
        """Keep the runs; the message names those at fault."""
        faults = [f"{run.strategy}: {run.error}" for run in runs if run.error]
        super().__init__("; ".join(faults))
        self.runs = list(runs)


def task_runner(workers: int = 1, threads: int = THREADS) -> LocalRunner:
    """Make a local cluster.

    Args:
        workers: N >= 1. One works in threads of this process, as in the original example;
            more are processes.
        threads: N >= 1 threads of each.
    """
    return local_cluster(workers, threads=threads, processes=workers > 1)


@flow(name="evolving-files", task_runner=task_runner())
def evolving_files(
    strategy: Wanted = "all",
    files: Annotated[int, Field(ge=0)] = FILES,
    seed: int = 0,
    scale: Annotated[float, Field(ge=0)] = 1.0,
) -> State[list[StrategyRun]]:
    """Read files and process what is found in them, with one strategy or with each in turn.

    Args:
        strategy: all, to compare the four, or one of them: sequential, as_completed, async,
            nested, or auto.
        files: number of files.
        seed: number that decides what is in the files and how long each takes.
        scale: factor for the time that reading and processing take; 0 is no time at all.

    Returns:
        A completed state that holds a `StrategyRun` for each strategy.

    Raises:
        ExampleFailed: a strategy failed, or two gave different results.
    """
    sources = [File(f"file.{number}.txt", seed, scale) for number in range(files)]
    wanted = ALL if strategy == "all" else (strategy,)
    runs = compared([run_strategy(sources, name) for name in wanted])
    create_table_artifact(
        table=[run.row() for run in runs],
        key="evolving-files",
        description=f"{files} files, seed {seed}, scale {scale:g}.",
    )
    if any(run.error for run in runs):
        raise ExampleFailed(runs)
    return Completed(message=f"{len(runs[0].results)} items in {files} files", data=runs)


def run_strategy(sources: Sequence[File], strategy: StrategyName) -> StrategyRun:
    """Do the work with one strategy, inside a flow run.

    Args:
        sources: the files.
        strategy: how.

    Returns:
        What came of it, also if it failed.
    """
    values: dict[tuple[int, ...], float] = {}
    first_s: float | None = None
    last_s = 0.0
    error = ""
    # The call makes the cluster, if there is none yet; the work begins with the first step.
    outcomes = evolve_iter(
        sources, parse_file, process_item, strategy=strategy, on_failure="finish", record="items"
    )
    started = time.perf_counter()
    try:
        for outcome in outcomes:
            last_s = time.perf_counter() - started
            if outcome.ok:
                values[outcome.index] = outcome.value
                first_s = last_s if first_s is None else first_s
    except EvolveFailed as failed:
        error = str(failed)
        get_run_logger().warning("Strategy %s failed: %s", strategy, failed)
    results = [values[index] for index in sorted(values)]
    return StrategyRun(strategy, last_s, first_s, results, error)


def compared(runs: Sequence[StrategyRun]) -> list[StrategyRun]:
    """Add to each run its speed-up, and an error if its results are not those of the first.

    Args:
        runs: one of each strategy.

    Returns:
        The same runs with more said about them.
    """
    base = next((run for run in runs if run.strategy == "sequential" and not run.error), None)
    sound = next((run for run in runs if not run.error), None)
    told = []
    for run in runs:
        if base is not None and not run.error and run.seconds > 0:
            run = replace(run, speed_up=base.seconds / run.seconds)
        if sound is not None and not run.error and run.results != sound.results:
            run = replace(run, error=f"its results differ from those of {sound.strategy}")
        told.append(run)
    return told


def show(runs: Sequence[StrategyRun], out: Console) -> None:
    """Print the table.

    Args:
        runs: how each strategy did.
        out: where to.
    """
    rows = [run.row() for run in runs]
    table = Table(title="The same work with each strategy", title_justify="left")
    columns = [name for name in rows[0] if name != "remark" or any(row["remark"] for row in rows)]
    for name in columns:
        table.add_column(name, justify="left" if name in ("strategy", "remark") else "right")
    for row in rows:
        table.add_row(*(escape(row[name]) for name in columns))
    out.print(table)


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        SystemExit: it is wrong, or asks for help.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.evolving_files", description=__doc__)
    parser.add_argument(
        "--strategy", choices=get_args(Wanted), default="all", help="(default: all)"
    )
    parser.add_argument(
        "--files", type=positive, default=FILES, metavar="N", help=f"(default: {FILES})"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="other files for another seed (default: 0)"
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=1,
        metavar="N",
        help="one works in threads of this process, more are processes (default: 1)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=THREADS,
        metavar="N",
        help=f"threads of each worker (default: {THREADS}; the work is sleeping)",
    )
    parser.add_argument(
        "--scale",
        type=_factor,
        default=1.0,
        metavar="X",
        help="factor for the time that reading and processing take (default: 1)",
    )
    parser.add_argument("--verbose", action="store_true", help="show what Prefect and Dask log")
    return parser.parse_args(argv)


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = -1.0
    if not 0 <= factor < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return factor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example from the command line.

    Args:
        argv: the arguments; those of the process if not given.

    Returns:
        The exit code: 0, or 1 if a strategy failed or two gave different results.
    """
    arguments = arguments_of(argv)
    if not arguments.verbose:
        limit_console_logs()
    run = evolving_files.with_options(task_runner=task_runner(arguments.workers, arguments.threads))
    out = console()
    try:
        runs = run(
            strategy=arguments.strategy,
            files=arguments.files,
            seed=arguments.seed,
            scale=arguments.scale,
        )
    except ExampleFailed as error:
        show(error.runs, out)
        sys.stderr.write(f"{shown(str(error))}\n")
        return 1
    show(cast(list[StrategyRun], runs), out)
    return 0


if __name__ == "__main__":
    # Workers import the stages by name, and would not find them in "__main__".
    from flows.evolving_files import main as main_by_name

    sys.exit(main_by_name())
