"""What a run gives back: results in order, failures with their story, counts that add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from evolve_tasks.errors import EvolveError
from evolve_tasks.naming import LINE, error_text, one_line, short_repr
from evolve_tasks.report import Report


@dataclass(frozen=True, slots=True)
class Failure:
    """One source or item that did not succeed.

    Args:
        stage: name of the stage that failed.
        source: the source it came from.
        index: positions from the source down: `(3,)` is the fourth source itself, `(3, 7)`
            its eighth item.
        item: short repr of what the stage was given.
        error_type: class name of the exception.
        message: the exception's text.
        traceback: the formatted traceback of the last attempt.
        attempts: how often it was tried.
        crashed: the worker died on it, so there is no exception of its own.

    Example:
        >>> str(Failure("parse", "a.txt", (3,), "'a.txt'", "OSError", "no such file"))
        "parse[3] 'a.txt': OSError: no such file"
    """

    stage: str
    source: Any
    index: tuple[int, ...]
    item: str
    error_type: str
    message: str
    traceback: str = ""
    attempts: int = 1
    crashed: bool = False

    def __str__(self) -> str:
        """Name what failed and why, in one line."""
        position = ".".join(map(str, self.index))
        text = f"{self.stage}[{position}] {self.item}: {self.error_type}: {self.message}"
        return one_line(text, LINE)


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """How one item ended; a source that failed is one as well.

    Args:
        source: the source it came from.
        index: positions from the source down, as in `Failure`.
        value: what the last stage returned; `None` for a failure.
        failure: `None` if it succeeded.
        resumed: taken from a journal, not run now.

    Example:
        >>> item = ItemOutcome("a.txt", (0, 7), value=49)
        >>> item.ok, item.value
        (True, 49)
    """

    source: Any
    index: tuple[int, ...]
    value: Any = None
    failure: Failure | None = None
    resumed: bool = False

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.failure is None


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What became of everything that one stage was given.

    Args:
        discovered: N >= 0 sources or items that are known.
        done: of these, succeeded now.
        failed: of these, failed.
        resumed: of these, taken from a journal.
        not_run: of these, not begun, because the run ended early.

    Always `discovered == done + failed + resumed + not_run` once the run has ended.

    Example:
        >>> StageCounts(discovered=3, done=2, failed=1).not_run
        0
    """

    discovered: int = 0
    done: int = 0
    failed: int = 0
    resumed: int = 0
    not_run: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of a run; `discovered` to `not_run` are those of the last stage.

    Args:
        sources: N >= 0 sources that were taken.
        sources_failed: of these, failed to expand.
        discovered: as in `StageCounts`, of the last stage.
        done: likewise.
        failed: likewise.
        resumed: likewise.
        not_run: likewise.
        repeated: items and sources that were found again under `unique=True`, and not worked on
            again. Items are not among the discovered ones then; sources are: each is done.
        by_stage: the counts of each stage, by its name.

    Always `discovered == done + failed + resumed + not_run`.

    Example:
        >>> print(Counts(sources=2, discovered=10, done=9, failed=1))
        9 of 10 items done, 1 failed; 2 sources
    """

    sources: int = 0
    sources_failed: int = 0
    discovered: int = 0
    done: int = 0
    failed: int = 0
    resumed: int = 0
    not_run: int = 0
    repeated: int = 0
    by_stage: Mapping[str, StageCounts] = field(default_factory=dict)

    def __str__(self) -> str:
        """Say it as a person would, leaving out what is zero."""
        text = f"{self.done} of {self.discovered} items done"
        for number, word in (
            (self.failed, "failed"),
            (self.resumed, "resumed"),
            (self.not_run, "not run"),
            (self.repeated, "found again"),
        ):
            text += f", {number} {word}" if number else ""
        text += f"; {self.sources} source{'' if self.sources == 1 else 's'}"
        return text + (f", {self.sources_failed} failed" if self.sources_failed else "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `evolve` returns.

    Args:
        results: what the last stage returned, successes only, in source order and then
            item order.
        by_source: `(source, results)` in source order; sources may repeat and need not be
            hashable.
        failures: sources and items that failed, in order of position.
        counts: the numbers; `discovered == done + failed + resumed + not_run`.
        strategy: the strategy that was used.
        reason: why it was chosen.
        duration_s: seconds from the call to the last result.
        stopped: why something that is known was not begun; `None` if all was done.
        error: what ended the run early, if something other than its items did: the error
            of a lazy `sources` iterable.
        vanished: names of sources that earlier runs of the same named journal had, and this one
            has not; each is told once.
        collected: `(source, value)` of `collect=`; empty without one.
        collected_by_stage: the same by name of the stage whose sources or items were collected.
        reduced: the value of `reduce=`; `None` without one.
        facts: what the report tells beside the failures.

    Example:
        >>> from prefect import flow
        >>> from evolve_tasks import evolve
        >>> @flow
        ... def squares() -> list[tuple[int, list[int]]]:
        ...     outcome = evolve([2, 3], range, lambda x: x * x, strategy="sequential")
        ...     assert outcome.counts.done == 5 and not outcome.failures
        ...     return outcome.by_source
    """

    results: list[Any]
    by_source: list[tuple[Any, list[Any]]]
    failures: list[Failure]
    counts: Counts
    strategy: str
    reason: str
    duration_s: float
    stopped: str | None = None
    error: BaseException | None = None
    vanished: list[str] = field(default_factory=list)
    collected: list[tuple[Any, Any]] = field(default_factory=list)
    collected_by_stage: Mapping[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    reduced: Any = None
    facts: Report = field(default_factory=Report, repr=False)

    @property
    def report(self) -> Report:
        """The run's story: a mapping that can be written as JSON, or as an HTML page.

        `report.write_html("night.html")` makes a page that needs nothing else.
        """
        # Made when it is asked for: a million failures have a million texts.
        sources: dict[int, str] = {}
        failures = []
        for failure in self.failures:
            position = failure.index[0]
            if position not in sources:
                sources[position] = short_repr(failure.source)
            told = asdict(replace(failure, source=None))
            failures.append({**told, "source": sources[position]})
        return Report(self.facts, failures=failures)

    def raise_for_failures(self) -> None:
        """Raise `EvolveFailed` if a source or an item failed, or the run ended early.

        Use it with `on_failure="ignore"` to look at the results first.

        Raises:
            EvolveFailed: with this outcome; look at its failures, mend what they say, and run the
                flow again: with a journal it does what is missing.

        Example:
            >>> Outcome([1], [("a", [1])], [], Counts(), "async", "", 0.1).raise_for_failures()
        """
        if self.failures or self.error is not None:
            raise EvolveFailed(self) from self.error


class EvolveFailed(EvolveError):
    """A run with failures that its policy does not accept; `outcome` holds all of it.

    What was finished is in `outcome.results`; look at `outcome.failures` for the rest. The
    text begins with the counts, so that the flow run's state message has them.

    Example:
        >>> from prefect import flow
        >>> from evolve_tasks import evolve
        >>> @flow
        ... def readable(paths: list[str]) -> list[str]:
        ...     try:
        ...         return evolve(paths, open, str.strip, strategy="sequential").results
        ...     except EvolveFailed as error:
        ...         return error.outcome.results
    """

    SHOWN = 5  # failures in the text: enough to see a pattern, few enough for a state message

    def __init__(self, outcome: Outcome) -> None:
        """Keep the outcome; the text is made from it."""
        super().__init__(outcome)
        self.outcome = outcome

    def __repr__(self) -> str:
        """Stay short: Prefect's log shows exceptions by their repr."""
        return f"EvolveFailed({self.outcome.counts})"

    def __str__(self) -> str:
        """Begin with the counts, then the first few failures."""
        outcome = self.outcome
        lines = [f"{outcome.counts} (strategy {outcome.strategy}, {outcome.duration_s:.1f} s)"]
        if outcome.stopped:
            lines.append(one_line(f"stopped early: {outcome.stopped}", LINE))
        if outcome.error is not None:
            error = error_text(outcome.error)
            lines.append(one_line(f"the sources ended with {error}", LINE))
        lines += [f"- {failure}" for failure in outcome.failures[: self.SHOWN]]
        hidden = len(outcome.failures) - self.SHOWN
        if hidden > 0:
            lines.append(f"- and {hidden} more in outcome.failures")
        return "\n".join(lines)
