"""Workers are killed for real: nothing is lost, and what was reported is not done again."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path
from typing import Any
from uuid import UUID

import dask
import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.exceptions import CrashedRun
from prefect.runtime import flow_run, task_run

from evolve_tasks import EvolveTaskRunner, Outcome, evolve, evolve_iter
from tests.integration.api import task_runs
from tests.integration.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

PARALLEL = ["as_completed", "async", "nested"]
CLUSTER = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None}

LOST_WORKER = "distributed.deploy.lost-worker-timeout"

Item = tuple[str, int, int]


def note(diary: str, what: str) -> None:
    """Leave a trace of this execution that outlives its process."""
    Path(diary, f"{what}.{os.getpid()}.{os.urandom(4).hex()}").touch()


def traces(diary: Path) -> Counter[str]:
    return Counter(path.name.split(".")[0] for path in diary.iterdir())


def die(diary: str) -> None:
    note(diary, "death")
    os.kill(os.getpid(), signal.SIGKILL)


def kill(pid: int) -> None:
    """Kill a worker, unless it is the one that was killed before."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@task
def hundred(source: tuple[str, int]) -> list[Item]:
    diary, number = source
    return [(diary, number, item) for item in range(100)]


@task
def poison_is_item_57_of_3(item: Item) -> int:
    diary, source, position = item
    if (source, position) == (3, 57):
        die(diary)
    return source * 100 + position


@task
def poison_is_source_3(source: tuple[str, int]) -> list[int]:
    diary, number = source
    if number == 3:
        die(diary)
    return [number]


@pytest.fixture(scope="module")
def mortal(prefect_api: str) -> Iterator[LocalCluster]:
    """Two worker processes of two threads, which are started again when they die."""
    with LocalCluster(**CLUSTER) as cluster:
        yield cluster


def run(body: Any, cluster: LocalCluster) -> tuple[UUID, Any]:
    """Run `body` in a flow on a cluster; give its id and what `body` gave."""
    seen: list[tuple[UUID, Any]] = []

    @flow(name="deaths", task_runner=EvolveTaskRunner(cluster=cluster))
    def deaths() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        seen.append((context.flow_run.id, body()))

    deaths()
    return seen[0]


@pytest.mark.parametrize(
    ("strategy", "batch"), [("as_completed", 100), ("async", "auto"), ("nested", 100)]
)
def test_a_poisonous_item_costs_itself_and_three_workers(
    strategy: str, batch: Any, tmp_path: Path, mortal: LocalCluster
) -> None:
    diary = str(tmp_path)

    def body() -> Outcome:
        sources = [(diary, number) for number in range(20)]
        return evolve(
            sources,
            hundred,
            poison_is_item_57_of_3,
            strategy=strategy,
            batch=batch,
            record="batches",
            on_failure="ignore",
        )

    run_id, outcome = run(body, mortal)
    assert outcome.results == [number for number in range(2_000) if number != 357]
    (failure,) = outcome.failures
    assert (failure.index, failure.crashed, failure.attempts) == ((3, 57), True, 3)
    assert failure.source == (diary, 3)
    assert traces(tmp_path)["death"] <= 3
    runs = task_runs(run_id)
    assert all(run.state is not None and run.state.is_final() for run in runs), [
        (run.name, run.state_name) for run in runs
    ]
    crashed = [run.name for run in runs if run.state_name == "Crashed"]
    assert any(name.endswith(" 57]") for name in crashed), crashed


class Deadly:
    """A result that kills the worker which pickles it."""

    def __init__(self, diary: str) -> None:
        self.diary = diary

    def __reduce__(self) -> Any:
        if parent_process() is not None:
            die(self.diary)
        return int, (0,)


@task
def deadly_is_result_57_of_3(item: Item) -> Any:
    diary, source, position = item
    return Deadly(diary) if (source, position) == (3, 57) else source * 100 + position


@pytest.mark.parametrize("strategy", PARALLEL)
def test_a_result_that_kills_who_pickles_it_costs_itself_and_three_workers(
    strategy: str, tmp_path: Path, mortal: LocalCluster
) -> None:
    """By then the whole batch has been worked on, and its last item is no more at fault."""
    diary = str(tmp_path)

    def body() -> Outcome:
        options: dict[str, Any] = {"batch": 100, "record": "batches", "on_failure": "ignore"}
        sources = [(diary, 3)]
        return evolve(sources, hundred, deadly_is_result_57_of_3, strategy=strategy, **options)

    run_id, outcome = run(body, mortal)
    assert outcome.results == [300 + item for item in range(100) if item != 57]
    (failure,) = outcome.failures
    assert (failure.index, failure.crashed, failure.attempts) == ((0, 57), True, 3)
    assert traces(tmp_path)["death"] <= 3
    assert all(one.state is not None and one.state.is_final() for one in task_runs(run_id))


def five(source: tuple[str, int]) -> list[Item]:
    diary, number = source
    return [(diary, number, item) for item in range(5)]


def deadly_is_result_2_of_30(item: Item) -> Any:
    diary, source, position = item
    return Deadly(diary) if (source, position) == (30, 2) else source * 5 + position


def test_a_result_that_kills_who_pickles_it_may_have_been_worked_on_in_passing(
    tmp_path: Path, mortal: LocalCluster
) -> None:
    def body() -> Outcome:
        options: dict[str, Any] = {"strategy": "as_completed", "on_failure": "ignore"}
        sources = [(str(tmp_path), number) for number in range(60)]
        return evolve(sources, five, deadly_is_result_2_of_30, **options)

    _, outcome = run(body, mortal)
    assert outcome.results == [item for item in range(300) if item != 152]
    (failure,) = outcome.failures
    assert (failure.index, failure.crashed) == ((30, 2), True)
    assert traces(tmp_path)["death"] <= 3


def test_a_single_worker_is_replaced(tmp_path: Path) -> None:
    """There is never another one to go on beside the one that starts again.

    A local cluster gives up a worker that is not there 15 s after it was lost, which a run only
    meets by chance; with 1 ms it does so at each death, unless the runner keeps it from that.
    """
    diary = str(tmp_path)
    alone: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with dask.config.set({LOST_WORKER: "1ms"}), LocalCluster(**alone) as cluster:

        def body() -> Outcome:
            options: dict[str, Any] = {"strategy": "nested", "batch": 10, "on_failure": "ignore"}
            return evolve([(diary, 3)], hundred, poison_is_item_57_of_3, **options)

        _, outcome = run(body, cluster)
        assert dask.config.get(LOST_WORKER) == "1ms"
    assert outcome.counts.done == 99
    assert outcome.failures[0].crashed


def test_an_item_that_is_out_of_memory_costs_itself_alone(tmp_path: Path) -> None:
    diary = str(tmp_path)
    small: dict[str, Any] = {**CLUSTER, "threads_per_worker": 1, "memory_limit": "900MiB"}
    with LocalCluster(**small) as cluster:

        def body() -> Outcome:
            sources = [(diary, number) for number in range(5)]
            return evolve(sources, hundred, memory_hog_is_item_57_of_3, on_failure="ignore")

        run_id, outcome = run(body, cluster)
    assert outcome.counts.done == 499
    (failure,) = outcome.failures
    assert (failure.index, failure.crashed) == ((3, 57), True)
    assert traces(tmp_path)["hog"] <= 3
    assert all(one.state is not None and one.state.is_final() for one in task_runs(run_id))


@task
def memory_hog_is_item_57_of_3(item: Item) -> int:
    diary, source, position = item
    if (source, position) == (3, 57):
        note(diary, "hog")
        hoard = []
        while True:  # until the nanny ends it
            hoard.append(b"x" * 20_000_000)
            time.sleep(0.02)
    return source * 100 + position


@pytest.mark.parametrize("strategy", ["as_completed", "nested"])
def test_a_poisonous_source_fails_alone(
    strategy: str, tmp_path: Path, mortal: LocalCluster
) -> None:
    diary = str(tmp_path)

    def body() -> Outcome:
        sources = [(diary, number) for number in range(10)]
        return evolve(sources, poison_is_source_3, abs, strategy=strategy, on_failure="ignore")

    run_id, outcome = run(body, mortal)
    assert outcome.results == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    (failure,) = outcome.failures
    assert (failure.stage, failure.index, failure.crashed) == ("poison_is_source_3", (3,), True)
    assert outcome.counts.sources_failed == 1
    assert traces(tmp_path)["death"] <= 3
    states = Counter(run.state_name for run in task_runs(run_id))
    assert set(states) == {"Completed", "Crashed"}, states


def forty(source: tuple[str, int]) -> list[Item]:
    diary, number = source
    note(diary, f"parse-{number}")
    return [(diary, number, item) for item in range(40)]


def slowly(item: Item) -> tuple[int, int, int]:
    diary, source, position = item
    note(diary, f"item-{source}-{position}")
    time.sleep(0.02)
    return source, position, os.getpid()


@pytest.mark.parametrize("strategy", PARALLEL)
def test_killed_workers_lose_nothing_and_repeat_nothing_that_was_reported(
    strategy: str, tmp_path: Path, mortal: LocalCluster
) -> None:
    diary = str(tmp_path)
    given: list[tuple[int, int]] = []
    before: dict[str, int] = {}

    def body() -> None:
        sources = [(diary, number) for number in range(12)]
        kills = {40, 160, 300}
        for item in evolve_iter(sources, forty, slowly, strategy=strategy, batch=5):
            assert item.ok, item.failure
            given.append(item.index)
            name = f"item-{item.index[0]}-{item.index[1]}"
            before[name] = traces_of(tmp_path, name)
            if len(given) in kills:
                kill(item.value[2])

    run(body, mortal)
    assert sorted(given) == [(source, item) for source in range(12) for item in range(40)]
    assert len(set(given)) == len(given)
    after = traces(tmp_path)
    again = {name: (count, after[name]) for name, count in before.items() if after[name] != count}
    assert not again, "reported, and done again afterwards"


def traces_of(diary: Path, name: str) -> int:
    return sum(1 for _ in diary.glob(f"{name}.*"))


def uneven(source: tuple[str, int]) -> list[Item]:
    """Mostly short lists, worked on where they are found, and a long one now and then."""
    diary, number = source
    return [(diary, number, item) for item in range(400 if number % 10 == 9 else 2)]


@pytest.mark.parametrize("strategy", ["as_completed", "nested"])
def test_what_was_worked_on_in_passing_is_not_done_again_for_a_lost_list(
    strategy: str, tmp_path: Path, mortal: LocalCluster
) -> None:
    diary = str(tmp_path)
    before: dict[str, int] = {}

    def body() -> list[Any]:
        sources = [(diary, number) for number in range(60)]
        given = []
        for item in evolve_iter(sources, uneven, briefly, strategy=strategy):
            given.append(item.index)
            name = f"item-{item.index[0]}-{item.index[1]}"
            before[name] = traces_of(tmp_path, name)
            if len(given) in (200, 1_000, 1_800):
                kill(item.value)
        return given

    _, given = run(body, mortal)
    assert len(given) == len(set(given)) == 54 * 2 + 6 * 400
    after = traces(tmp_path)
    assert not {name for name, count in before.items() if after[name] != count}


def briefly(item: Item) -> int:
    diary, source, position = item
    note(diary, f"item-{source}-{position}")
    time.sleep(0.001)
    return os.getpid()


def test_tasks_of_others_keep_the_patience_of_dask(tmp_path: Path, mortal: LocalCluster) -> None:
    """The first death is told to the run alone; what else is on the cluster is tried again."""
    diary = str(tmp_path)

    def body() -> tuple[Any, Any]:
        other = dies_once.submit(diary)
        return evolve([(diary, 3)], hundred, last_part).counts.done, other.result()

    assert run(body, mortal)[1] == (100, 2)


@task
def dies_once(diary: str) -> int:
    note(diary, "lives")
    if traces(Path(diary))["lives"] == 1:
        die(diary)
    return traces(Path(diary))["lives"]


@task
def last_part(item: Item) -> int:
    return item[-1]


def test_a_submitted_task_whose_workers_died_is_crashed(tmp_path: Path) -> None:
    def body() -> Any:
        poison = dies_always.submit(str(tmp_path))
        poison.wait()
        assert poison.state.is_crashed()
        with pytest.raises(CrashedRun, match=r"each worker that ran it died \(1\)"):
            poison.result()
        return last_part.submit((str(tmp_path), 3, 4)).result()

    # Dask's patience ends at the first death: three more would show nothing more.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(**CLUSTER) as cluster,
    ):
        run_id, other = run(body, cluster)
    assert other == 4
    states = Counter(run.state_name for run in task_runs(run_id))
    assert states == {"Crashed": 1, "Completed": 1}


@task
def dies_once_it_is_known(diary: str) -> str:
    """Die the first time, when the API has heard of it: what it has not is not left open there."""
    note(diary, "lives")
    if traces(Path(diary))["lives"] == 1:
        flow_run_id = UUID(flow_run.id)
        until(lambda: task_run.id in {str(one.id) for one in task_runs(flow_run_id)}, "it is known")
        die(diary)
    return diary


@task
def submits(diary: str) -> list[str]:
    return [dies_once_it_is_known.submit(diary).result()]


@task
def evolves(diary: str) -> list[str]:
    return list(evolve([[diary]], list, dies_once_it_is_known, record="items").results)


@pytest.mark.parametrize("parent", [submits, evolves], ids=lambda parent: str(parent.name))
def test_what_died_together_with_its_parent_is_crashed(parent: Any, tmp_path: Path) -> None:
    """Nobody is left there who could tell; the parent runs again, and with it another child."""
    with LocalCluster(**{**CLUSTER, "n_workers": 1}) as cluster:
        run_id, given = run(lambda: parent.submit(str(tmp_path)).result(), cluster)
    assert given == [str(tmp_path)]
    states = states_of(run_id)
    assert states[parent.name, "Completed"] == 1
    children = {state: count for (name, state), count in states.items() if name != parent.name}
    assert children == {"Crashed": 1, "Completed": 1}


def test_what_a_task_has_submitted_and_killed_its_worker_is_crashed(tmp_path: Path) -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(**CLUSTER) as cluster,
    ):
        here, there = cluster.scheduler_info["workers"]

        def body() -> Any:
            with dask.annotate(workers=[here]):
                return watches_it_die.submit(str(tmp_path), there).result()

        run_id, given = run(body, cluster)
    assert given is True
    assert states_of(run_id) == {
        ("watches_it_die", "Completed"): 1,
        ("dies_once_it_is_known", "Crashed"): 1,
    }


def states_of(run_id: UUID) -> Counter[tuple[str, str | None]]:
    """How many task runs there are of each task and state."""
    return Counter((re.split(r"[-\[]", one.name)[0], one.state_name) for one in task_runs(run_id))


@task
def watches_it_die(diary: str, there: str) -> bool:
    with dask.annotate(workers=[there]):
        child = dies_once_it_is_known.submit(diary)
    child.wait()
    return bool(child.state.is_crashed())


@task
def dies_always(diary: str) -> None:
    die(diary)


@task
def twenty(source: tuple[str, int]) -> list[Item]:
    diary, number = source
    return [(diary, number, item) for item in range(20)]


@task
def every_tenth_fails(item: Item) -> int:
    diary, source, position = item
    note(diary, f"{source}-{position}-{task_run.id}")
    if position % 10 == 9:
        raise ValueError("a tenth item")
    time.sleep(0.02)
    return os.getpid()


@pytest.mark.every_combination
@pytest.mark.parametrize("record", ["items", "batches", "sources", "auto"])
@pytest.mark.parametrize("strategy", PARALLEL)
def test_the_api_shows_what_happened_also_where_a_worker_died(
    strategy: str, record: str, tmp_path: Path, mortal: LocalCluster
) -> None:
    def body() -> int:
        given = 0
        sources = [(str(tmp_path), number) for number in range(8)]
        options: dict[str, Any] = {"strategy": strategy, "record": record, "batch": 4}
        options |= {"on_failure": "ignore", "label": numbers_of}
        for item in evolve_iter(sources, twenty, every_tenth_fails, **options):
            given += 1
            if item.ok and given >= 30 and not (tmp_path / "death").exists():
                (tmp_path / "death").touch()
                kill(item.value)
        return given

    run_id, given = run(body, mortal)
    assert given == 160
    runs = task_runs(run_id)
    states = Counter((one.name.partition("[")[0], one.state_name) for one in runs)
    assert all(one.state is not None and one.state.is_final() for one in runs), states
    assert all(one.start_time and one.end_time for one in runs), states
    assert all(one.start_time <= one.end_time for one in runs), states  # type: ignore[operator]
    # What the items themselves have noted: each was worked on, some of them once more.
    noted = [path.name.partition(".")[0].split("-", 2) for path in tmp_path.glob("*-*")]
    executed = Counter((int(source), int(position)) for source, position, _ in noted)
    assert len(executed) == 160
    assert states["twenty", "Completed"] >= 8
    items = [one for one in runs if one.name.startswith("every_tenth_fails[")]
    if record == "sources":
        assert items == []
        return
    assert states["every_tenth_fails", "Failed"] == 16
    shown = Counter(
        item for one in items if one.state_name == "Completed" for item in items_of(one.name)
    )
    failed = Counter(
        item for one in items if one.state_name == "Failed" for item in items_of(one.name)
    )
    assert set(failed) == {item for item in executed if item[1] % 10 == 9}
    assert set(shown) | set(failed) == set(executed)
    for item, count in shown.items():
        assert count <= executed[item], (item, count)
    if record == "items":
        assert states["every_tenth_fails", "Completed"] == 144
        assert {str(one.id) for one in items} == {run_id for _, _, run_id in noted}


def numbers_of(one: tuple[Any, ...]) -> str:
    return str(one[-1])  # of a source, or an item's position


def items_of(name: str) -> list[tuple[int, int]]:
    """Source and positions of what a task run is of, by its name."""
    source, positions = re.findall(r"\[(\d+) (\d+(?:-\d+)?)\]$", name)[0]
    first, _, last = positions.partition("-")
    return [(int(source), position) for position in range(int(first), int(last or first) + 1)]
