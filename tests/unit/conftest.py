"""Unit tests are the same on each run: hypothesis draws the same examples every time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same-each-time", derandomize=True, deadline=None, database=None)
settings.load_profile("same-each-time")
