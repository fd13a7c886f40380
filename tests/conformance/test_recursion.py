"""Items that lead to further items: the same outcome with every strategy, and an end by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from prefect import task
from prefect.runtime import flow_run

from evolve_tasks import (
    EvolveFailed,
    EvolveTaskRunner,
    More,
    Outcome,
    evolve,
    evolve_iter,
    tolerate,
)
from tests.conformance.flows import in_flow
from tests.integration.api import task_runs

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

Node = tuple[int, ...]


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    return EvolveTaskRunner(address=thread_workers)


# -- a tree in which each node leads to some stage -------------------------------------------------


def children(node: Node) -> list[Node]:
    """Up to three, down to four levels; the same for the same node in every process."""
    number = sum((2 * at + 3) * step for at, step in enumerate(node, 1))
    return [(*node, step) for step in range(number % 4 if len(node) < 5 else 0)]


def leads_to(node: Node, stages: int) -> int:
    return sum(node) % stages


def doubled(node: Node) -> list[Node]:
    """An expanding stage: it gives two items, or one."""
    return [node, (*node, 9)] if sum(node) % 3 == 0 and node[-1] != 9 else [node]


@task
def one_by_one(node: Node) -> list[Node]:
    if node[-1] == 2 and len(node) == 3:
        raise OSError("broken")
    return [node]


@task
def visited(node: Node) -> Node | More:
    if len(node) == 4 and node[-1] == 1:
        raise ValueError("an odd one")
    found = [] if node[-1] == 9 else children(node)
    return More(node, found, leads_to(node, 3)) if found else node


def expected(sources: list[Node]) -> tuple[list[Node], list[tuple[str, Node]]]:
    """Results and failures in order, by a plain walk."""
    results: list[tuple[Node, Node]] = []
    failures: list[tuple[str, Node]] = []

    def walk(stage: int, index: Node, node: Node) -> None:
        given: Any
        try:
            given = (doubled, one_by_one.fn, visited.fn)[stage](node)
        except (OSError, ValueError):
            failures.append((("doubled", "one_by_one", "visited")[stage], index))
            return
        if stage < 2:
            for place, item in enumerate(given):
                walk(stage + 1, (*index, place), item)
        elif isinstance(given, More):
            results.append((index, given.value))
            for place, item in enumerate(given.items):
                walk(given.stage, (*index, place), item)
        else:
            results.append((index, given))

    for position, source in enumerate(sources):
        walk(0, (position,), source)
    return [node for _, node in sorted(results)], sorted(failures, key=lambda one: one[1])


ROOTS: list[Node] = [(1,), (0,), (2,), (5,), (7,)]
RESULTS, FAILURES = expected(ROOTS)


def test_the_tree_has_what_it_is_for() -> None:
    assert len(RESULTS) > 60
    assert {stage for stage, _ in FAILURES} == {"one_by_one", "visited"}
    assert {leads_to(node, 3) for node in RESULTS if children(node)} == {0, 1, 2}


@pytest.mark.parametrize(("batch", "record"), [(1, "sources"), (3, "items"), ("auto", "auto")])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_found_is_worked_on(strategy: str, batch: Any, record: str, runner: Any) -> None:
    ids: list[UUID] = []

    def body() -> Outcome:
        ids.append(UUID(flow_run.id))
        options: Any = {"strategy": strategy, "batch": batch, "record": record}
        return evolve(ROOTS, doubled, one_by_one, visited, on_failure="ignore", **options)

    outcome = in_flow(runner, body)
    assert outcome.results == RESULTS
    assert [(one.stage, one.index) for one in outcome.failures] == FAILURES
    assert [one.source for one in outcome.failures] == [ROOTS[index[0]] for _, index in FAILURES]
    assert [source for source, _ in outcome.by_source] == ROOTS
    assert (outcome.counts.sources, outcome.counts.done) == (len(ROOTS), len(RESULTS))
    for stage in outcome.counts.by_stage.values():
        assert stage.discovered == stage.done + stage.failed
    if record == "items":
        names = Counter(one.name for one in task_runs(ids[0]))
        assert sum(name.startswith("visited[") for name in names) == len(RESULTS) + sum(
            stage == "visited" for stage, _ in FAILURES
        )
        assert max(names.values()) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_iter_gives_what_is_found_with_its_path(strategy: str, runner: Any) -> None:
    def body() -> list[Any]:
        options: Any = {"strategy": strategy, "on_failure": "ignore"}
        return list(evolve_iter(ROOTS, doubled, one_by_one, visited, **options))

    given = sorted(in_flow(runner, body), key=lambda one: one.index)
    assert [one.value for one in given if one.ok] == RESULTS
    assert [(one.failure.stage, one.index) for one in given if not one.ok] == FAILURES


# -- many short lists, which are worked on where they are found ------------------------------------

SHORT = 600  # sources: more than are sent before it is known that they are short
FAR = 10_000


def two_each(number: int) -> list[int]:
    return [2 * number, 2 * number + 1]


def led_once(item: int) -> Any:
    if item % 7 == 0:
        raise ValueError("an odd one")
    return More(item, [FAR + item], stage=1) if item < FAR and item % 3 == 0 else item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_items_of_short_sources_lead_further(strategy: str, runner: Any) -> None:
    options: Any = {"strategy": strategy, "on_failure": "ignore"}
    outcome = in_flow(runner, lambda: evolve(range(SHORT), two_each, led_once, **options))
    walked = [
        one
        for item in range(2 * SHORT)
        for one in ([item, FAR + item] if item % 3 == 0 and item % 7 else [item])
    ]
    assert outcome.results == [item for item in walked if item % 7]
    odd = [
        index
        for item in range(2 * SHORT)
        for index, one in (((item // 2, item % 2), item), ((item // 2, item % 2, 0), FAR + item))
        if one in walked and one % 7 == 0
    ]
    assert [(failure.stage, failure.index) for failure in outcome.failures] == [
        ("led_once", index) for index in odd
    ]
    assert outcome.counts.done + outcome.counts.failed == len(walked)


# -- what cannot be followed -----------------------------------------------------------------------


def once(source: Any) -> list[Any]:
    return [source]


def nowhere(item: int) -> Any:
    if item == 1:
        return More(item, [2], stage=7)
    if item == 2:
        return More(item, "abc")
    if item == 4:
        return More(item, [object()], stage=1)
    return More(item)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_cannot_be_followed_is_a_failure_of_its_item(strategy: str, runner: Any) -> None:
    def body() -> None:
        evolve(range(3), once, nowhere, strategy=strategy)

    with pytest.raises(EvolveFailed) as raised:
        in_flow(runner, body)
    outcome = raised.value.outcome
    assert outcome.results == [0]
    wrong, text = outcome.failures
    assert (wrong.index, wrong.error_type) == ((1, 0), "ValueError")
    assert "stage=7" in wrong.message
    assert "0 to 1" in wrong.message
    assert (text.index, text.error_type) == ((2, 0), "TypeError")
    assert "taken apart" in text.message


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_cannot_be_compared_is_a_failure_of_its_item(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "unique": True, "on_failure": "ignore"}
        return evolve([4, 0], once, nowhere, **options)

    outcome = in_flow(runner, body)
    assert outcome.results == [0]
    (failure,) = outcome.failures
    assert (failure.index, failure.error_type) == ((0, 0), "TypeError")
    assert "give key=" in failure.message


# -- graphs with loops -----------------------------------------------------------------------------

NODES = 150
LINKS = {
    node: [Random(f"{node} {link}").randrange(NODES) for link in range(3)] for node in range(NODES)
}


def reachable() -> set[int]:
    found, todo = {0}, [0]
    while todo:
        for link in LINKS[todo.pop()]:
            if link not in found:
                found.add(link)
                todo.append(link)
    return found


def linked(node: int) -> More:
    return More(node, LINKS[node], stage=0)


def linked_here(node: int) -> More:
    return More(node, LINKS[node], stage=1)


@pytest.mark.parametrize(("visit", "batch"), [(linked, "auto"), (linked_here, 1)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_node_of_a_graph_once(strategy: str, visit: Any, batch: Any, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "unique": True, "batch": batch}
        return evolve([0, 0], once, visit, **options)

    outcome = in_flow(runner, body)
    assert sorted(outcome.results) == sorted(reachable())
    assert outcome.counts.done == outcome.counts.discovered == len(reachable())
    assert outcome.counts.repeated > NODES
    assert f"{outcome.counts.repeated} found again" in str(outcome.counts)
    assert outcome.stopped is None


def upper(word: str) -> More:
    return More(word, [word.upper(), word.lower(), f"{word}!"] if len(word) < 4 else [], stage=1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_key_says_what_makes_items_the_same(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "unique": True, "key": str.casefold}
        return evolve(["Ab", "aB"], once, upper, **options)

    assert in_flow(runner, body).results == ["Ab", "Ab!", "Ab!!"]


# -- bounds ----------------------------------------------------------------------------------------


def endless(number: int) -> More:
    return More(number, [2 * number, 2 * number + 1], stage=1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_item_below_the_deepest_level(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        return evolve([1], once, endless, strategy=strategy, max_depth=4)

    outcome = in_flow(runner, body)
    assert sorted(outcome.results) == list(range(1, 32))
    assert outcome.stopped == "limits.max_depth=4 was reached, and 32 items lie deeper"
    assert "32 items lie deeper" in outcome.report.markdown().replace("\\", "")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_path_that_is_too_deep_does_not_hide_a_shorter_one(strategy: str, runner: Any) -> None:
    links = {0: [1, 3], 1: [2], 2: [3], 3: [4], 4: []}

    def visit(node: int) -> More:
        return More(node, links[node], stage=1)

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "unique": True, "max_depth": 2}
        return evolve([0], once, visit, **options)

    assert sorted(in_flow(runner, body).results) == [0, 1, 2, 3, 4]


def graph(seed: int) -> dict[int, list[int]]:
    random = Random(seed)
    return {node: random.choices(range(60), k=random.randint(0, 3)) for node in range(60)}


def distances(links: dict[int, list[int]], sources: list[int]) -> dict[int, int]:
    """How far each node is from the sources, breadth first."""
    found = dict.fromkeys(sources, 0)
    todo = list(found)
    for node in todo:  # which grows
        for link in links[node]:
            if link not in found:
                found[link] = found[node] + 1
                todo.append(link)
    return found


def visit_of(seed: int, stage: int) -> Any:
    links = graph(seed)

    def visit(node: int) -> More:
        return More(node, links[node], stage=stage)

    return visit


@pytest.mark.parametrize("batch", [1, "auto"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_within_the_depth_is_reached_by_whatever_path(
    strategy: str, batch: Any, runner: Any
) -> None:
    programs = [
        (seed, sources, depth, seed % 2)
        for seed, (sources, depth) in enumerate(
            (sources, depth) for sources in ([0], [0, 1, 2]) for depth in (1, 2, 3, 5)
        )
    ]

    def body() -> list[Outcome]:
        options: Any = {"strategy": strategy, "unique": True, "batch": batch}
        return [
            evolve(sources, once, visit_of(seed, stage), max_depth=depth, **options)
            for seed, sources, depth, stage in programs
        ]

    for (seed, sources, depth, _), outcome in zip(programs, in_flow(runner, body), strict=True):
        links = graph(seed)
        far = distances(links, sources)
        within = sorted(node for node in far if far[node] <= depth)
        deeper = sum(
            far[link] > depth for node in within if far[node] == depth for link in links[node]
        )
        assert sorted(outcome.results) == within
        text = f"{deeper} item{'' if deeper == 1 else 's'} lie deeper"
        assert outcome.stopped == (
            f"limits.max_depth={depth} was reached, and {text}" if deeper else None
        )
        assert outcome.counts.discovered == outcome.counts.done == len(within)


def test_a_later_run_reaches_what_is_within_the_depth_as_well(runner: Any, tmp_path: Path) -> None:
    """What a journal has leads on, too, and by the shortest path."""
    links = graph(7)
    far = distances(links, [0])
    broken = tmp_path / "broken"
    broken.touch()

    def visit(node: int) -> More:
        if broken.exists() and far[node] > 1 and node % 3 == 0:
            raise OSError("not yet")
        return More(node, links[node], stage=1)

    def body() -> Outcome:
        options: Any = {"unique": True, "max_depth": 4, "on_failure": "ignore", "batch": 1}
        return evolve([0], once, visit, journal=tmp_path.name, **options)

    first = in_flow(runner, body)
    assert first.failures
    broken.unlink()
    second = in_flow(runner, body)
    assert sorted(second.results) == sorted(node for node in far if far[node] <= 4)
    assert second.counts.resumed == first.counts.done > 3


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_links_back_from_the_deepest_level_lie_no_deeper(
    strategy: str, stage: int, runner: Any
) -> None:
    links = {0: [1, 2], 1: [0, 2], 2: [0, 1, 2]}

    def visit(node: int) -> More:
        return More(node, links[node], stage=stage)

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "unique": True, "max_depth": 1}
        return evolve([0], once, visit, **options)

    outcome = in_flow(runner, body)
    assert sorted(outcome.results) == [0, 1, 2]
    assert outcome.stopped is None
    assert outcome.counts.repeated == 5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_of_equal_sources_one_is_collected(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "unique": True}
        return evolve(["a", "b", "a"], list, str.upper, collect=joined, **options)

    outcome = in_flow(runner, body)
    assert outcome.collected == [("a", "a: A"), ("b", "b: B")]
    assert outcome.results == ["A", "B"]


def joined(source: str, results: list[str]) -> str:
    return f"{source}: {''.join(results)}"


def slow_to_fail(item: int) -> int | More:
    """The first fails at once; what the others find makes its share a small one."""
    if item == 0:
        raise OSError("no such page")
    if item < 3:
        return More(item, range(10 * item, 10 * item + 20), stage=1)
    return item


@pytest.mark.parametrize("bound", [{"unique": True}, {"max_depth": 5}, {"max_items": 1_000}])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_share_of_failures_is_of_what_is_found_as_well(
    strategy: str, bound: dict[str, Any], runner: Any
) -> None:
    def body() -> Outcome:
        options: Any = {"on_failure": tolerate(ratio=0.2), "batch": 1, **bound}
        return evolve([3], range, slow_to_fail, strategy=strategy, **options)

    outcome = in_flow(runner, body)
    assert (outcome.stopped, len(outcome.failures)) == (None, 1)
    assert len(outcome.results) == (2 + 30 if "unique" in bound else 2 + 40)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_recursion_ends_at_the_limit(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        return evolve([1], once, endless, strategy=strategy, max_items=50)

    outcome = in_flow(runner, body)
    assert len(outcome.results) == outcome.counts.discovered == 50
    assert outcome.stopped is not None
    assert "limits.max_items=50 was reached" in outcome.stopped


# -- resuming --------------------------------------------------------------------------------------


class Visit:
    """Notes each visit; some nodes cannot be visited as long as a file is there."""

    def __init__(self, folder: Path, stage: int) -> None:
        self.folder, self.stage = str(folder), stage

    def __call__(self, node: int) -> More:
        folder = Path(self.folder)
        if node % 5 == 3 and (folder / "closed").exists():
            raise OSError("closed")
        with (folder / "diary").open("a") as diary:
            diary.write(f"{node}\n")
        return More(node, LINKS[node] if node % 7 else [node + 1], self.stage)


@pytest.mark.parametrize(
    ("strategy", "stage"), [("sequential", 0), ("as_completed", 1), ("async", 0), ("nested", 1)]
)
def test_a_later_run_visits_what_is_missing(
    strategy: str, stage: int, runner: Any, tmp_path: Path
) -> None:
    visit = Visit(tmp_path, stage)
    closed = tmp_path / "closed"
    closed.touch()
    options: Any = {
        "strategy": strategy,
        "unique": True,
        "journal": str(tmp_path),
        "on_failure": "ignore",
    }

    def body() -> Outcome:
        return evolve([0], once, visit, **options)

    first = in_flow(runner, body)
    assert first.failures
    closed.unlink()
    second = in_flow(runner, body)
    assert not second.failures
    assert second.counts.resumed == len(first.results)
    assert len(second.results) == len(set(second.results)) > len(first.results)
    diary = (tmp_path / "diary").read_text().split()
    assert sorted(map(int, diary)) == sorted(second.results)
    third = in_flow(runner, body)
    assert sorted(third.results) == sorted(second.results)
    assert third.counts.resumed == third.counts.discovered


class Down:
    """A tree of fixed shape; notes each visit, and fails as long as a file is there."""

    def __init__(self, folder: Path, stage: int) -> None:
        self.folder, self.stage = str(folder), stage

    def __call__(self, node: Node) -> Node | More:
        folder = Path(self.folder)
        if sum(node) % 4 == 3 and (folder / "closed").exists():
            raise OSError("closed")
        with (folder / "diary").open("a") as diary:
            diary.write(f"{node}\n")
        found = children(node)
        return More(node, found, self.stage) if found else node


@pytest.mark.parametrize(
    ("strategy", "stage"), [("sequential", 1), ("as_completed", 0), ("async", 1), ("nested", 0)]
)
def test_what_was_found_is_resumed_by_its_place(
    strategy: str, stage: int, runner: Any, tmp_path: Path
) -> None:
    visit = Down(tmp_path, stage)
    closed = tmp_path / "closed"
    closed.touch()
    options: Any = {"strategy": strategy, "journal": str(tmp_path), "on_failure": "ignore"}

    def body() -> Outcome:
        return evolve([*ROOTS, ROOTS[0]], once, visit, **options)

    first = in_flow(runner, body)
    assert first.failures
    closed.unlink()
    second = in_flow(runner, body)
    assert not second.failures
    assert second.counts.resumed == len(first.results)
    diary = (tmp_path / "diary").read_text().splitlines()
    assert sorted(diary) == sorted(map(str, second.results))
    third = in_flow(runner, body)
    assert third.results == second.results
    assert third.counts.resumed == third.counts.discovered


def by_first(row: tuple[str, str]) -> str:
    return row[0]


def by_second(row: tuple[str, str]) -> str:
    return row[1]


def rows(_: int) -> list[tuple[str, str]]:
    return [("x", "y"), ("y", "x"), ("z", "x")]


@pytest.mark.parametrize("strategy", ["sequential", "as_completed"])
def test_another_key_means_other_items_also_to_a_journal(
    strategy: str, runner: Any, tmp_path: Path
) -> None:
    def body() -> list[Outcome]:
        options: Any = {"strategy": strategy, "unique": True, "journal": str(tmp_path)}
        return [
            evolve([0], rows, "".join, key=key, **options)
            for key in (by_first, by_second, by_first)
        ]

    first, other, again = in_flow(runner, body)
    assert first.results == ["xy", "yx", "zx"]
    assert other.results == ["xy", "yx"]
    assert other.counts.resumed == 0
    assert again.results == first.results
    assert again.counts.resumed == 3
