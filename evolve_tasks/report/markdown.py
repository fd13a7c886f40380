"""A report as markdown, for the artifact in the Prefect UI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evolve_tasks.naming import one_line
from evolve_tasks.report.plain import Written, as_it_is, cell, table
from evolve_tasks.report.timeline import timeline_image

NAMED = 20  # vanished sources that are named
BAR = 24  # characters of the longest bar of the histogram


def markdown(facts: Mapping[str, Any]) -> str:
    """Tell the facts of a report as markdown.

    Args:
        facts: a `Report`; what it does not have is left out.

    Returns:
        A text of bounded size. Names and error texts are shown as they are.

    Example:
        >>> print(markdown({"state": "finished", "duration_s": 2.0}))
        # Finished after 2.0 s
    """
    return "\n\n".join(part for part in _parts(facts) if part)


def _parts(facts: Mapping[str, Any]) -> Iterator[str]:
    yield _headline(facts)
    yield _how(facts)
    timeline = facts.get("timeline")
    if timeline and timeline["threads"]:
        yield "## Timeline"
        yield f"![Timeline of the worker threads]({timeline_image(timeline, facts['duration_s'])})"
    yield _failures(facts)
    yield _slowest(facts)
    yield _sizes(facts)
    yield _surroundings(facts)


def seconds(value: float) -> str:
    """Write a duration as a person would.

    Example:
        >>> seconds(0.0123), seconds(75.0), seconds(7_260.0)
        ('12 ms', '1:15 min', '2:01 h')
    """
    if value < 1.0:
        return f"{1000 * value:.{0 if value >= 0.01 else 1}f} ms"
    if value < 60.0:
        return f"{value:.1f} s"
    if value < 3600.0:
        return f"{int(value // 60)}:{int(value % 60):02} min"
    return f"{int(value // 3600)}:{int(value % 3600 // 60):02} h"


def _headline(facts: Mapping[str, Any]) -> str:
    state = str(facts.get("state", "finished"))
    after = "for" if state == "running" else "after"
    lines = [f"# {state.capitalize()} {after} {seconds(facts['duration_s'])}"]
    counts = facts.get("counts")
    if counts:
        words = [f"**{counts['done']:,} of {counts['discovered']:,} items done**"]
        for name, word in (("failed", "failed"), ("resumed", "resumed"), ("not_run", "not run")):
            if counts[name]:
                words.append(f"{counts[name]:,} {word}")
        sources = f"{counts['sources']:,} source{'' if counts['sources'] == 1 else 's'}"
        if counts["sources_failed"]:
            sources += f", of which {counts['sources_failed']:,} failed"
        lines.append(" · ".join([*words, sources]))
    if facts.get("stopped"):
        lines.append(f"It stopped early: {as_it_is(facts['stopped'], 500)}")
    if facts.get("error"):
        lines.append(f"It was ended by {as_it_is(facts['error'], 500)}")
    return "\n\n".join(lines)


def _how(facts: Mapping[str, Any]) -> str:
    if "strategy" not in facts:
        return ""
    return f"Strategy **{facts['strategy']}**: {as_it_is(facts['reason'], 500)}"


def _failures(facts: Mapping[str, Any]) -> str:
    groups = facts.get("failure_groups")
    if not groups:
        return ""
    address = facts.get("task_run_url")
    rows = []
    for group in groups:
        examples = group["examples"]
        first = examples[0] if examples else {"what": "", "message": ""}
        links = [
            f"[{_link_text(one['what'], number)}]({address.format(one['task_run'])})"
            for number, one in enumerate(examples, 1)
            if address and one["task_run"]
        ]
        shown = ", ".join(links) or ", ".join(cell(one["what"], 40) for one in examples)
        number = f"{group['count']:,}"
        rows.append((group["stage"], group["error_type"], number, Written(shown), first["message"]))
    columns = ("stage", "error", "number", "where", "for example")
    return f"## Failures\n\n{table(columns, rows)}"


def _link_text(what: str, number: int) -> str:
    """Name a link after what failed, or by its number: the first UI shows no code in a link."""
    text = one_line(what, 40)
    return text if as_it_is(text) == text else f"task run {number}"


def _slowest(facts: Mapping[str, Any]) -> str:
    parts = []
    if facts.get("slowest_sources"):
        rows = [
            (one["name"], seconds(one["seconds"]), f"{one['items']:,}")
            for one in facts["slowest_sources"]
        ]
        parts += ["## Slowest sources", table(("source", "work in all", "items"), rows)]
    if facts.get("slowest_items"):
        rows = [
            (one["name"], seconds(one["seconds"]), f"{one['count']:,}")
            for one in facts["slowest_items"]
        ]
        parts += ["## Slowest items", table(("items", "each", "in the batch"), rows)]
    return "\n\n".join(parts)


def _sizes(facts: Mapping[str, Any]) -> str:
    parts = []
    fan_out = facts.get("fan_out", {})
    if fan_out.get("sources"):
        most = max(one["sources"] for one in fan_out["histogram"])
        rows = [
            (
                f"{one['from']:,}" + ("" if one["from"] == one["to"] else f" to {one['to']:,}"),
                f"{one['sources']:,}",
                "█" * -(-BAR * one["sources"] // most),
            )
            for one in fan_out["histogram"]
        ]
        parts += [
            "## Fan-out",
            f"{fan_out['sources']:,} sources gave {fan_out['smallest']:,} to "
            f"{fan_out['largest']:,} items, {fan_out['mean']:,} on average.",
            table(("items", "sources", ""), rows),
        ]
    units = facts.get("units", {})
    sizes = [
        (
            stage,
            f"{one['count']:,}",
            f"{one['mean']:,}",
            f"{one['smallest']:,}",
            f"{one['largest']:,}",
        )
        for stage, one in units.items()
        if one["count"]
    ]
    if sizes:
        columns = ("stage", "Dask tasks", "in each, on average", "fewest", "most")
        parts += ["## Batches", table(columns, sizes)]
    return "\n\n".join(parts)


def _surroundings(facts: Mapping[str, Any]) -> str:
    lines = []
    recording = facts.get("recording")
    if recording:
        missing = recording["unrecorded"]
        told = f", of which {missing:,} were not recorded by the API in time" if missing else ""
        lines.append(f"- {recording['task_runs']:,} task runs{told}")
        if recording["degraded"]:
            lines.append(f"- Items were recorded by the batch: {as_it_is(recording['degraded'])}")
        if recording["unseen_batches"]:
            lines.append(
                f"- {recording['unseen_batches']:,} batches are no task runs, to keep the pace of "
                "`events_per_minute`; what failed in them is"
            )
    if facts.get("vanished"):
        names = ", ".join(str(as_it_is(name, 60)) for name in facts["vanished"][:NAMED])
        more = len(facts["vanished"]) - NAMED
        lines.append(f"- Gone since an earlier run: {names}" + (f" and {more}" if more > 0 else ""))
    if facts.get("dashboard"):
        lines.append(f"- [Dask's dashboard]({facts['dashboard']}), while the cluster lives")
    if facts.get("versions"):
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        lines.append(f"- {versions}")
    return "\n".join(["## Surroundings", "", *lines]) if lines else ""
