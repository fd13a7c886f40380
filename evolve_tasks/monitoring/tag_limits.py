"""Which tags are limits on concurrency, and which are names only.

Prefect asks the API for a place in each tag of a task run, also where nobody has limited one:
one request for each item. Asked once for all of a run, it is one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

PAGE = 200  # limits in one answer: Prefect's own limit


def unlimited_tags(tags: Iterable[str], logger: logging.Logger | Any) -> frozenset[str]:
    """Those of N >= 0 tags that limit nothing at this moment; none where the API does not say.

    Args:
        tags: the tags.
        logger: told why if the API does not say.
    """
    asked = frozenset(tags)
    if not asked:
        return asked
    try:
        with get_client(sync_client=True) as client:
            # A server has them as limits of both kinds; Prefect Cloud need not.
            tagged = _all(client.read_concurrency_limits)
            named = _all(client.read_global_concurrency_limits)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        logger.debug("The API does not say which tags are limited: %r", error)
        return frozenset()
    limited = {one.name for one in named if one.active} | {f"tag:{one.tag}" for one in tagged}
    return frozenset(tag for tag in asked if f"tag:{tag}" not in limited)


def _all(ask: Callable[..., list[Any]]) -> list[Any]:
    """All that the API has of something, page by page."""
    found: list[Any] = []
    while len(page := ask(limit=PAGE, offset=len(found))) == PAGE:
        found += page
    return found + page
