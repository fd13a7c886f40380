"""What a run takes from its journal, and what it gives to it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evolve_tasks.journal import (
    Journal,
    collected_token,
    items_token,
    source_token,
    stage_token,
    token_below,
)
from evolve_tasks.journal.journal import Known
from evolve_tasks.naming import short_repr
from evolve_tasks.stages import Stage

# Without a function that says what makes a source count as changed, none ever does.
UNCHANGED = "unchanged"

# In place of the token of a list, for items that are known by themselves.
UNIQUE = "unique"

Recalled = list[tuple[int, int, list[Any]]]  # start, stop and results of consecutive items


@dataclass(slots=True)
class _Source:
    """A source of this run, as the journal knows it."""

    token: str | None
    occurrence: int
    fingerprint: str | None
    items: str = ""  # token of what it gave


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a journal keeps what was collected of a source, or of an inner item.

    Args:
        token: of that.
        occurrence: of its source.
        fingerprint: of its source.
        process: token of the code that collects.
        items: token of what that code is called with.
    """

    token: str
    occurrence: int
    fingerprint: str
    process: str
    items: str


class Resuming:
    """Stands between a run and its journal.

    Args:
        journal: the journal, open.
        stages: the stages of the run.
        fingerprint: the user's function; `None` for none.
        logger: is told what cannot be resumed, and why.
        unique: items are known by what makes two of them the same, not by their place.
        key: the user's function that says what that is; `None` for the items themselves.
    """

    def __init__(
        self,
        journal: Journal,
        stages: Sequence[Stage],
        fingerprint: Callable[[Any], Any] | None,
        logger: logging.Logger | Any,
        *,
        unique: bool = False,
        key: Callable[[Any], Any] | None = None,
    ) -> None:
        self._journal = journal
        self._parse = _token_of(stages[:-1])
        self._process = stage_token(stages[-1].function)
        # What only leads to lists is run again: which lists there are is known from it alone.
        self._deep = len(stages) > 2 or unique
        self._fingerprint = fingerprint
        self._logger = logger
        self._seen: Counter[str] = Counter()
        self._open: dict[int, dict[tuple[int, ...], _Source]] = {}  # by source, and from it down
        self._unknown = 0
        # Fingerprints that hold for this process alone: how many, and the first of them.
        self._passing, self._first_passing = 0, ""
        # An item that is its own key is all that its result depends on. With a function it may be
        # another one when other code has found it, and another function may call others the same.
        self._key = "key" if key is None else f"{stage_token(key)} {self._parse}"
        self._collect: dict[int, str] = {}  # tokens of the functions, by position

    def arrived(self, position: int, source: Any, label: str) -> tuple[int, Recalled] | None:
        """Take in a source; give its size and all its results if it need not be worked on."""
        token = source_token(source)
        occurrence = 0
        if token is None:
            self._unknown += 1
        else:
            occurrence = self._seen[token]
            self._seen[token] += 1
        one = _Source(token, occurrence, self._fingerprint_of(source))
        self._open[position] = {(): one}
        known = self._known(one)
        if self._deep:
            if one.token is not None and one.fingerprint is not None:
                self._journal.note_given(one.token, one.occurrence, label, one.fingerprint)
            return None
        if known is None or not known.complete or known.size is None:
            return None
        recalled = list(self._journal.values(known))
        # Only what could be read is finished.
        if sum(stop - start for start, stop, _ in recalled) != known.size:
            return None
        return known.size, recalled

    def knows(self, index: tuple[int, ...]) -> bool:
        """Whether the journal may have results of a list that is not finished."""
        one = self._listed(index)
        return one.token is not None and self._journal.has(one.token, one.occurrence)

    def expanded(self, index: tuple[int, ...], label: str, size: int, items: str) -> Recalled:
        """Note what a source gave, or an inner item; give the results that are known of it."""
        one = self._listed(index)
        one.items = items
        if one.token is None or one.fingerprint is None:
            return []
        known = self._known(one, items)
        if known is not None and known.differs:
            self._logger.warning(
                "%s gave other items than in an earlier run, by the same code: what the journal "
                "has of it is not used",
                label,
            )
        if known is None or not known.listed:
            self._journal.note_listed(
                one.token, one.occurrence, label, one.fingerprint, self._parse, size, items
            )
        if known is None:
            return []
        return [part for part in self._journal.values(known) if part[1] <= size]

    def done(self, index: tuple[int, ...], start: int, values: Sequence[Any]) -> None:
        """Note results of consecutive items of the list that is so far down."""
        one = self._listed(index)
        # Of a source that failed half way nobody knows which items it gives.
        if one.token is not None and one.fingerprint is not None and one.items:
            self._journal.note_done(
                one.token,
                one.occurrence,
                one.fingerprint,
                self._process,
                one.items,
                start,
                values,
            )

    def met(self, position: int, key: bytes) -> list[Any]:
        """The result of an item that is known by its key, in a list; an empty one if unknown.

        Where equal items are worked on once it does not matter where one was found.
        """
        known = self._known(self._keyed(position, key), UNIQUE)
        return (
            [value for _, _, values in self._journal.values(known) for value in values][:1]
            if known is not None
            else []
        )

    def done_once(self, position: int, key: bytes, value: Any) -> None:
        """Note the result of such an item."""
        one = self._keyed(position, key)
        if one.token is not None and one.fingerprint is not None:
            self._journal.note_done(
                one.token, 0, one.fingerprint, self._process, UNIQUE, 0, [value]
            )

    def kept(self, index: tuple[int, ...], by: Stage, given: tuple[Any, ...]) -> Kept | None:
        """Where that is kept which comes of a source, or of an inner item, that has ended.

        Args:
            index: positions from the source down to it.
            by: the function that collects.
            given: what it is called with: the item, its results and, if it wants them, failures.

        Returns:
            `None` if it is not kept: a failure is another one each time, and its item is worked
            on again.
        """
        position, *inner = index
        root = self._open[position][()]
        if root.token is None or root.fingerprint is None or any(given[2:]):
            return None
        if by.position not in self._collect:
            self._collect[by.position] = stage_token(by.function)
        return Kept(
            collected_token(root.token, [by.name, *inner]),
            root.occurrence,
            root.fingerprint,
            self._collect[by.position],
            items_token(given),
        )

    def collected(self, kept: Kept | None) -> list[Any]:
        """What came of it in an earlier run, in a list; an empty one if that is not known."""
        if kept is None:
            return []
        known = self._journal.known(
            kept.token, kept.occurrence, kept.fingerprint, "", kept.process, items_token=kept.items
        )
        read = self._journal.values(known) if known is not None else ()
        return [value for _, _, values in read for value in values][:1]

    def note_collected(self, kept: Kept, value: Any) -> None:
        """Note what has come of it."""
        self._journal.note_done(
            kept.token, kept.occurrence, kept.fingerprint, kept.process, kept.items, 0, [value]
        )

    def _keyed(self, position: int, key: bytes) -> _Source:
        """Where such an item is kept: it holds as long as the source does that it is from."""
        fingerprint = self._open[position][()].fingerprint
        return _Source(token_below("", [self._key, key]), 0, fingerprint)

    def source_done(self, position: int) -> None:
        """Forget a source that has ended."""
        self._open.pop(position, None)

    def _listed(self, index: tuple[int, ...]) -> _Source:
        """What gave a list; an inner item is known by its place below its source."""
        position, *inner = index
        known = self._open[position]
        one = known.get(tuple(inner))
        if one is None:
            root = known[()]
            token = None if root.token is None else token_below(root.token, inner)
            one = known[tuple(inner)] = _Source(token, root.occurrence, root.fingerprint)
        return one

    def flush(self) -> None:
        """Write what was noted; before it is reported."""
        self._journal.flush()

    def vanished(self) -> list[str]:
        """Names of sources that earlier runs had, and this one has not."""
        return self._journal.vanished()

    def tell(self) -> None:
        """Say in the log what will be done again next time, and why."""
        if self._unknown:
            self._logger.warning(
                "%d sources cannot be recognised by a later run, which will work on them again: "
                "give sources that are plain values, such as names",
                self._unknown,
            )
        if self._passing:
            self._logger.warning(
                "%d sources have a fingerprint that a later run cannot recognise (%s): they are "
                "worked on each time; let fingerprint= give a plain value, such as a text or a "
                "tuple",
                self._passing,
                self._first_passing,
            )
        for texts, what in (
            (self._journal.damaged, "damaged in the journal, and done again"),
            (self._journal.unsaved, "not kept in the journal"),
        ):
            if texts:
                self._logger.warning("%d parts were %s; the first: %s", len(texts), what, texts[0])

    def _fingerprint_of(self, source: Any) -> str | None:
        if self._fingerprint is None:
            return UNCHANGED
        try:
            value = self._fingerprint(source)
        except Exception as error:
            # The expanding stage will say what is wrong with the source itself.
            self._logger.warning(
                "fingerprint(%s) raised %s: %s; the source is worked on again",
                short_repr(source),
                type(error).__name__,
                error,
            )
            return None
        token = source_token(value)
        if token is None:
            self._first_passing = self._first_passing or short_repr(value)
            self._passing += 1
        return token

    def _known(self, one: _Source, items: str | None = None) -> Known | None:
        return self._journal.known(
            one.token,
            one.occurrence,
            one.fingerprint,
            self._parse,
            self._process,
            items_token=items,
        )


def _token_of(expanding: Sequence[Stage]) -> str:
    """Tell the code that decides which items there are."""
    tokens = [stage_token(stage.function) for stage in expanding]
    return tokens[0] if len(tokens) == 1 else source_token(tokens) or ""
