"""Check every member of every archive below a directory, archives within archives too.

Zip files, wheels and tars are listed, and each member is read: its check sum, its size, its
digest. A member that is an archive itself is scanned like the others, to any depth. Run it with
`python -m flows.archive_scan DIRECTORY`.
"""

from __future__ import annotations

import argparse
import ensurepip
import hashlib
import io
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, cast

from prefect import State, flow, task
from prefect.artifacts import create_table_artifact
from prefect.states import Completed
from pydantic import Field

from evolve_tasks import EvolveFailed, EvolveOptions, More, evolve
from evolve_tasks.report import as_it_is
from flows.command_line import console, limit_console_logs, local_cluster, positive, shown

SUFFIXES = (".zip", ".whl", ".jar", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CHUNK = 1 << 20

# A member that comes to more is taken for a bomb. Archives within archives travel whole to whoever
# scans them, so this is also what one of these may weigh.
LARGEST_MB = 200

# Archives within archives beyond this are not scanned: one may hold itself, without end.
DEEPEST = 50

OPTIONS = EvolveOptions(on_failure="ignore", record="sources")


@dataclass(frozen=True)
class Archive:
    """An archive: a file, or a member of another one with its bytes.

    Args:
        name: its path, and for a member the path within each archive above it.
        content: its bytes, where it is no file.
        largest_mb: what a member may come to, in MB.
        depth: archives that it is in.
    """

    name: str
    content: bytes | None = None
    largest_mb: int = LARGEST_MB
    depth: int = 0


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    archive: Archive
    name: str


@dataclass(frozen=True)
class Checked:
    """A member that was read."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Summary:
    """What an archive holds, all that is within its members included."""

    members: int
    size: int


@dataclass
class Totals:
    """What all archives hold, and which members are the same.

    Args:
        members: N >= 0 members.
        size: bytes of all of them.
        names: names of the members of each digest.
    """

    members: int = 0
    size: int = 0
    names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def duplicates(self) -> list[list[str]]:
        """Names of members that are the same, those of the most copies first."""
        several = [sorted(names) for names in self.names.values() if len(names) > 1]
        return sorted(several, key=lambda names: (-len(names), names))


def is_archive(name: str) -> bool:
    """Whether a name is that of an archive."""
    return name.lower().endswith(SUFFIXES)


@contextmanager
def opened(archive: Archive) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """Open an archive; its end says what is wrong with it."""
    file: IO[bytes] | str = archive.name
    if archive.content is not None:
        file = io.BytesIO(archive.content)
    if archive.name.lower().endswith((".zip", ".whl", ".jar")):
        with zipfile.ZipFile(file) as as_zip:
            yield as_zip
    elif isinstance(file, str):
        with tarfile.open(file) as as_tar:
            yield as_tar
    else:
        with tarfile.open(fileobj=file) as as_tar:
            yield as_tar


_kept = threading.local()  # an archive that is open, by thread: members come one after another


def _open_here(archive: Archive) -> zipfile.ZipFile | tarfile.TarFile:
    if getattr(_kept, "archive", None) != archive:
        if (before := getattr(_kept, "context", None)) is not None:
            _kept.archive = _kept.context = None
            before.__exit__(None, None, None)
        context = opened(archive)
        _kept.file = context.__enter__()
        _kept.context, _kept.archive = context, archive
    file: zipfile.ZipFile | tarfile.TarFile = _kept.file
    return file


@task
def members_of(archive: Archive) -> list[Member]:
    """List an archive: the expanding stage.

    Raises:
        ValueError: it is within more archives than anybody would make by hand.
    """
    if archive.depth > DEEPEST:
        raise ValueError(f"it is within {archive.depth} archives, and is not scanned further")
    with opened(archive) as file:
        if isinstance(file, zipfile.ZipFile):
            names = [one.filename for one in file.infolist() if not one.is_dir()]
        else:
            names = [one.name for one in file if one.isfile()]
    return [Member(archive, name) for name in names]


def read(member: Member) -> bytes:
    """Read a member; its archive checks the sum.

    Raises:
        ValueError: it comes to more than it may, as a zip bomb does.
    """
    largest_mb = member.archive.largest_mb
    file = _open_here(member.archive)
    if isinstance(file, zipfile.ZipFile):
        said = file.getinfo(member.name).file_size
    else:
        said = file.getmember(member.name).size
    if said > largest_mb * 1_000_000:
        raise ValueError(f"it says that it comes to {said / 1e6:,.0f} MB, more than {largest_mb}")
    stream: IO[bytes] | None
    if isinstance(file, zipfile.ZipFile):
        stream = file.open(member.name)
    else:
        stream = file.extractfile(member.name)
    assert stream is not None, "only files are listed"
    read_so_far = io.BytesIO()
    with stream:
        while chunk := stream.read(CHUNK):
            read_so_far.write(chunk)
            if read_so_far.tell() > largest_mb * 1_000_000:
                raise ValueError(f"it comes to more than {largest_mb} MB, and is not read further")
    return read_so_far.getvalue()


@task
def check(member: Member) -> Checked | More:
    """Read a member: the last stage. One that is an archive leads further."""
    archive, content = member.archive, read(member)
    name = f"{archive.name}/{member.name}"
    checked = Checked(name, len(content), hashlib.sha256(content).hexdigest())
    if is_archive(member.name):
        return More(
            checked, [Archive(name, content, archive.largest_mb, archive.depth + 1)], stage=0
        )
    return checked


def summary_of(archive: Archive, checked: Sequence[Checked]) -> Summary:
    """What an archive holds."""
    return Summary(len(checked), sum(one.size for one in checked))


def total_of(checked: Checked) -> Totals:
    """A member as a total of its own."""
    return Totals(1, checked.size, {checked.digest: [checked.name]})


def added(one: Checked | Totals, other: Checked | Totals) -> Totals:
    """Put totals, or members, together."""
    first = total_of(one) if isinstance(one, Checked) else one
    second = total_of(other) if isinstance(other, Checked) else other
    names = {digest: list(names) for digest, names in first.names.items()}
    for digest, more in second.names.items():
        names.setdefault(digest, []).extend(more)
    return Totals(first.members + second.members, first.size + second.size, names)


def archives_below(root: str, largest_mb: int = LARGEST_MB) -> list[Archive]:
    """Archives below a directory, in order of their paths.

    Raises:
        NotADirectoryError: there is no such directory.
    """
    directory = Path(root)
    if not directory.is_dir():
        raise NotADirectoryError(f"{root} is no directory: give one that holds archives")
    files = (path for path in directory.rglob("*") if is_archive(path.name) and path.is_file())
    return [Archive(str(path), largest_mb=largest_mb) for path in sorted(files)]


def sample_below(directory: Path) -> None:
    """Put together what there is to scan without being given anything.

    The wheels that Python brings for pip, in a zip within a tar, and beside that.
    """
    wheels = sorted(Path(ensurepip.__file__).parent.rglob("*.whl"))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as as_zip:
        for wheel in wheels:
            as_zip.write(wheel, f"wheels/{wheel.name}")
            (directory / wheel.name).write_bytes(wheel.read_bytes())
    with tarfile.open(directory / "nested.tar.gz", "w:gz") as as_tar:
        info = tarfile.TarInfo("inner.zip")
        info.size = len(inner.getvalue())
        as_tar.addfile(info, io.BytesIO(inner.getvalue()))


@flow(name="archive-scan", task_runner=local_cluster(2, threads=2, processes=True))
def archive_scan(
    root: str | None = None,
    largest_mb: Annotated[int, Field(ge=1)] = LARGEST_MB,
    options: EvolveOptions = OPTIONS,
) -> State[Totals]:
    """Check every member of every archive, archives within archives too.

    Args:
        root: directory below which archives are scanned. Empty: the wheels that this Python
            brings, and a sample of archives within archives made of them.
        largest_mb: a member that comes to more is a failure, in MB.
        options: how the work is driven, bounded and recorded.

    Returns:
        A completed state that holds the `Totals`.

    Raises:
        NotADirectoryError: there is no such root; nothing was started.
        EvolveFailed: more failed than `options.on_failure` accepts.
    """
    with tempfile.TemporaryDirectory(prefix="archive-scan-") as made:
        if root is None:
            sample_below(Path(made))
        archives = archives_below(root or made, largest_mb)
        outcome = evolve(
            archives,
            members_of,
            check,
            options=options,
            label=_label,
            collect=summary_of,
            reduce=added,
        )
    found = outcome.reduced
    totals = found if isinstance(found, Totals) else total_of(found) if found else Totals()
    create_table_artifact(
        key="archive-scan",
        table=[
            {"archive": as_it_is(shown(archive.name)), "members": one.members, "bytes": one.size}
            for archive, one in outcome.collected
        ]
        or [{"archive": "none", "members": 0, "bytes": 0}],
    )
    failed = f", {len(outcome.failures)} failed" if outcome.failures else ""
    for failure in outcome.failures[:10]:
        console().print(shown(str(failure)), markup=False)
    text = (
        f"{totals.members:,} members in {len(archives):,} archives, {totals.size / 1e6:,.1f} MB, "
        f"{len(totals.duplicates):,} with copies{failed}"
    )
    return Completed(message=text, data=totals)


def _label(value: Archive | Member) -> str:
    return Path(value.name).name


def main() -> int:
    """Scan a directory from the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.archive_scan", description=__doc__)
    parser.add_argument("root", nargs="?", help="a directory; Python's own wheels if left out")
    parser.add_argument("--largest-mb", type=positive, default=LARGEST_MB)
    given = parser.parse_args()
    limit_console_logs()
    try:
        state = cast(State[Totals], archive_scan(given.root, given.largest_mb, return_state=True))
        totals = state.result()
    except (EvolveFailed, NotADirectoryError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    console().print(state.message, markup=False)
    for names in totals.duplicates[:10]:
        console().print(f"  {len(names)} copies: {shown(', '.join(names[:3]))}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
