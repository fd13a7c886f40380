"""A list that is made again is the same, or is refused: only positions in it are sent."""

from __future__ import annotations

import pytest

from evolve_tasks.errors import ItemsChanged
from evolve_tasks.journal import items_token
from evolve_tasks.workers.calls import Expansion, Measure, Part, SourceEnd, Span
from evolve_tasks.workers.keys import keys_of
from evolve_tasks.workers.transport import NOTHING
from evolve_tasks.workers.units import cut


def expansion(items: list[object], *, journaled: bool = False, unique: bool = False) -> Expansion:
    end = SourceEnd(
        size=len(items),
        token=items_token(items) if journaled else "",
        keys=keys_of(None, items) if unique else b"",
    )
    return Expansion([items], Measure([end], NOTHING, 0.0, 0.0, False, Span()))


def part_of(found: Expansion) -> Part:
    """What the flow asks for, once it has heard of a list."""
    (end,) = found.measure.ends
    return Part("a.txt", 0, 1, 3, end.size, end.stands_for())


@pytest.mark.parametrize("kind", ["journaled", "unique"])
def test_another_order_is_noticed_where_it_is_known(kind: str) -> None:
    kinds = {kind: True}
    part = part_of(expansion([1, 2, 3], **kinds))
    assert cut(expansion([1, 2, 3], **kinds), part).items == [2, 3]
    with pytest.raises(ItemsChanged, match=r"a\.txt gave other items, or in another order"):
        cut(expansion([1, 3, 2], **kinds), part)
    with pytest.raises(ItemsChanged, match=r"a\.txt gave 3 items, and 2 when it was parsed again"):
        cut(expansion([1, 2], **kinds), part)


def test_what_no_journal_can_be_sure_of_is_taken_by_its_number() -> None:
    # An object that nothing tells from others has another token each time.
    part = part_of(expansion([object(), 2, 3], journaled=True))
    assert not part.given
    assert cut(expansion([object(), 2, 3], journaled=True), part).items == [2, 3]
