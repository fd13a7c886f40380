"""Outcomes: texts that can be read, reports that machines can read, errors that can travel."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from evolve_tasks.errors import EvolveError
from evolve_tasks.outcome import (
    Counts,
    EvolveFailed,
    Failure,
    ItemOutcome,
    Outcome,
    StageCounts,
)
from evolve_tasks.workers.failing import LONG, failure_from

FAILURE = Failure(
    stage="process_item",
    source="files/a.txt",
    index=(3, 7),
    item="0.5",
    error_type="ValueError",
    message="a bad number",
)


def outcome(**changes: Any) -> Outcome:
    plain = Outcome(
        results=["b0"],
        by_source=[("files/a.txt", []), ("files/b.txt", ["b0"])],
        failures=[FAILURE],
        counts=Counts(
            sources=2,
            discovered=2,
            done=1,
            failed=1,
            by_stage={"parse": StageCounts(2, 2), "process_item": StageCounts(2, 1, 1)},
        ),
        strategy="nested",
        reason="it was asked for",
        duration_s=1.25,
    )
    return replace(plain, **changes)


class Unspeakable:
    def __repr__(self) -> str:
        raise ValueError("this value cannot be shown")


# -- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (Counts(), "0 of 0 items done; 0 sources"),
        (Counts(sources=1, discovered=3, done=3), "3 of 3 items done; 1 source"),
        (
            Counts(sources=2, sources_failed=1, discovered=3, done=2, failed=1),
            "2 of 3 items done, 1 failed; 2 sources, 1 failed",
        ),
        (
            Counts(sources=9, discovered=10, done=1, failed=2, resumed=3, not_run=4),
            "1 of 10 items done, 2 failed, 3 resumed, 4 not run; 9 sources",
        ),
    ],
)
def test_counts_say_what_a_person_would(counts: Counts, text: str) -> None:
    assert str(counts) == text


# -- a failure -----------------------------------------------------------------------------------


def test_a_failure_says_what_failed_where_and_why() -> None:
    assert str(FAILURE) == "process_item[3.7] 0.5: ValueError: a bad number"


@pytest.mark.parametrize(
    "failure",
    [
        replace(FAILURE, message="2 errors:\n  x: missing\n  y: missing"),
        # numpy shows an array over several lines, and so does pandas a frame.
        failure_from(ValueError("bad"), stage="process", index=(0, 0), item=np.eye(3)),
        failure_from(ValueError("a\r\nb"), stage="process", index=(0, 0), item=1),
    ],
)
def test_a_failure_stays_on_one_line(failure: Failure) -> None:
    assert str(failure).splitlines() == [str(failure)]


def test_a_failure_is_made_of_any_exception() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this works")

    failure = failure_from(Broken(), stage="parse", index=(1,), item=Unspeakable(), attempts=3)
    assert failure.error_type == "Broken"
    assert "whose str raises RuntimeError" in failure.message
    assert "whose repr raises ValueError" in failure.item
    assert (failure.attempts, failure.index, failure.crashed) == (3, (1,), False)


def test_a_failure_has_the_traceback_of_the_users_code_with_its_cause() -> None:
    def user_code() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError) as raised:
        user_code()
    failure = failure_from(raised.value, stage="parse", index=(0,), item=1)
    assert "user_code" in failure.traceback
    assert failure.traceback.index("KeyError: 'inner'") < failure.traceback.index("ValueError")


def test_an_error_text_of_any_size_is_cut() -> None:
    failure = failure_from(ValueError("x" * 1_000_000), stage="parse", index=(0,), item=1)
    assert len(failure.message) <= LONG
    assert len(failure.traceback) <= LONG


# -- EvolveFailed --------------------------------------------------------------------------------


def test_the_text_begins_with_the_counts() -> None:
    # Prefect puts the text into the message of the flow run's state.
    text = str(EvolveFailed(outcome()))
    assert text.startswith("1 of 2 items done, 1 failed; 2 sources (strategy nested, 1.2 s)\n")
    assert "- process_item[3.7] 0.5: ValueError: a bad number" in text


def test_the_text_says_why_it_stopped_early() -> None:
    error = OSError("the listing broke off")
    text = str(EvolveFailed(outcome(stopped="3 failures, of which 2 are tolerated", error=error)))
    assert "stopped early: 3 failures, of which 2 are tolerated" in text
    assert "the sources ended with OSError: the listing broke off" in text


@pytest.mark.parametrize("failures", [0, 1, 5, 6, 10_000])
def test_the_text_shows_the_first_few_failures(failures: int) -> None:
    text = str(EvolveFailed(outcome(failures=[FAILURE] * failures)))
    shown = min(failures, EvolveFailed.SHOWN)
    assert text.count("a bad number") == shown
    assert (f"and {failures - shown} more in outcome.failures" in text) == (failures > shown)


@pytest.mark.parametrize(
    "large",
    [
        outcome(failures=[replace(FAILURE, message="x" * LONG)] * 5),
        outcome(error=OSError("x" * 1_000_000)),
    ],
    ids=["failures", "sources"],
)
def test_the_text_is_bounded_whatever_the_errors_say(large: Outcome) -> None:
    # A state message goes to the API, into a database and onto a page.
    assert len(str(EvolveFailed(large))) <= 10_000


def test_it_is_one_of_our_errors_and_has_the_outcome() -> None:
    given_outcome = outcome()
    failed = EvolveFailed(given_outcome)
    assert isinstance(failed, EvolveError)
    assert failed.outcome is given_outcome


def test_it_travels_between_processes() -> None:
    # A flow that is called from a task, or run by a process worker, hands it on as bytes.
    failed = EvolveFailed(outcome(error=OSError("gone")))
    again = pickle.loads(pickle.dumps(failed))
    assert str(again) == str(failed)
    assert again.outcome.results == ["b0"]
    assert again.outcome.failures == [FAILURE]
    assert again.outcome.counts == failed.outcome.counts


# -- the outcome ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "raises"),
    [
        ({}, True),
        ({"failures": []}, False),
        ({"failures": [], "error": OSError("gone")}, True),
    ],
)
def test_raise_for_failures(changes: dict[str, Any], raises: bool) -> None:
    given_outcome = outcome(**changes)
    if not raises:
        given_outcome.raise_for_failures()
        return
    with pytest.raises(EvolveFailed) as raised:
        given_outcome.raise_for_failures()
    assert raised.value.outcome is given_outcome
    assert raised.value.__cause__ is given_outcome.error


def test_an_item_is_ok_unless_it_failed() -> None:
    # A result of None is a result.
    assert ItemOutcome("a", (0, 0), value=None).ok
    assert not ItemOutcome("a", (0, 0), failure=FAILURE).ok


@pytest.mark.parametrize("value", [outcome(), FAILURE, Counts(), ItemOutcome("a", (0,))])
def test_what_happened_cannot_be_changed(value: Any) -> None:
    name = next(iter(type(value).__slots__))
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, 1)
