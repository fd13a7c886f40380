"""A poisonous item costs itself and three workers, whatever it stood beside."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from evolve_tasks.core.actions import Action, Expand, Found, Process, Pull
from evolve_tasks.core.budget import Finish
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.suspects import MOST_DEATHS, Suspect, divided, guilty, parts
from evolve_tasks.core.window import Window


@pytest.mark.parametrize("size", [1, 2, 3, 10, 99, 100, 10_000])
@pytest.mark.parametrize("crashes", [1, 2])
def test_parts_are_the_whole_in_order(size: int, crashes: int) -> None:
    for parent in (None, (3, 1)):
        divided = parts(Suspect(1, 5, parent, 5, 5 + size, crashes))
        covered = [position for part in divided for position in range(part.start, part.stop)]
        assert covered == list(range(5, 5 + size))
        assert all(part.crashes == crashes for part in divided)
        assert all(part.source == (5 if parent else part.start) for part in divided)
        largest = max(part.size for part in divided)
        assert largest == 1 if crashes == MOST_DEATHS - 1 else largest**2 <= size


def test_only_a_single_one_is_given_up() -> None:
    assert [guilty(1, deaths) for deaths in range(1, 5)] == [False, False, True, True]
    assert not any(guilty(2, deaths) for deaths in range(1, 9))


def test_what_was_not_at_work_is_not_suspected() -> None:
    lost = Suspect(1, 5, (9, 0), 10, 20, crashes=0)
    for item_s in (None, 0.1, 60.0):
        again = divided(lost, [13, 19], item_s)
        assert [(one.start, one.stop, one.crashes) for one in again] == [
            (10, 13, 0),
            (13, 14, 1),
            (14, 19, 0),
            (19, 20, 1),
        ]
        # What takes a minute does not make everything else wait for it.
        assert [one.alone for one in again] == [False, item_s != 60.0] * 2
    (all_of_it,) = divided(lost, [], 0.1)
    assert all_of_it == lost
    sources = divided(Suspect(0, 10, None, 10, 13, crashes=1), [11], 60.0)
    assert [(one.source, one.start, one.crashes, one.alone) for one in sources] == [
        (10, 10, 1, False),
        (11, 11, 2, True),
        (12, 12, 1, False),
    ]
    assert divided(lost, None, 0.1) == parts(Suspect(1, 5, (9, 0), 10, 20, crashes=1))


class Cluster:
    """Workers with threads; a poisonous item takes its worker down with all that is on it."""

    def __init__(self, core: Evolution, workers: int, poison: set[tuple[int, int]], seed: int):
        self.core = core
        self.workers = workers
        self.poison = poison
        self.random = Random(seed)
        self.deaths = 0
        self.runs: Counter[tuple[int, int]] = Counter()
        self.given_up: list[tuple[int, int]] = []
        self._on: dict[int, tuple[int, Expand | Process]] = {}

    def run(self, sources: int, fan_out: int) -> None:
        core, left = self.core, sources
        todo: list[Action] = core.begin()
        while True:
            while todo:
                match todo.pop(0):
                    case Pull(most):
                        count = min(most, left)
                        left -= count
                        todo += core.sources_arrived(count)
                    case Expand() | Process() as action:
                        self._on[action.unit] = self.random.randrange(self.workers), action
            if core.finished:
                return
            unit = self.random.choice(list(self._on))
            worker, action = self._on[unit]
            if isinstance(action, Expand):
                del self._on[unit]
                todo += core.expanded(unit, [Found(fan_out)] * (action.stop - action.start))
                continue
            items = [(action.source, item) for item in range(action.start, action.stop)]
            self.runs.update(items)
            if not self.poison.isdisjoint(items):
                self.deaths += 1
                for other in [one for one, (place, _) in self._on.items() if place == worker]:
                    lost = self._on.pop(other)[1]
                    if core.gives_up(other):
                        self.given_up.append((lost.source, lost.start))
                    todo += core.crashed(other)
                continue
            del self._on[unit]
            todo += core.processed(unit)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("batch", [1, 100, None])
def test_one_poisonous_item_takes_down_three_workers_and_fails_alone(
    seed: int, batch: int | None
) -> None:
    window = Window(units=16, threads=4)
    core = Evolution(stages=2, window=window, buffered=10_000, batch=batch, budget=Finish())
    cluster = Cluster(core, workers=2, poison={(3, 57)}, seed=seed)
    cluster.run(sources=20, fan_out=100)
    assert cluster.given_up == [(3, 57)]
    assert cluster.deaths == MOST_DEATHS
    last = core.tallies[1]
    assert (last.discovered, last.done, last.failed) == (2_000, 1_999, 1)


@pytest.mark.parametrize("seed", range(30))
def test_many_poisonous_items_are_found_and_nothing_else_is_given_up(seed: int) -> None:
    random = Random(seed)
    poison = {(random.randrange(20), random.randrange(50)) for _ in range(8)}
    window = Window(in_flight=60, threads=4)
    core = Evolution(stages=2, window=window, buffered=10_000, batch=10, budget=Finish())
    cluster = Cluster(core, workers=3, poison=poison, seed=seed)
    cluster.run(sources=20, fan_out=50)
    assert sorted(cluster.given_up) == sorted(poison)
    assert cluster.deaths <= MOST_DEATHS * len(poison)
    assert core.tallies[1].done == 1_000 - len(poison)
