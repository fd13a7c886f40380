"""Where journals are: a folder each, in the place that Prefect's results go to.

`<basepath>/evolve-journals/<folder>/` has `journal.json` with the name, segments of records, and
the claims of runs. Every file is written once and whole, or replaced as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast

from fsspec import AbstractFileSystem
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.results import ResultStore, get_default_result_storage

from evolve_tasks.errors import InvalidInput
from evolve_tasks.naming import short_repr

ROOT: Final = "evolve-journals"
_SLUG: Final = 40  # characters: readable in a listing, far below any file system's limit
_UNFINISHED: Final = ".part"


class Files(Protocol):
    """A folder of files, each written whole."""

    def names(self) -> dict[str, int]:
        """Size in bytes of each file by name; empty if there is no folder."""

    def folders(self) -> list[str]:
        """Names of the folders in it, sorted."""

    def read(self, name: str) -> bytes:
        """Read a file; FileNotFoundError if it is not there."""

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes of a file, fewer if it ends before."""

    def opened(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a file to read and to seek."""

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Make a file, or replace it: afterwards it is there whole, or as it was before.

        With `durable` it returns when it would survive a loss of power.
        """

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if it is not there."""

    def remove_folder(self) -> None:
        """Remove the folder if nothing is left in it."""

    def sweep(self, suffix: str) -> None:
        """Remove what a killed writer left unfinished of files that end so."""

    def folder(self, name: str) -> Files:
        """A folder in it, which need not exist."""


def folder_name(name: str) -> str:
    """Turn the name of a journal into one that is safe on any file system.

    Args:
        name: the journal's name, any text but an empty one.

    Returns:
        Lower case letters, digits and dashes to recognise it by, and a digest to tell it from
        every other name.

    Raises:
        InvalidInput: it is empty or no text.

    Example:
        >>> folder_name("../Nightly run")
        'nightly-run-42d11df3ec94ad16'
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidInput(
            f"the journal's name is {short_repr(name)}: give a text such as 'ingest', or "
            "journal=True for one that belongs to this flow run"
        )
    slug = re.sub(r"[^a-z0-9]+", "-", name[: 4 * _SLUG].lower())[:_SLUG].strip("-")
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{slug}-{digest}" if slug else digest


def journals_root(store: ResultStore) -> Files:
    """Find the folder of all journals.

    Args:
        store: Prefect's result store; where it has no storage, Prefect's default counts.

    Returns:
        The folder, which need not exist.

    Raises:
        InvalidInput: the storage is of a kind that can't list its files; the message says which
            can.

    Example:
        >>> import tempfile
        >>> storage = LocalFileSystem(basepath=tempfile.mkdtemp())
        >>> journals_root(ResultStore(result_storage=storage)).folders()
        []
    """
    storage = store.result_storage
    if storage is None:
        storage = cast(Any, get_default_result_storage)(_sync=True)
    if isinstance(storage, LocalFileSystem):
        # The block's own rule for where it is: a missing basepath means the current directory.
        return LocalFiles(storage._resolve_path(ROOT))
    if isinstance(storage, RemoteFileSystem):
        system = storage.filesystem
        path = system._strip_protocol(storage._resolve_path(ROOT))
        if "file" in _protocols(system):
            return LocalFiles(Path(path))
        return RemoteFiles(system, path)
    raise InvalidInput(
        f"the flow's result storage is a {type(storage).__name__}, which can't hold a journal: it "
        "can't list or remove its files. Use a LocalFileSystem or a RemoteFileSystem block "
        "(s3://, gs://, az:// and whatever else fsspec knows) as result_storage, or run without "
        "journal"
    )


def _protocols(system: AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


class LocalFiles:
    """A folder on a local or mounted file system.

    Args:
        path: where it is; it need not exist.

    Example:
        >>> import tempfile
        >>> files = LocalFiles(Path(tempfile.mkdtemp()) / "new")
        >>> files.write("a", b"one")
        >>> files.read("a"), files.names()
        (b'one', {'a': 3})
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> dict[str, int]:
        """Size in bytes of each file by name; empty if there is no folder."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._path) as entries:
            for entry in entries:
                # One that vanishes meanwhile is the claim of a run that has ended.
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file() and not entry.name.endswith(_UNFINISHED):
                        found[entry.name] = entry.stat().st_size
        return found

    def folders(self) -> list[str]:
        """Names of the folders in it, sorted."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
        return []

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self._path / name).read_bytes()

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes of a file, fewer if it ends before."""
        with open(self._path / name, "rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """Open a file to read and to seek."""
        with open(self._path / name, "rb") as stream:
            yield stream

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Make a file, or replace it, as a whole."""
        self._path.mkdir(parents=True, exist_ok=True)
        part = self._path / f"{name}.{uuid.uuid4().hex}{_UNFINISHED}"
        try:
            with open(part, "wb") as stream:
                stream.write(content)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.replace(part, self._path / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if durable:
            self._sync_folder()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self._path / name).unlink(missing_ok=True)

    def remove_folder(self) -> None:
        """Remove the folder if nothing is left in it."""
        try:
            self._path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def sweep(self, suffix: str) -> None:
        """Remove what a killed writer left unfinished of files that end so."""
        for part in self._path.glob(f"*{suffix}.*{_UNFINISHED}"):
            part.unlink(missing_ok=True)

    def folder(self, name: str) -> Files:
        """A folder in it, which need not exist."""
        return LocalFiles(self._path / name)

    def _sync_folder(self) -> None:
        # Without it the file is safe and its name may not be. Windows can't open folders.
        if os.name == "posix":
            folder = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


class RemoteFiles:
    """A folder on a file system of fsspec, where one put makes a whole file or none.

    Args:
        system: the file system.
        path: where the folder is, in the system's own form.

    Example:
        >>> import fsspec
        >>> files = RemoteFiles(fsspec.filesystem("memory"), "/example/journals")
        >>> files.write("a", b"one")
        >>> files.read_part("a", 1, 10), files.names()
        (b'ne', {'a': 3})
    """

    def __init__(self, system: AbstractFileSystem, path: str) -> None:
        self._system = system
        self._path = path.rstrip("/")

    def names(self) -> dict[str, int]:
        """Size in bytes of each file by name; empty if there is no folder."""
        return {name: int(entry["size"] or 0) for name, entry in self._entries() if _is_file(entry)}

    def folders(self) -> list[str]:
        """Names of the folders in it, sorted."""
        return sorted(name for name, entry in self._entries() if not _is_file(entry))

    def read(self, name: str) -> bytes:
        """Read a file."""
        return bytes(self._system.cat_file(self._at(name)))

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes of a file, fewer if it ends before."""
        return bytes(self._system.cat_file(self._at(name), start=offset, end=offset + length))

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """Open a file to read and to seek."""
        with self._system.open(self._at(name), "rb") as stream:
            yield stream

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Make a file, or replace it, with one put; it returns when the store has it."""
        # Object stores have no folders; others (sftp, smb) want them made.
        self._system.makedirs(self._path, exist_ok=True)
        self._system.pipe_file(self._at(name), content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._at(name))

    def remove_folder(self) -> None:
        """Remove the folder if nothing is left in it; object stores have none of their own."""
        if not self._entries():
            with contextlib.suppress(FileNotFoundError, NotImplementedError):
                self._system.rmdir(self._path)

    def sweep(self, suffix: str) -> None:
        """Nothing is ever unfinished here: a put makes a whole file or none."""

    def folder(self, name: str) -> Files:
        """A folder in it, which need not exist."""
        return RemoteFiles(self._system, self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _entries(self) -> list[tuple[str, dict[str, Any]]]:
        # Listings are cached by some file systems, and other runs write here.
        self._system.invalidate_cache(self._path)
        try:
            found = self._system.ls(self._path, detail=True)
        except FileNotFoundError:
            return []
        named = [(entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in found]
        return [(name, entry) for name, entry in named if name]


def _is_file(entry: dict[str, Any]) -> bool:
    return bool(entry["type"] == "file")
