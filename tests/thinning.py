"""Which combinations of parameters run in the usual tests.

All of them take longer than anybody waits for; `make matrix` runs all. Of a test with two
parameters the usual tests run each value of each, with three or more each pair of values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations

import pytest

Values = tuple[Hashable, ...]


def covering(every: Sequence[Values]) -> list[int]:
    """Choose combinations that hold each value of two parameters, each pair of more.

    Args:
        every: N combinations of M parameters, each of them once.

    Returns:
        Places of those that are chosen, in order; all where M < 2.
    """
    size = len(every[0]) - 1 if len(every[0]) < 3 else 2
    if size < 1:
        return list(range(len(every)))
    held = [set(combinations(enumerate(values), size)) for values in every]
    missing = set().union(*held)
    chosen: list[int] = []
    while missing:
        # The first of the best: the same ones each time, in each process.
        best = max(range(len(every)), key=lambda place: (len(held[place] & missing), -place))
        missing -= held[best]
        chosen.append(best)
    return sorted(chosen)


def thin(items: list[pytest.Item]) -> list[pytest.Item]:
    """Take tests out of a list, in place, and give them: of tests on a cluster, thinned."""
    functions: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("every_combination"):
            functions[item.nodeid.partition("[")[0]].append(item)
    left_out: list[pytest.Item] = []
    for same in functions.values():
        kept = {same[place] for place in covering([_values(item) for item in same])}
        left_out += [item for item in same if item not in kept]
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]
    return left_out


def _values(item: pytest.Item) -> Values:
    """What a test is called with; what is listed together in one mark is one value."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return ()
    names = dict.fromkeys(callspec.params)
    together: list[list[str]] = []
    for mark in item.iter_markers("parametrize"):
        listed = mark.args[0]
        listed = listed.split(",") if isinstance(listed, str) else listed
        together.append([name.strip() for name in listed])
        for name in together[-1]:
            names.pop(name, None)
    together += [[name] for name in names]
    # Not by their values, which need not be comparable: the same ones are the same objects.
    return tuple(tuple(id(callspec.params[name]) for name in group) for group in together)
