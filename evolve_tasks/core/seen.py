"""Which items a run has met, so that equal ones are worked on once."""

from __future__ import annotations

from collections.abc import Sequence

# Bytes that stand for an item. Among a billion items the chance that two of them share theirs is
# below 1e-20.
KEY_BYTES = 16


class Seen:
    """The items that each stage has met; it grows with every new one, by some hundred bytes.

    Args:
        stages: number of stages.

    Example:
        >>> seen = Seen(stages=2)
        >>> seen.fresh(1, b"a" * 16 + b"b" * 16 + b"a" * 16)
        [0, 1]
        >>> seen.fresh(1, b"c" * 16 + b"a" * 16), seen.fresh(0, b"a" * 16)
        ([0], [0])
    """

    def __init__(self, stages: int) -> None:
        self._keys: list[set[bytes]] = [set() for _ in range(stages)]
        self.repeated = [0] * stages

    def fresh(self, stage: int, keys: bytes, *, left: bool = False) -> list[int]:
        """Positions of the items that the stage has not met, which it has from now on.

        Args:
            stage: the stage that works on them.
            keys: `KEY_BYTES` bytes for each of N >= 0 items.
            left: they are left where they are, and not met by that.
        """
        known, new = self._keys[stage], []
        for position in range(len(keys) // KEY_BYTES):
            key = key_at(keys, position)
            if key not in known:
                new.append(position)
                if not left:
                    known.add(key)
        self.repeated[stage] += len(keys) // KEY_BYTES - len(new)
        return new


def key_at(keys: bytes, position: int) -> bytes:
    """What stands for one of some items."""
    return keys[position * KEY_BYTES : (position + 1) * KEY_BYTES]


def ranges(positions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Put positions that follow one another together.

    Example:
        >>> ranges([0, 1, 4])
        ((0, 2), (4, 5))
    """
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and found[-1][1] == position:
            found[-1] = (found[-1][0], position + 1)
        else:
            found.append((position, position + 1))
    return tuple(found)
