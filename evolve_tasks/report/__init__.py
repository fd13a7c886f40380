"""The story of a run: gathered while it is under way, and told as JSON, markdown or HTML."""

from evolve_tasks.report.plain import as_it_is
from evolve_tasks.report.report import Report
from evolve_tasks.report.story import Story

__all__ = ["Report", "Story", "as_it_is"]
