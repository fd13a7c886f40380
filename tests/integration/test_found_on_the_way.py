"""The two flows that find work on the way: archives within archives, and the links of a site."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

from evolve_tasks import EvolveTaskRunner
from flows.archive_scan import DEEPEST, OPTIONS, Totals, archive_scan, sample_below
from flows.link_map import Page, link_map

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as as_zip:
        for name, content in members.items():
            as_zip.writestr(name, content)
    return file.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as as_tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            as_tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def scanned(root: Path, address: str, **options: Any) -> tuple[Totals, str]:
    flow = archive_scan.with_options(task_runner=EvolveTaskRunner(address=address))
    state: Any = flow(str(root), options.pop("largest_mb", 5), return_state=True)
    return state.result(), state.message


@pytest.mark.parametrize("levels", [1, 6])
def test_archives_within_archives(levels: int, thread_workers: str, tmp_path: Path) -> None:
    content, members = b"at the bottom", 1
    for level in range(levels):
        pack = zipped if level % 2 else tarred
        suffix = "tar.gz" if level % 2 else "zip"
        content = pack({f"a{level}.txt": b"the same", f"inner.{suffix}" if level else "x": content})
        members += 1 + (level > 0)
    (tmp_path / "outer.zip").write_bytes(zipped({"in.tar.gz" if levels % 2 else "in.zip": content}))
    totals, message = scanned(tmp_path, thread_workers)
    assert totals.members == 2 * levels + 1
    assert "failed" not in message
    same = totals.names[digest(b"the same")]
    assert len(same) == levels
    if levels > 1:
        assert totals.duplicates[0] == sorted(same)


def test_what_is_wrong_fails_alone(thread_workers: str, tmp_path: Path) -> None:
    good = zipped({"a": b"1", "b": b"22"})
    torn = bytearray(zipped({"c": b"x" * 1_000}))
    torn[torn.index(b"PK\x01\x02") - 3] ^= 0xFF  # the member's last bytes: the sum does not fit
    (tmp_path / "good.zip").write_bytes(good)
    (tmp_path / "torn.zip").write_bytes(bytes(torn))
    (tmp_path / "none.tar").write_bytes(b"no archive at all")
    (tmp_path / "bomb.zip").write_bytes(zipped({"zeros": b"\0" * 6_000_000, "d": b"4"}))
    totals, message = scanned(tmp_path, thread_workers)
    assert totals.members == 3
    assert message == "3 members in 4 archives, 0.0 MB, 0 with copies, 3 failed"


def test_archives_within_archives_come_to_an_end(thread_workers: str, tmp_path: Path) -> None:
    # An archive may hold itself; one that nobody would make by hand stands for it.
    content = zipped({"in.zip": b"never looked at"})
    for _ in range(DEEPEST + 5):
        content = zipped({"in.zip": content})
    (tmp_path / "outer.zip").write_bytes(content)
    totals, message = scanned(tmp_path, thread_workers)
    assert totals.members == DEEPEST + 1
    assert message.endswith("1 failed")


def test_python_s_own_wheels(thread_workers: str, tmp_path: Path) -> None:
    sample_below(tmp_path)
    wheels = [path for path in tmp_path.iterdir() if path.suffix == ".whl"]
    names = [name for path in wheels for name in zipfile.ZipFile(path).namelist()]
    totals, message = scanned(tmp_path, thread_workers, largest_mb=200)
    inside = len([name for name in names if not name.endswith("/")])
    # Each wheel is there twice, once within a zip within a tar: those two are members, too.
    assert totals.members == 2 * inside + len(wheels) + 1
    assert "failed" not in message
    assert len(totals.duplicates) > inside // 2
    assert OPTIONS.on_failure == "ignore"


PAGES = 250
LINKS = {
    page: [Random(f"site {page} {link}").randrange(PAGES) for link in range(3)]
    for page in range(PAGES)
}
DEAD = {page for page in range(PAGES) if page % 17 == 5}
SLOW = {page for page in range(PAGES) if page % 31 == 3}


class Site(BaseHTTPRequestHandler):
    visits: ClassVar[list[int]] = []
    times: ClassVar[list[float]] = []
    lock = threading.Lock()

    def do_GET(self) -> None:
        page = int(self.path.removeprefix("/page/"))
        with self.lock:
            self.visits.append(page)
            self.times.append(time.monotonic())
        if page in DEAD:
            self.send_error(404)
            return
        if page in SLOW:
            time.sleep(0.2)
        links = "".join(f'<a href="/page/{link}#part{page}">{link}</a>' for link in LINKS[page])
        body = f'{links}<a href="http://elsewhere.invalid/">out</a><a name="x">no link</a>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@pytest.fixture
def site() -> Iterator[str]:
    Site.visits.clear()
    Site.times.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def reachable() -> set[int]:
    found, todo = {0}, [0]
    while todo:
        page = todo.pop()
        for link in () if page in DEAD else LINKS[page]:
            if link not in found:
                found.add(link)
                todo.append(link)
    return found


def test_each_page_of_a_site_once(site: str, thread_workers: str) -> None:
    flow = link_map.with_options(task_runner=EvolveTaskRunner(address=thread_workers))
    options = {"on_failure": "ignore", "unique": True, "record": "sources"}
    state: Any = flow(f"{site}/page/0#top", "", options, return_state=True)
    pages: list[Page] = state.result()
    assert sorted(page.url for page in pages) == sorted(f"{site}/page/{n}" for n in reachable())
    assert sorted(Site.visits) == sorted(reachable())
    dead = {int(page.url.rpartition("/")[2]) for page in pages if page.dead}
    assert dead == DEAD & reachable()
    assert state.message == f"{len(pages):,} pages, {len(dead):,} dead, 0 without an answer"


def test_no_deeper_than_was_said(site: str, thread_workers: str) -> None:
    flow = link_map.with_options(task_runner=EvolveTaskRunner(address=thread_workers))
    options = {"on_failure": "ignore", "unique": True, "limits": {"max_depth": 1}}
    state: Any = flow(f"{site}/page/0", "", options, return_state=True)
    assert sorted(set(Site.visits)) == sorted({0, *LINKS[0]})
    assert "limits.max_depth=1 was reached" in state.message


PACE = 4.0  # visits a second


@pytest.fixture
def polite(prefect_api: str) -> Iterator[str]:
    name = f"polite-{uuid4()}"
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=name, limit=1, slot_decay_per_second=PACE)
        )
        yield name
        client.delete_global_concurrency_limit_by_name(name)


def test_the_pace_that_a_site_is_to_bear(site: str, polite: str, thread_workers: str) -> None:
    flow = link_map.with_options(task_runner=EvolveTaskRunner(address=thread_workers))
    options = {"on_failure": "ignore", "unique": True, "limits": {"max_depth": 2}}
    state: Any = flow(f"{site}/page/0", polite, options, return_state=True)
    assert state.result()
    assert len(Site.visits) > 5
    # A slot is free again after its decay; what comes sooner waits on its worker.
    assert Site.times[-1] - Site.times[0] > (len(Site.visits) - 2) / PACE


def test_a_limit_that_nobody_has_made_is_told_of(site: str, thread_workers: str) -> None:
    flow = link_map.with_options(task_runner=EvolveTaskRunner(address=thread_workers))
    state: Any = flow(f"{site}/page/0", "misspelt", return_state=True)
    assert state.message == "0 pages, 0 dead, 1 without an answer"
    assert Site.visits == []
