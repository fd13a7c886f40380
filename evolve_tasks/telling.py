"""What came back from the workers, told to the story of the run."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from evolve_tasks.outcome import Failure
from evolve_tasks.report import Story
from evolve_tasks.report.story import When
from evolve_tasks.workers.calls import (
    BatchResult,
    Discovery,
    Measure,
    SourceCall,
    SourceEnd,
    Span,
    item_run_id,
)


def tell_expansion(
    story: Story, stage: int, calls: Sequence[SourceCall], measure: Measure
) -> list[tuple[str, int]]:
    """Tell of a unit that expanded sources, or items of an inner stage.

    Args:
        story: the story.
        stage: position of its stage.
        calls: what it expanded, in order.
        measure: how it ended.

    Returns:
        Those that were expanded: name and number of items.
    """
    begun = [
        (call, end)
        for call, end in zip(calls, measure.ends, strict=True)
        if not (call.known or end.skipped)
    ]
    if not begun:
        return []
    failed = sum(len(end.failures) + (end.failure is not None) for _, end in begun)
    story.expanded(
        _when(measure.span),
        [
            (call.position, _given(end) if _given(end) or not end.failure else None)
            for call, end in begun
        ],
        parse_s=measure.parse_s,
        inline_s=measure.inline_s,
        inline=sum(end.ended - end.not_run for _, end in begun),
        failed=failed,
        found=[_found(story, end.discoveries) for _, end in begun],
        stage=stage,
        sources=not begun[0][0].inner,
    )
    for call, end in begun:
        if end.failure is not None:
            _tell_failure(story, end.failure, call.label, call.run_id if end.has_run else None)
        _tell_items(story, call, end.recorded, end.failures)
    return [(call.label, _given(end)) for call, end in begun if end.failure is None]


def _given(end: SourceEnd) -> int:
    """Items that something gave, with those that were sent while it still gave."""
    return end.given + end.size


def _found(story: Story, discoveries: Sequence[Discovery]) -> int:
    """Items of the last stage that other items have found."""
    last = len(story.stages) - 1
    return sum(count for one in discoveries if one.stage == last for _, count in one.owners)


def tell_batch(story: Story, call: SourceCall, start: int, stop: int, batch: BatchResult) -> None:
    """Tell of a batch of items.

    Args:
        story: the story.
        call: their source.
        start: position of the first.
        stop: position after the last.
        batch: how it ended.
    """
    stop -= batch.not_run
    items = str(start) if stop - start == 1 else f"{start}-{stop - 1}"
    story.processed(
        _when(batch.span),
        call.position,
        f"{call.label} {items}",
        stop - start,
        batch.worked_s,
        len(batch.failures),
        _found(story, batch.discoveries),
    )
    _tell_items(story, call, batch.recorded, batch.failures)


def tell_lost(story: Story, call: SourceCall, failure: Failure, run_id: UUID | None) -> None:
    """Tell of an item, or a source, that was given up."""
    _tell_failure(story, failure, _named(call, failure), run_id)


def tell_beside(
    story: Story, span: Span | None, failure: Failure | None, run_id: UUID | None
) -> None:
    """Tell of something that was done beside the stages.

    Args:
        story: the story.
        span: when and where it ran; `None` if nobody knows, or if it was a part of a unit.
        failure: why it failed, if it did.
        run_id: id of its task run, if it has one.
    """
    if span is not None:
        story.beside(_when(span), failed=int(failure is not None))
    if failure is not None:
        _tell_failure(story, failure, failure.item, run_id)


def _tell_items(
    story: Story, call: SourceCall, recorded: Sequence[int], failures: Sequence[Failure]
) -> None:
    if not failures:
        return
    known = set(recorded)
    for failure in failures:
        position = failure.index[-1]
        run_id = item_run_id(call.run_id, position) if position in known else None
        _tell_failure(story, failure, _named(call, failure), run_id)


def _tell_failure(story: Story, failure: Failure, what: str, run_id: UUID | None) -> None:
    task_run = None if run_id is None else str(run_id)
    story.failed(failure.stage, failure.error_type, what, failure.message, task_run)


def _named(call: SourceCall, failure: Failure) -> str:
    return " ".join([call.label, *map(str, failure.index[len(call.index) :])])


def _when(span: Span) -> When:
    return When(span.started, span.ended, span.worker, span.thread)
