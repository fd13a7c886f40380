"""What the owner of journals needs: which there are, what is in one, and to forget one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect.results import ResultStore, get_result_store

from evolve_tasks.errors import InvalidInput
from evolve_tasks.journal.identity import is_collected, root_of
from evolve_tasks.journal.index import Entry, Key
from evolve_tasks.journal.journal import ABOUT
from evolve_tasks.journal.lock import JournalLock, current_claim
from evolve_tasks.journal.segments import Segments
from evolve_tasks.journal.storage import Files, folder_name, journals_root
from evolve_tasks.naming import short_repr

# How often a journal is read anew that a run keeps joining meanwhile.
TRIES = 5


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a journal knows of a source.

    Args:
        label: its name for people; untrusted text.
        size: number of items when it and what lies below it were last expanded; `None` if that
            is not known.
        done: how many of them have a result for the latest code.
        gone: it vanished, and that was reported.
    """

    label: str
    size: int | None
    done: int
    gone: bool


@dataclass(frozen=True, slots=True)
class JournalInfo:
    """A journal as it lies in the storage.

    Args:
        name: its name; `None` if it can't be read.
        folder: its folder in the storage.
        sources: number of sources, without those that vanished.
        gone: number of sources that vanished.
        items: number of items that have a result, for the latest code of each list.
        size_bytes: bytes in the storage.
        segments: number of files with records.
        last_run: when a run last opened it; `None` if it is not known.
        last_holder: who that was; untrusted text.
        claimed_by: who holds it or was killed holding it; `None` if nobody.
        damaged: what can't be read.

    Example:
        >>> from prefect import flow
        >>> from evolve_tasks import list_journals
        >>> @flow
        ... def sizes() -> dict[str | None, int]:
        ...     return {journal.name: journal.size_bytes for journal in list_journals()}
    """

    name: str | None
    folder: str
    sources: int
    gone: int
    items: int
    size_bytes: int
    segments: int
    last_run: datetime | None
    last_holder: str
    claimed_by: str | None
    damaged: tuple[str, ...]


def list_journals(store: ResultStore | None = None) -> list[JournalInfo]:
    """List the journals of a result storage.

    Args:
        store: Prefect's result store; `None`: that of the current run, or the default one.

    Returns:
        The journals by name.

    Raises:
        InvalidInput: the storage can't hold journals; the message says which can.

    Example:
        >>> import tempfile
        >>> from prefect.filesystems import LocalFileSystem
        >>> list_journals(ResultStore(result_storage=LocalFileSystem(basepath=tempfile.mkdtemp())))
        []
    """
    root = journals_root(store or get_result_store())
    found = [_info(root.folder(folder), folder) for folder in root.folders()]
    return sorted((info for info in found if info is not None), key=lambda info: info.name or "")


def journal_info(name: str, store: ResultStore | None = None) -> JournalInfo:
    """Describe a journal.

    Args:
        name: its name.
        store: Prefect's result store; `None`: that of the current run, or the default one.

    Returns:
        What it holds.

    Raises:
        InvalidInput: there is no such journal in this storage.

    Example:
        >>> import tempfile
        >>> from prefect.filesystems import LocalFileSystem
        >>> from evolve_tasks.journal.journal import Journal
        >>> store = ResultStore(result_storage=LocalFileSystem(basepath=tempfile.mkdtemp()))
        >>> with Journal.open("ingest", store, holder="run brave-lion"):
        ...     pass
        >>> journal_info("ingest", store).last_holder
        'run brave-lion'
    """
    files, folder = _existing(name, store)
    info = _info(files, folder)
    if info is None:
        raise _absent(name)
    return info


def journal_sources(name: str, store: ResultStore | None = None) -> list[SourceInfo]:
    """List the sources of a journal.

    Args:
        name: its name.
        store: Prefect's result store; `None`: that of the current run, or the default one.

    Returns:
        The sources, by label.

    Raises:
        InvalidInput: there is no such journal in this storage.

    Example:
        >>> import tempfile
        >>> from prefect.filesystems import LocalFileSystem
        >>> from evolve_tasks.journal.journal import Journal
        >>> store = ResultStore(result_storage=LocalFileSystem(basepath=tempfile.mkdtemp()))
        >>> with Journal.open("ingest", store, holder="run") as journal:
        ...     journal.note_listed("s", 0, "a.txt", "f", "p", 3, "i")
        >>> journal_sources("ingest", store)
        [SourceInfo(label='a.txt', size=3, done=0, gone=False)]
    """
    files, _ = _existing(name, store)
    return _sources(_loaded(files))


def forget_journal(name: str, store: ResultStore | None = None) -> None:
    """Remove a journal with all results in it; the next run of that name begins anew.

    Args:
        name: its name.
        store: Prefect's result store; `None`: that of the current run, or the default one.

    Returns:
        Nothing; by then all of it is gone.

    Raises:
        InvalidInput: there is no such journal in this storage.
        JournalBusy: a run holds it; cancel that run, or wait until it has ended.

    Example:
        >>> import tempfile
        >>> from prefect.filesystems import LocalFileSystem
        >>> from evolve_tasks.journal.journal import Journal
        >>> store = ResultStore(result_storage=LocalFileSystem(basepath=tempfile.mkdtemp()))
        >>> with Journal.open("ingest", store, holder="run"):
        ...     pass
        >>> forget_journal("ingest", store)
        >>> list_journals(store)
        []
    """
    files, _ = _existing(name, store)
    with JournalLock(files, name, "forgetting the journal"):
        segments = Segments(files, "reader")
        segments.remove_all()
        # Last, so that a removal that was cut off is still listed and can be done again.
        files.remove(ABOUT)
    files.remove_folder()


def _existing(name: str, store: ResultStore | None) -> tuple[Files, str]:
    folder = folder_name(name)
    files = journals_root(store or get_result_store()).folder(folder)
    if ABOUT not in files.names():
        raise _absent(name)
    return files, folder


def _absent(name: str) -> InvalidInput:
    return InvalidInput(
        f"there is no journal {short_repr(name)} in this storage: list those that are there with "
        "list_journals() or `python -m evolve_tasks journal list`, and give the storage that "
        "the flow has"
    )


def _info(files: Files, folder: str) -> JournalInfo | None:
    try:
        content = files.read(ABOUT)
    except FileNotFoundError:  # no journal, or one that is being forgotten
        return None
    about: dict[str, Any] = {}
    damaged: list[str] = []
    try:
        shown = json.loads(content)
        about = shown if isinstance(shown, dict) else {}
    except (ValueError, RecursionError) as error:
        damaged.append(f"{ABOUT}: {type(error).__name__}")
    segments = _loaded(files)
    claim = current_claim(files)
    sources = _sources(segments)
    name = about.get("name")
    return JournalInfo(
        name=name if isinstance(name, str) else None,
        folder=folder,
        sources=sum(not source.gone for source in sources),
        gone=sum(source.gone for source in sources),
        items=sum(
            _done(entry)
            for (token, _), entry in segments.index.sources.items()
            if not is_collected(token)
        ),
        size_bytes=segments.size_bytes,
        segments=segments.count,
        last_run=_moment(about.get("last_run_s")),
        last_holder=str(about.get("last_holder", "")),
        claimed_by=None if claim is None else str(claim),
        damaged=(*damaged, *segments.damaged),
    )


def _loaded(files: Files) -> Segments:
    """Read a journal, also while a run joins its files."""
    for _ in range(TRIES - 1):
        try:
            return _read(files)
        except FileNotFoundError:
            continue  # joined since it was listed: the records stand in another file now
    return _read(files)


def _read(files: Files) -> Segments:
    segments = Segments(files, "reader")
    segments.load()
    return segments


def _sources(segments: Segments) -> list[SourceInfo]:
    below: dict[Key, list[Entry]] = {}
    for (source, occurrence), entry in segments.index.sources.items():
        if is_collected(source):
            continue
        below.setdefault((root_of(source), occurrence), []).append(entry)
    found = []
    for key, entries in below.items():
        root = segments.index.sources.get(key)
        if root is None:
            continue  # of items that are known by themselves no source is the only one
        size = sum(entry.listings[0].size for entry in entries if entry.listings)
        found.append(
            SourceInfo(
                root.label,
                size if root.listings else None,
                sum(map(_done, entries)),
                root.is_gone,
            )
        )
    return sorted(found, key=lambda source: source.label)


def _done(entry: Entry) -> int:
    """How many items of a list have a result that holds for the list as it was last expanded."""
    variants, most = entry.variants, sys.maxsize
    if entry.listings:
        newest = entry.listings[0]
        most = newest.size
        variants = [
            variant
            for variant in variants
            if (variant.fingerprint, variant.items) == (newest.fingerprint, newest.items)
        ]
    ranges = variants[0].ranges() if variants else ()
    return sum(min(stop, most) - start for start, stop in ranges if start < most)


def _moment(seconds: Any) -> datetime | None:
    if not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
