"""What `reduce=` makes of all results: which parts have come, and what can be combined next.

Parts come packed, and stay so: they are combined on the workers, in the shape that `core.folding`
gives them. A list is a tree of its own; what it comes to stands for the item that gave it.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from evolve_tasks.core.folding import TIER, Block, Fold, result_of
from evolve_tasks.errors import InvalidInput
from evolve_tasks.naming import short_repr
from evolve_tasks.outcome import Failure
from evolve_tasks.stages import Stage, called, function_name, owned
from evolve_tasks.workers.transport import Packed

Index = tuple[int, ...]  # positions from the source down to what gave a list; none: the sources

NO_VALUE = Packed.of([])


class Group(NamedTuple):
    """Blocks that are combined to one part.

    Args:
        path: the list that they are of.
        step: the step of its tree; `None`: an item's own value, and what it led to.
        blocks: the blocks, in order.
    """

    path: Index
    step: tuple[int, int] | None
    blocks: list[Block]


@dataclass(frozen=True, slots=True)
class Combination:
    """Groups that are combined together, of some hundred blocks in all at the most."""

    groups: list[Group]


@dataclass(slots=True)
class Reducing:
    """Gathers what units have combined, and says what is to be combined further.

    Args:
        stage: the function, as a stage after the others.
    """

    stage: Stage
    failure: Failure | None = None
    value: Packed | None = None  # what all of it comes to, at the end
    _folds: dict[Index, Fold] = field(default_factory=lambda: {(): Fold()})
    _own: dict[Index, Packed] = field(default_factory=dict)  # of items that led further
    _lists: dict[int, set[Index]] = field(default_factory=dict)  # by source
    _ended: set[int] = field(default_factory=set)  # sources of which nothing more comes
    _out: Counter[int] = field(default_factory=Counter)  # groups that are being combined
    _ready: list[Group] = field(default_factory=list)

    def take(self, index: Index, blocks: Iterable[Block]) -> None:
        """Take blocks of a list."""
        fold = self._fold(index)
        for block in blocks:
            if (step := fold.add(block)) is not None:
                self._want(Group(index, step, fold.take(step)))

    def take_values(self, index: Index, start: int, values: Sequence[Any]) -> None:
        """Take results of consecutive items as they are, as a journal has them."""
        parts = [Packed.of([value]) for value in values]
        self.take(index, [Block(0, place, part) for place, part in enumerate(parts, start)])

    def take_own(self, index: Index, part: Packed) -> None:
        """Take the value of an item that led further: it comes before what it led to."""
        self._own[index] = part
        self._fold(index)

    def source_ended(self, position: int) -> None:
        """Nothing more comes from a source."""
        if not self._lists.get(position):
            self.take((), [Block(0, position, NO_VALUE)])
            return
        self._ended.add(position)
        self._go_on(position)

    def over(self) -> None:
        """No further source comes."""
        fold = self._folds[()]
        if self._ended or self._ready or any(self._out.values()):
            return
        fold.lift()
        if steps := fold.next_steps():
            for step in steps:
                self._want(Group((), step, fold.take(step)))
            return
        blocks = fold.blocks()
        self.value = blocks[0].part if blocks else NO_VALUE

    def wanted(self) -> list[Combination]:
        """What can be combined now; each is to be answered by `combined`, once."""
        combinations: list[Combination] = []
        size = 1 << TIER
        for group in self._ready:
            size += len(group.blocks)
            if size > 1 << TIER:
                combinations.append(Combination([]))
                size = len(group.blocks)
            combinations[-1].groups.append(group)
        self._ready = []
        return combinations

    def combined(self, combination: Combination, parts: Sequence[Packed]) -> None:
        """Take what the groups came to."""
        for group, part in zip(combination.groups, parts, strict=True):
            self._out[_source_of(group.path)] -= 1
            if group.step is None:
                self._hand_over(group.path, part)
            else:
                self.take(group.path, [result_of(group.step, part)])
        for position in {_source_of(group.path) for group in combination.groups}:
            if position in self._ended:
                self._go_on(position)

    def _fold(self, index: Index) -> Fold:
        if index not in self._folds:
            self._folds[index] = Fold()
            self._lists.setdefault(index[0], set()).add(index)
        return self._folds[index]

    def _want(self, group: Group) -> None:
        self._out[_source_of(group.path)] += 1
        self._ready.append(group)

    def _go_on(self, position: int) -> None:
        """Combine what a source that has ended came to, the deepest lists first."""
        while not self._out[position]:
            lists = self._lists.get(position)
            if not lists:
                self._lists.pop(position, None)
                self._out.pop(position, None)
                self._ended.discard(position)
                return
            depth = max(map(len, lists))
            for index in [index for index in lists if len(index) == depth]:
                fold = self._folds[index]
                fold.lift()
                if steps := fold.next_steps():
                    for step in steps:
                        self._want(Group(index, step, fold.take(step)))
                    continue
                blocks = fold.blocks()
                part = blocks[0].part if blocks else NO_VALUE
                own = self._own.pop(index, None)
                if own is None or not blocks:
                    self._hand_over(index, part if own is None else own)
                else:
                    pair = [Block(0, 0, own), Block(0, 1, part)]
                    self._drop(index)
                    self._want(Group(index, None, pair))

    def _hand_over(self, index: Index, part: Packed) -> None:
        """What a list came to stands for what gave it."""
        self._drop(index)
        self.take(index[:-1], [Block(0, index[-1], part)])

    def _drop(self, index: Index) -> None:
        self._folds.pop(index, None)
        self._lists.get(index[0], set()).discard(index)


def _source_of(index: Index) -> int:
    return index[0] if index else -1


def reducing_by(function: Any, position: int) -> Reducing | None:
    """Check a `reduce=`, and make a stage of it.

    Args:
        function: what was given; `None` for nothing.
        position: position of the stage after the others.

    Raises:
        InvalidInput: it cannot be called with two values.
    """
    if function is None:
        return None
    if not callable(function):
        raise InvalidInput(
            f"reduce={short_repr(function)} is not callable: give a Prefect @task or a function of "
            "two values that gives one, as in reduce=operator.add"
        )
    stage = Stage(function_name(function), position, True, owned(function))
    try:
        inspect.signature(called(stage.function)).bind(None, None)
    except ValueError:  # some builtins do not tell
        pass
    except TypeError as error:
        raise InvalidInput(
            f"reduce={stage.name} cannot be called with two values ({error}): give a function of "
            "two results that gives one of their kind"
        ) from error
    return Reducing(stage)
