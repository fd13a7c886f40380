"""The report of a run: one mapping of plain values, told as JSON, markdown or HTML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evolve_tasks.report.markdown import markdown
from evolve_tasks.report.page import page


class Report(dict[str, Any]):
    """The story of a run: counts, timeline, what was slow, what failed, versions.

    It is a mapping of plain values, ready for JSON; `markdown()` is what the Prefect UI shows.

    Example:
        >>> report = Report(state="finished", counts={}, duration_s=1.0)
        >>> report["state"]
        'finished'
    """

    def markdown(self) -> str:
        """The report as markdown, as the artifact in the Prefect UI has it.

        Returns:
            A text of bounded size; names and error texts in it are shown as they are.

        Example:
            >>> Report(state="finished", counts={}, duration_s=1.0).markdown().splitlines()[0][:1]
            '#'
        """
        return markdown(self)

    def html(self) -> str:
        """The report as an HTML page that needs nothing else.

        Returns:
            A whole document: no scripts, and nothing that is loaded from elsewhere.

        Example:
            >>> "<script" in Report(state="finished", counts={}, duration_s=1.0).html()
            False
        """
        return page(self)

    def write_html(self, path: str | Path) -> None:
        """Write the report as an HTML page that needs nothing else.

        Args:
            path: file to write; its directory has to be there.

        Raises:
            OSError: it cannot be written; the report is kept, give another path.

        Example:
            >>> from tempfile import mkdtemp
            >>> Report(state="finished", counts={}, duration_s=1.0).write_html(
            ...     f"{mkdtemp()}/night.html"
            ... )
        """
        Path(path).write_text(self.html(), encoding="utf-8")

    def write_json(self, path: str | Path) -> None:
        """Write the report as JSON.

        Args:
            path: file to write; its directory has to be there.

        Raises:
            OSError: it cannot be written; the report is kept, give another path.

        Example:
            >>> from tempfile import mkdtemp
            >>> Report(state="finished").write_json(f"{mkdtemp()}/night.json")
        """
        Path(path).write_text(json.dumps(self, indent=2) + "\n", encoding="utf-8")
