"""A report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from markdown_it import MarkdownIt

from evolve_tasks.report.markdown import markdown

PICTURE = "data:image/svg+xml;base64,"

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  background: light-dark(#fff, #0f172a); color: light-dark(#1e293b, #e2e8f0); }
img { max-width: 100%; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #94a3b855;
  overflow-wrap: anywhere; }
th { white-space: nowrap; }
code { background: #94a3b833; padding: .1em .3em; border-radius: .25em; }
"""


def page(facts: Mapping[str, Any]) -> str:
    """Tell the facts of a report as an HTML page.

    Args:
        facts: a `Report`.

    Returns:
        A whole document: no scripts, and nothing that is loaded from elsewhere.

    Example:
        >>> page({"state": "finished", "duration_s": 2.0}).startswith("<!DOCTYPE html>")
        True
    """
    written = MarkdownIt("commonmark", {"html": False}).enable("table")
    allowed = written.validateLink
    # It refuses all such addresses; this one is ours, as names of others are never links.
    written.validateLink = lambda url: url.startswith(PICTURE) or allowed(url)  # type: ignore[method-assign]
    title = escape(str(facts.get("title", "evolve-tasks")))
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{written.render(markdown(facts))}</body></html>\n"
    )
