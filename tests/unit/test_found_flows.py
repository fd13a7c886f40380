"""Parts of the flows that find work on the way: links of a page, archives that are kept open."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from flows.archive_scan import Archive, _open_here
from flows.link_map import links_of


def test_a_link_that_is_no_address_costs_the_others_nothing() -> None:
    page = '<a href="http://[x">broken</a><a href="/e">good</a><a href="http://a:b/">port</a>'
    assert links_of("http://a/b/", page) == ["http://a/e"]


def test_an_archive_that_cannot_be_opened_costs_the_one_before_nothing(tmp_path: Path) -> None:
    path = tmp_path / "good.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("member", "content")
    good, gone = Archive(str(path)), Archive(str(tmp_path / "gone.zip"))
    for _ in range(2):
        opened = _open_here(good)
        assert isinstance(opened, zipfile.ZipFile)
        assert opened.read("member") == b"content"
        with pytest.raises(FileNotFoundError):
            _open_here(gone)
