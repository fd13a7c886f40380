"""What the benchmarks compute and write: ratios, bounds, verdicts, the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import sizes, targets
from benchmarks.core_alone import fan_out, simulate
from benchmarks.durations import cells as duration_cells
from benchmarks.pairing import in_turns, over, rates
from benchmarks.sizes import Shape
from benchmarks.skew import least_s, skewed
from benchmarks.table import HEAD, Row, Run, Section, Spread, Target, cells, markdown, short
from benchmarks.work import Timed, WrongResults, check, parse, process, trivial_results

# -- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (0.5, "0.50"), (1.034, "1.03"), (12.34, "12.3"), (4560.4, "4,560")],
)
def test_numbers_have_the_digits_that_matter(value: float, text: str) -> None:
    assert short(value) == text


def test_a_spread_shows_its_range_only_if_there_is_one() -> None:
    assert str(Spread.of([1.5])) == "1.50"
    assert str(Spread.of([3.0, 1.0, 2.0])) == "2.00 (1.00 to 3.00)"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1.0, 1.03, 1.2], "yes"), ([1.0, 1.04, 1.1], "**no**"), ([1.0, 1.0, 1.3], "**no**")],
)
def test_a_target_is_missed_by_its_median_or_by_its_worst(
    values: list[float], verdict: str
) -> None:
    target = Target(median_at_most=1.03, worst_at_most=1.25)
    assert Row("evolve", "work", Spread.of(values), target=target).verdict == verdict


def test_a_row_that_was_not_measured_does_not_meet_its_target() -> None:
    assert Row("evolve", "work", target=targets.LONG_ITEMS).verdict == "**not measured**"
    assert Row("evolve", "work", Spread.of([9.0])).verdict == ""


def a_run(command: str = "python -m benchmarks") -> Run:
    rows = [
        Row("plain | Dask", "2 x 3", Spread.of([1.0]), "5 items/s", 5.0),
        Row("evolve", "2 x 3", Spread.of([4.0]), "20 items/s", 20.0, Target(3.0)),
    ]
    return Run(command, ["2 cores"], [Section("Trivial items", "more is better", rows)])


def test_every_line_of_the_table_has_the_same_columns() -> None:
    text = markdown([a_run(), a_run("python -m benchmarks.peers")])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(HEAD) + 1}
    assert len(lines) == 2 + 2 * 3
    assert "| plain / Dask | 2 x 3 | 1.00 | 5 items/s |  |  |" in lines
    assert lines[-1].endswith("| median ≤ 3 | **no** |")


def test_a_run_takes_the_place_of_the_one_of_the_same_command(tmp_path: Path) -> None:
    pytest.importorskip("pygal", reason="pygal draws the plot: install the extra `bench`")
    from benchmarks.results import keep

    for command in ("python -m benchmarks --quick", "python -m benchmarks.peers"):
        keep(a_run(command), tmp_path)
    keep(a_run(), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "`python -m benchmarks`" in text
    assert "`python -m benchmarks.peers`" in text
    assert "--quick" not in text
    drawn = (tmp_path / "results.svg").read_text()
    assert drawn.startswith("<svg")
    assert "<script" not in drawn
    assert cells(a_run().sections[0].rows[0])[2] == "1.00"


# -- what is measured ----------------------------------------------------------------------------


def test_both_sides_of_a_ratio_run_in_turns() -> None:
    order: list[str] = []

    def way(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    found = in_turns({"A": lambda: way("A", 1.0), "B": lambda: way("B", 4.0)}, repeats=3)
    assert "".join(order) == "ABABAB"
    assert over(found["B"], found["A"]) == Spread(4.0, 4.0, 4.0, 3)


def test_a_drift_of_the_machine_cancels_out_of_a_ratio() -> None:
    assert over([2.0, 20.0, 6.0], [1.0, 10.0, 3.0]) == Spread(2.0, 2.0, 2.0, 3)
    assert rates(100, [2.0, 4.0]) == [50.0, 25.0]


def test_wrong_results_are_refused() -> None:
    shape = Shape(3, 4)
    expected = trivial_results(shape)
    right = [process(x) for size in shape.sizes for x in parse(size)]
    check(right, expected, "it")
    with pytest.raises(WrongResults, match="it gave 12 results"):
        check(right[::-1], expected, "it")


@pytest.mark.parametrize("size", [sizes.FULL, sizes.QUICK, sizes.SMOKE])
def test_the_work_of_a_cell_is_bounded(size: sizes.Sizes) -> None:
    found = duration_cells(size)
    assert len(found) == 8
    for cell in found:
        assert 0 < cell.shape.total <= size.most_items
        assert cell.shape.total * cell.seconds <= size.work_s * 1.001
        assert sum(len(source.items_s) for source in cell.sources) == cell.shape.total


def test_no_order_of_the_work_ends_below_the_bound() -> None:
    assert least_s([Timed(1.0, (1.0, 1.0)), Timed(1.0, ())], threads=2) == 2.0
    assert least_s([Timed(3.0, (0.5, 0.2)), Timed(0.1, ())], threads=6) == 3.5


def test_skewed_work_follows_from_its_seed() -> None:
    assert skewed(3, 24) == skewed(3, 24) != skewed(4, 24)
    for source in skewed(5, 200):
        assert 0.05 <= source.parse_s <= 3.0
        assert len(source.items_s) <= 60
        assert all(0.005 <= seconds <= 0.25 for seconds in source.items_s)


def test_the_core_alone_works_on_every_item() -> None:
    ran = simulate(20_000, threads=50)
    assert ran.items == sum(map(fan_out, range(20)))
    assert ran.decisions >= 20
    assert 1.0 <= ran.stretch < 1.2
