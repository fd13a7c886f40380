"""Map the links of a site: every page once, from a start page on, and which links are dead.

A page leads to the pages that it links to, within the site. Run it with
`python -m flows.link_map http://127.0.0.1:8000/ --max-depth 5`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import cast
from urllib.parse import urldefrag, urljoin, urlsplit

import httpx
from prefect import State, flow, task
from prefect.artifacts import create_table_artifact
from prefect.concurrency.sync import rate_limit
from prefect.states import Completed

from evolve_tasks import EvolveFailed, EvolveOptions, Limits, More, evolve
from evolve_tasks.report import as_it_is
from flows.command_line import console, limit_console_logs, local_cluster, positive, shown

TIMEOUT_S = 10.0

# A site is a graph with loops: each page once, and not deeper than anybody reads.
OPTIONS = EvolveOptions(on_failure="ignore", unique=True, limits=Limits(max_depth=10))


@dataclass(frozen=True)
class Link:
    """A page that is to be visited.

    Args:
        url: its address, without a fragment.
        limit: name of the Prefect concurrency limit that each visit takes a slot of; its decay is
            the pace that the site is to bear. Empty: none.
    """

    url: str
    limit: str = ""


@dataclass(frozen=True)
class Page:
    """What a visit found.

    Args:
        url: the address.
        status: the answer's status code.
        links: N >= 0 links to other pages of the site.
    """

    url: str
    status: int
    links: int = 0

    @property
    def dead(self) -> bool:
        """Whether the link leads nowhere."""
        return self.status >= 400


class _Links(HTMLParser):
    """Gathers where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.targets.append(target)


def links_of(url: str, html: str) -> list[str]:
    """Addresses within the same site that a page links to, each once, in order.

    Example:
        >>> links_of("http://a/b/", '<a href="c#d">1</a><a href="/e">2</a><a href="http://x/">3</a>')
        ['http://a/b/c', 'http://a/e']
    """
    parser = _Links()
    parser.feed(html)
    site, found = urlsplit(url)[:2], []
    for target in parser.targets:
        try:
            address = urldefrag(urljoin(url, target)).url
            if urlsplit(address)[:2] == site:
                found.append(address)
        except ValueError:  # no address, as `http://[x`
            continue
    return list(dict.fromkeys(found))


def start_at(start: Link) -> list[Link]:
    """The start page is the first one that is visited."""
    return [start]


@task(retries=1, retry_delay_seconds=0.5, task_run_name="visit[{link.url}]")
def visit(link: Link) -> Page | More:
    """Fetch a page: the last stage, which leads to the pages that it links to."""
    if link.limit:
        # A name that nobody has created would be no limit at all.
        rate_limit(link.limit, strict=True)
    answer = httpx.get(link.url, timeout=TIMEOUT_S, follow_redirects=True)
    if answer.is_error or "html" not in answer.headers.get("content-type", ""):
        return Page(link.url, answer.status_code)
    # Where a page sends us to another site its links are not ours to follow.
    here = str(answer.url)
    same = urlsplit(here)[:2] == urlsplit(link.url)[:2]
    links = links_of(here, answer.text) if same else []
    page = Page(link.url, answer.status_code, len(links))
    return More(page, [Link(url, link.limit) for url in links], stage=1)


def address_of(link: Link) -> str:
    """What makes two links the same."""
    return link.url


@flow(name="link-map", task_runner=local_cluster(2, threads=4, processes=True))
def link_map(
    start: str, limit: str = "", options: EvolveOptions = OPTIONS
) -> State[Sequence[Page]]:
    """Visit each page of a site once, and tell which links are dead.

    Args:
        start: address of the start page.
        limit: name of a Prefect concurrency limit with a decay: so many visits a second, whoever
            makes them. Empty: as fast as it goes.
        options: how the work is driven, bounded and recorded.

    Returns:
        A completed state that holds the pages.

    Raises:
        ValueError: `start` is no address.
        EvolveFailed: more failed than `options.on_failure` accepts.
    """
    if urlsplit(start).scheme not in ("http", "https"):
        raise ValueError(f"{start!r} is no address: give one that begins with http:// or https://")
    first = Link(urldefrag(start).url, limit)
    outcome = evolve([first], start_at, visit, options=options, key=address_of, label=address_of)
    pages: list[Page] = outcome.results
    dead = [page for page in pages if page.dead]
    create_table_artifact(
        key="link-map",
        table=[{"page": as_it_is(shown(page.url)), "status": page.status} for page in dead]
        or [{"page": "no dead link", "status": 200}],
    )
    text = f"{len(pages):,} pages, {len(dead):,} dead, {len(outcome.failures):,} without an answer"
    return Completed(message=f"{text}; {outcome.stopped}" if outcome.stopped else text, data=pages)


def main() -> int:
    """Map a site from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.link_map", description=__doc__)
    parser.add_argument("start", help="address of the start page")
    parser.add_argument("--max-depth", type=positive, default=OPTIONS.limits.max_depth)
    parser.add_argument("--limit", default="", help="name of a Prefect concurrency limit")
    given = parser.parse_args()
    limit_console_logs()
    options = OPTIONS.model_copy(update={"limits": Limits(max_depth=given.max_depth)})
    try:
        state = cast(
            State[Sequence[Page]],
            link_map(given.start, given.limit, options, return_state=True),
        )
        pages = state.result()
    except (EvolveFailed, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    console().print(state.message, markup=False)
    for page in [page for page in pages if page.dead][:20]:
        console().print(f"  {page.status} {shown(page.url)}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
