"""The report of a run: bounded, whole, and harmless whatever the names in it are."""

from __future__ import annotations

import json
import random
import re
import string
import threading
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prefect.client.schemas.actions import ArtifactCreate

from evolve_tasks.core.progress import Progress
from evolve_tasks.monitoring.progress_text import progress_text
from evolve_tasks.monitoring.publishing import artifact_key
from evolve_tasks.naming import label_of
from evolve_tasks.outcome import Counts, EvolveFailed, Failure, Outcome
from evolve_tasks.report import Report, Story, as_it_is
from evolve_tasks.report.lanes import COLUMNS, EXPANDING, MOST_LANES, PROCESSING, Lanes
from evolve_tasks.report.plain import cell
from evolve_tasks.report.story import EXAMPLES, GROUPS, SLOWEST, When
from evolve_tasks.report.timeline import timeline_image, timeline_svg

HOSTILE = [
    "<img src=x onerror=alert(1)>.txt",
    "<script>alert(1)</script>",
    "a|b.txt",
    r"a\|![x](https://example.org/x.png)",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "two\nlines",
    "# heading",
    "`code`",
    "``` fence",
    "https://example.org/a",
    "&lt;b&gt;",
    "\u202eright to left",
    "y" * 5_000,
]

FAILURE = Failure(
    stage="process_item",
    source="files/a.txt",
    index=(3, 7),
    item="7",
    error_type="ValueError",
    message="no number",
)


# -- cells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "plain words, 3.5 (and more)",
        "test_flows.py:12",
        "__init__",
        "Class.__init__",
        "_private and last_",
        "# heading",
        "1. first",
        "- one",
        "[here](javascript:alert(1))",
        "<img src=x onerror=alert(1)>",
        "&lt;b&gt;",
        "`code` and ~~gone~~ | cell",
        "``",
        "back\\slash \\* https://example.org",
        "    indented",
        "www.example.org",
    ],
)
def test_a_cell_of_an_artifact_shows_a_text_as_it_is(text: str) -> None:
    assert shown_text(as_it_is(text)) == [text]


@given(st.text(string.printable.replace("\r", "").replace("\n", "")))
def test_a_cell_of_an_artifact_shows_any_text_as_it_is(text: str) -> None:
    if text.strip():
        assert "".join(shown_text(as_it_is(text))).strip() == text.strip()


def shown_text(markdown: str) -> list[str]:
    """What a reader sees, where markdown leaves no trace but code."""
    blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    assert {block.type for block in blocks} <= {"paragraph_open", "inline", "paragraph_close"}
    spans = [span for block in blocks for span in block.children or ()]
    assert {span.type for span in spans} <= {"text", "code_inline"}, spans
    return [span.content for span in spans if span.content]


@given(st.text("a|\\"))
def test_no_bar_ends_a_cell(text: str) -> None:
    """Prefect's UIs count the backslashes before a bar: it belongs to the cell if they are odd."""
    for slashes in re.findall(r"(\\*)\|", cell(f"x{text}")):
        assert len(slashes) % 2 == 1


def test_numbers_in_the_cells_of_an_artifact_stay_numbers() -> None:
    assert as_it_is(3) == 3


# -- when each thread was at what ----------------------------------------------------------------

SPANS = st.lists(
    st.tuples(
        st.sampled_from(["tcp://one", "tcp://two"]),
        st.integers(0, 2),
        st.floats(0, 5_000),
        st.floats(0, 50),
        st.sampled_from([EXPANDING, PROCESSING]),
    ),
    min_size=1,
    max_size=50,
)


@given(SPANS)
def test_busy_time_is_kept_whatever_the_columns(spans: list[Any]) -> None:
    lanes = Lanes(began=1_000.0)
    for worker, thread, start, length, kind in spans:
        lanes.add(worker, thread, 1_000.0 + start, 1_000.0 + start + length, kind)
    whole = sum(length for *_, length, _ in spans)
    assert sum(lanes.busy()) == pytest.approx(whole, abs=1e-6)
    facts = lanes.facts()
    assert facts["threads"] <= len({(worker, thread) for worker, thread, *_ in spans})
    shown = sum(sum(lane["expanding_s"]) + sum(lane["processing_s"]) for lane in facts["lanes"])
    assert shown == pytest.approx(whole, abs=0.01)
    assert len(facts["busy_s"]) <= COLUMNS
    last = max(start + length for _, _, start, length, _ in spans)
    assert last <= facts["column_s"] * len(facts["busy_s"])


def test_a_thread_that_is_started_in_place_of_another_gets_its_lane() -> None:
    lanes = Lanes(began=0.0)
    for number in range(50):  # as nested sources secede, one after another
        lanes.add("tcp://one", number, number, number + 1.0, PROCESSING)
        lanes.add("tcp://one", -1, number, number + 1.0, PROCESSING)
    assert lanes.threads == 2


def test_a_clock_that_is_behind_is_taken_for_the_beginning() -> None:
    lanes = Lanes(began=1_000.0)
    lanes.add("tcp://one", 1, 990.0, 1_000.1, PROCESSING)
    assert sum(lanes.busy()) == pytest.approx(0.1)


def busy_lanes(threads: int, seconds: float) -> Lanes:
    """Threads that are at work for random parts of the time: nothing of it looks like the rest."""
    drawn = random.Random(1)
    lanes = Lanes(began=0.0)
    for thread in range(threads):
        at = 0.0
        while at < seconds:
            length = drawn.uniform(0, seconds / 200)
            kind = drawn.choice([EXPANDING, PROCESSING])
            lanes.add(f"tcp://{thread // 4}", thread, at, at + length, kind, drawn.random() < 0.1)
            at += length + drawn.uniform(0, seconds / 200)
    return lanes


@pytest.mark.parametrize("threads", [1, 6, 100])
@pytest.mark.parametrize("seconds", [0.5, 30.0, 40_000.0])
def test_the_picture_is_whole_and_of_bounded_size(threads: int, seconds: float) -> None:
    lanes = busy_lanes(threads, seconds)
    facts = lanes.facts()
    root = ElementTree.fromstring(timeline_svg(facts, seconds))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = " ".join(root.itertext())
    assert f"{threads} worker thread" in words
    assert ("shown one by one" in words) == (threads > MOST_LANES)
    assert len(timeline_image(facts, seconds)) < 200_000


def test_a_picture_of_nothing_is_a_picture() -> None:
    ElementTree.fromstring(timeline_svg(Lanes(0.0).facts(), 0.0))


# -- what is gathered ----------------------------------------------------------------------------


def when(started: float = 0.0, ended: float = 1.0) -> When:
    return When(started, ended, "tcp://one", 1)


def test_what_is_gathered_does_not_grow_with_the_run() -> None:
    def size_after(sources: int) -> int:
        story = Story(0.0, ["parse", "process"])
        for position in range(sources):
            at = when(position / 100, position / 100 + 0.005)
            sizes: list[tuple[int, int | None]] = [(position, position % 40)]
            story.expanded(at, sizes, parse_s=0.001, inline_s=0, inline=0, failed=0)
            story.processed(at, position, f"file {position} 0", 1, 0.01, failed=1)
            error = f"Error{position}"
            story.failed("process", error, f"{position} 0", "no", None)
            story.source_done(position, f"file {position}")
        return len(json.dumps(story.facts()))

    assert size_after(20_000) < 1.3 * size_after(2_000)


def test_the_slowest_are_found_and_the_kinds_of_failure_told_apart() -> None:
    story = Story(0.0, ["parse", "process"])
    for position in range(30):
        story.expanded(when(), [(position, 2)], parse_s=1.0, inline_s=0, inline=0, failed=0)
        story.processed(when(), position, f"{position} 0-1", 2, 2.0 * position, failed=0)
        story.source_done(position, f"file {position}")
    for number in range(GROUPS + 5):
        for _ in range(number + 1):
            story.failed("process", f"Error{number}", "x", "no", None)
    facts = story.facts()
    assert len(facts["slowest_sources"]) == len(facts["slowest_items"]) == SLOWEST
    assert facts["slowest_sources"][0] == {"name": "file 29", "items": 2, "seconds": 59.0}
    assert facts["slowest_items"][0] == {"name": "29 0-1", "count": 2, "seconds": 29.0}
    groups = {group["error_type"]: group for group in facts["failure_groups"]}
    assert groups["Error3"]["count"] == 4
    assert groups["other"]["count"] == sum(range(GROUPS + 1, GROUPS + 6))
    assert all(len(group["examples"]) <= EXAMPLES for group in groups.values())
    assert facts["units"]["process"] == {
        "count": 30,
        "items": 60,
        "smallest": 2,
        "largest": 2,
        "mean": 2.0,
    }
    assert facts["fan_out"]["histogram"] == [{"from": 2, "to": 3, "sources": 30}]


def test_what_is_found_for_the_first_stage_is_no_source() -> None:
    story = Story(0.0, ["parse", "process"])
    story.expanded(when(), [(0, 1)], parse_s=1.0, inline_s=0, inline=0, failed=0, found=[0])
    story.processed(when(), 0, "0 0", 1, 1.0, failed=0, found=7)
    story.expanded(
        when(), [(0, 5)], parse_s=1.0, inline_s=0, inline=0, failed=0, found=[2], sources=False
    )
    story.source_done(0, "zero")
    facts = story.facts()
    assert facts["fan_out"]["histogram"] == [{"from": 1, "to": 1, "sources": 1}]
    (slowest,) = facts["slowest_sources"]
    assert slowest["items"] == 1 + 7 + 5 + 2


# -- the report ----------------------------------------------------------------------------------


def report_of(name: str) -> Report:
    """A report in which every text of others is this name."""
    story = Story(0.0, ["parse", name])
    story.expanded(when(), [(0, 3), (1, None)], parse_s=1.0, inline_s=0.5, inline=1, failed=2)
    story.processed(when(1.0, 2.0), 0, name, 2, 1.0, failed=1)
    story.failed(name, name, name, name, "5bbb6a98-4e68-5b11-b1c7-b29aed451ac2")
    story.failed("parse", "Error", name, name, None)
    story.source_done(0, name)
    counts = {"done": 1, "discovered": 3, "failed": 1, "resumed": 0, "not_run": 1}
    return Report(
        title=name,
        state="failed",
        strategy="async",
        reason=name,
        started="2026-11-25T17:00:00Z",
        duration_s=2.0,
        stopped=name,
        error=name,
        counts={**counts, "sources": 2, "sources_failed": 1},
        vanished=[name],
        recording={"task_runs": 12, "unrecorded": 1, "degraded": name, "unseen_batches": 3},
        dashboard="http://127.0.0.1:8787/status",
        task_run_url="http://127.0.0.1:4200/runs/task-run/{}",
        versions={"prefect": "3.8.8"},
        **story.facts(),
    )


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_no_name_breaks_out_of_the_markdown(name: str) -> None:
    parser = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    usual = parser.parse(report_of("plain name").markdown())
    found = parser.parse(report_of(name).markdown())
    assert [token.type for token in found] == [token.type for token in usual]
    spans = [span for token in found for span in token.children or ()]
    assert {span.type for span in spans} <= {
        "text",
        "code_inline",
        "softbreak",
        "strong_open",
        "strong_close",
        "link_open",
        "link_close",
        "image",
    }
    assert {str(span.attrs["href"]) for span in spans if span.type == "link_open"} == {
        "http://127.0.0.1:4200/runs/task-run/5bbb6a98-4e68-5b11-b1c7-b29aed451ac2",
        "http://127.0.0.1:8787/status",
    }


class Page(HTMLParser):
    """Notes the tags of a page and what they load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            assert not key.startswith("on"), (tag, key)
            if key == "src":
                self.loads.append(value or "")


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_no_name_breaks_out_of_the_page(name: str, tmp_path: Path) -> None:
    path = tmp_path / "night.html"
    report_of(name).write_html(path)
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.tags & {"script", "iframe", "object", "link"}
    (picture,) = page.loads
    head, _, payload = picture.partition(",")
    assert head == "data:image/svg+xml;base64"
    ElementTree.fromstring(b64decode(payload))
    assert page.tags == Page(report_of("plain name").html()).tags | ({"code"} & page.tags)


def test_the_report_is_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "night.json"
    report = report_of("file.txt")
    report.write_json(path)
    assert json.loads(path.read_text(encoding="utf-8")) == report


def test_the_report_tells_what_a_reader_looks_for() -> None:
    text = report_of("file.txt").markdown()
    for words in (
        "# Failed after 2.0 s",
        "**1 of 3 items done** · 1 failed · 1 not run · 2 sources, of which 1 failed",
        "Strategy **async**: file.txt",
        "It stopped early: file.txt",
        "It was ended by file.txt",
        "12 task runs, of which 1 were not recorded",
        "Items were recorded by the batch: file.txt",
        "3 batches are no task runs",
        "Gone since an earlier run: file.txt",
        "prefect 3.8.8",
    ):
        assert words in text


@pytest.mark.parametrize(
    "source",
    [None, {"a": [1]}, {1, 2}, b"\xff", np.eye(2), threading.Lock(), iter([])],
    ids=lambda source: type(source).__name__,
)
def test_the_failures_of_a_report_take_sources_of_any_kind(source: Any) -> None:
    # Sources need not be hashable, and those of a sequential run need not travel either.
    (failure,) = json.loads(json.dumps(outcome_of([replace(FAILURE, source=source)]).report))[
        "failures"
    ]
    assert (failure["index"], failure["error_type"]) == ([3, 7], "ValueError")
    assert isinstance(failure["source"], str)
    assert failure["source"]


@given(st.text(), st.text())
def test_the_failures_of_a_report_take_any_text(message: str, item: str) -> None:
    report = outcome_of([replace(FAILURE, message=message, item=item)]).report
    assert json.loads(json.dumps(report))["failures"][0]["message"] == message


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("this cannot be told")


def test_an_error_that_cannot_be_told_does_not_hide_the_outcome() -> None:
    outcome = replace(outcome_of([FAILURE]), error=Unspeakable())
    assert "Unspeakable whose str raises ValueError" in str(EvolveFailed(outcome))


def outcome_of(failures: list[Failure]) -> Outcome:
    return Outcome(
        results=[],
        by_source=[],
        failures=failures,
        counts=Counts(failed=len(failures)),
        strategy="async",
        reason="it was asked for",
        duration_s=1.0,
        facts=Report(state="failed"),
    )


@pytest.mark.parametrize("given", [None, "", " \n "])
def test_a_label_that_gives_nothing_leaves_the_usual_name(given: str | None) -> None:
    assert label_of(lambda _: given, "a", default="0") == "0"


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3)])
def test_a_label_that_raises_says_so_in_the_name(error: BaseException) -> None:
    def label(_: object) -> str:
        raise error

    assert label_of(label, "a", default="0") == f"label raised {type(error).__name__}"


# -- how far it is -------------------------------------------------------------------------------


def test_a_whole_that_is_not_known_yet_never_looks_nearly_done() -> None:
    assert Progress(sources=10, sources_ended=10, discovered=100, done=100).percent == 50.0
    known = Progress(sources=10, sources_ended=10, sources_known=10, discovered=100, done=100)
    assert known.percent == 99.0  # not before the run says that it is over
    assert replace(known, finished=True).percent == 100.0


def test_sources_to_come_count_with_the_fan_out_of_the_others() -> None:
    half = Progress(sources=2, sources_ended=2, sources_known=4, discovered=10, done=10, unseen=10)
    assert half.percent == 50.0
    assert half.left == 10


@pytest.mark.parametrize("state", ["running", "finished", "failed", "cancelled", "ended early"])
def test_the_words_say_how_it_stands(state: str) -> None:
    progress = Progress(
        sources=4,
        sources_ended=2,
        sources_known=4,
        discovered=2_000,
        done=900,
        failed=100,
        resumed=3,
        unseen=1_000,
    )
    text = progress_text(progress, state=state, strategy="nested", batch=12.5, duration_s=10.0)
    assert "**900 of 2,000 items done** · 100 failed · 3 resumed · 2 of 4 sources" in text
    assert "100 items/s" in text
    assert "nested, 12.5 items a task" in text
    assert ("left" in text) == (state == "running")
    assert (f"{state} after 10.0 s" in text) == (state != "running")


@given(st.text(), st.text())
def test_any_names_make_a_key(flow: str, stage: str) -> None:
    key = artifact_key(flow, stage, "progress")
    assert ArtifactCreate(key=key).key == key
    assert key.endswith("progress")
