"""Rounds of real faults: workers, flows, the scheduler and the API are killed while a flow runs.

    python -m tests.integration.faults --rounds 100 --seed 1

Each round is told by its seed. What it prints must have nothing but zeros from "lost" on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from random import Random

from tests.integration.night import ITEMS, SOURCES, result_of
from tests.integration.servers import Server, free_port, prefect_environment

ROOT = Path(__file__).parents[2]
STARTS = 12  # of the flow in one round at the most
LIMIT_S = 240.0  # for one start of the flow


@dataclass
class Tally:
    """What a number of rounds came to; all from `lost` on has to be 0."""

    rounds: int = 0
    workers_killed: int = 0
    flows_killed: int = 0
    schedulers_killed: int = 0
    api_stopped: int = 0
    items: int = 0
    executions: int = 0
    lost: int = 0
    done_twice_after_being_reported: int = 0
    wrong_results: int = 0
    rounds_that_did_not_end: int = 0

    def add(self, other: Tally) -> None:
        """Add the numbers of another one."""
        for field in fields(self):
            total = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, total)

    @property
    def faults(self) -> int:
        """Everything that must not happen."""
        return sum(astuple(self)[-4:])

    def __str__(self) -> str:
        """One line for each number."""
        return "\n".join(
            f"{field.name.replace('_', ' '):34} {getattr(self, field.name):8,}"
            for field in fields(self)
        )


class Site:
    """A Prefect server, a scheduler and workers with two threads, as processes.

    Args:
        home: an empty folder.
        environment: what the Dask processes have beside that of the tests.
        workers: what each worker has beside that; so many workers there are.
    """

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str] | None = None,
        workers: Sequence[Mapping[str, str]] = ({}, {}),
    ) -> None:
        self._home = home
        self._environment = environment or {}
        self._workers = workers
        self.server = Server(home / "prefect")
        self.scheduler = f"tcp://127.0.0.1:{free_port()}"
        self.cluster: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start everything."""
        self.server.start()
        self.start_cluster()

    def start_cluster(self) -> None:
        """Start the scheduler and its workers."""
        port = self.scheduler.rpartition(":")[2]
        environment = prefect_environment(self._home / "prefect", self.server.url)
        environment |= {"PYTHONPATH": str(ROOT), **self._environment}
        self.cluster = [
            _process(self._home, environment, "distributed.cli.dask_scheduler", "--port", port),
            *(
                _process(
                    *(self._home, environment | dict(own)),
                    *("distributed.cli.dask_worker", self.scheduler),
                    *("--nthreads", "2", "--local-directory", str(self._home)),
                )
                for own in self._workers
            ),
        ]

    def stop_cluster(self) -> None:
        """Kill the scheduler, and the workers with it."""
        for process in self.cluster:
            # Each is the leader of a group: a nanny and its worker go together.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.cluster = []

    def stop(self) -> None:
        """End everything."""
        self.stop_cluster()
        self.server.stop()


def _process(
    home: Path, environment: dict[str, str], module: str, *options: str
) -> subprocess.Popen[bytes]:
    with (home / "cluster.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *options, "--no-dashboard"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@contextmanager
def site(
    home: Path,
    environment: Mapping[str, str] | None = None,
    workers: Sequence[Mapping[str, str]] = ({}, {}),
) -> Iterator[Site]:
    """A site that is there for a while."""
    here = Site(home, environment, workers)
    with ExitStack() as stack:
        stack.callback(here.stop)
        here.start()
        yield here


class Round:
    """One flow, some faults, and the books about both.

    Args:
        here: where it runs.
        folder: an empty folder.
        seed: decides what happens.
        each_kind: one fault of each kind happens, soon; otherwise some do at any time.
    """

    def __init__(self, here: Site, folder: Path, seed: int, *, each_kind: bool = False) -> None:
        self._site = here
        self._folder = folder
        self._random = random = Random(seed)
        self._tally = Tally(rounds=1, items=SOURCES * ITEMS)
        self._options = {
            "strategy": random.choice(["as_completed", "async", "nested"]),
            "batch": random.choice([1, 5, "auto"]),
            "record": random.choice(["sources", "batches"]),
            "progress": False,
            "links": each_kind or random.random() < 0.3,
        }
        kinds: list[Callable[[], None]] = [self._kill_worker] * 4
        kinds += [self._kill_flow] * 3 + [self._kill_scheduler, self._stop_api]
        self._faults = random.sample(kinds, random.randint(1, 4))
        self._soon = 30 if each_kind else 120
        if each_kind:
            self._faults = [
                *(self._stop_api, self._kill_scheduler, self._kill_flow, self._kill_worker)
            ]
        (folder / "executions").mkdir(parents=True)

    def run(self) -> Tally:
        """Run to the end, whatever it takes."""
        for _ in range(STARTS):
            if self._attempt():
                break
        else:
            self._tally.rounds_that_did_not_end = 1
        self._look()
        return self._tally

    def _attempt(self) -> bool:
        """Start the flow, with the next faults on its way; say whether it came to its end."""
        environment = prefect_environment(self._folder / "prefect", self._site.server.url)
        with (self._folder / "night.log").open("ab") as log:
            self._flow = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.integration.night", str(self._folder)),
                    *(self._site.scheduler, json.dumps(self._options)),
                ],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
        give_up = time.monotonic() + LIMIT_S
        due = len(self._executions()) + self._random.randint(5, self._soon)
        while self._flow.poll() is None:
            if time.monotonic() > give_up:
                self._flow.kill()
            elif self._faults and len(self._executions()) >= due:
                self._faults.pop()()
                due = len(self._executions()) + self._random.randint(5, self._soon)
            time.sleep(0.02)
        return self._flow.returncode == 0

    def _executions(self) -> list[list[str]]:
        return [name.split(".") for name in os.listdir(self._folder / "executions")]

    # -- faults ----------------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        latest = max(self._executions(), key=lambda one: int(one[2]))
        with suppress(ProcessLookupError):
            os.kill(int(latest[3]), signal.SIGKILL)
            self._tally.workers_killed += 1

    def _kill_flow(self) -> None:
        self._flow.kill()
        self._tally.flows_killed += 1

    def _kill_scheduler(self) -> None:
        self._site.stop_cluster()
        self._tally.schedulers_killed += 1
        self._site.start_cluster()

    def _stop_api(self) -> None:
        self._site.server.stop()
        self._tally.api_stopped += 1
        self._site.server.start()

    # -- books -----------------------------------------------------------------------------------

    def _look(self) -> None:
        executions = self._executions()
        self._tally.executions = len(executions)
        results: dict[str, int] = {}
        if (ended := self._folder / "results.json").exists():
            results = json.loads(ended.read_text())
        for source in range(SOURCES):
            for position in range(ITEMS):
                name = f"{source}.{position}"
                self._tally.lost += name not in results
                wrong = results.get(name, result_of(source, position)) != result_of(
                    source, position
                )
                self._tally.wrong_results += wrong
        first_reported: dict[str, int] = {}
        for line in (self._folder / "reported").read_text().splitlines():
            name, at = line.split()
            first_reported.setdefault(name, int(at))
        self._tally.done_twice_after_being_reported = sum(
            int(at) > first_reported.get(f"{source}.{position}", sys.maxsize)
            for source, position, at, *_ in executions
        )


def run_rounds(
    home: Path, seeds: range, tell: Callable[[str], object] = print, *, each_kind: bool = False
) -> Tally:
    """Run a round for each seed on one site.

    Args:
        home: an empty folder.
        seeds: the seeds.
        tell: gets a line about each round that went wrong.
        each_kind: in each round there is one fault of each kind.
    """
    total = Tally()
    with site(home) as here:
        for seed in seeds:
            one = Round(here, home / f"round-{seed}", seed, each_kind=each_kind).run()
            total.add(one)
            if one.faults:
                tell(f"seed {seed}:\n{one}")
    return total


def main() -> int:
    """Run rounds and print what they came to."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evolve-faults-", ignore_cleanup_errors=True) as home:
        total = run_rounds(Path(home), range(given.seed, given.seed + given.rounds))
    print(total)  # noqa: T201
    return int(total.faults > 0)


if __name__ == "__main__":
    sys.exit(main())
