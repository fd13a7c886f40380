"""For how long nobody has been there, as a run asks only while nothing ends."""

from __future__ import annotations

from evolve_tasks.core.absence import SELDOM_S, Absence


def test_it_is_counted_from_the_first_look_that_missed_it() -> None:
    absence = Absence()
    assert [absence.missing_s("GPU", now) for now in (100.0, 105.0, 160.0)] == [0.0, 5.0, 60.0]


def test_each_by_itself() -> None:
    absence = Absence()
    absence.missing_s("GPU", 0.0)
    assert absence.missing_s("", 30.0) == 0.0
    absence.found("GPU")
    assert absence.missing_s("", 40.0) == 10.0
    assert absence.missing_s("GPU", 40.0) == 0.0


def test_what_was_missing_before_all_went_well_is_not_counted() -> None:
    # Workers came after the first look; then something ended all the time, and nobody looked.
    absence = Absence()
    absence.missing_s("", 5.0)
    assert absence.missing_s("", 3_600.0) == 0.0
    assert absence.missing_s("", 3_605.0) == 5.0


def test_whoever_looks_seldom_enough_is_still_told() -> None:
    absence = Absence()
    looks = [absence.missing_s("", look * SELDOM_S) for look in range(6)]
    assert looks == [look * SELDOM_S for look in range(6)]
