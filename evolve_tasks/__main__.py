"""The command line: `python -m evolve_tasks journal list|show NAME|forget NAME`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.results import ResultStore, resolve_result_storage
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evolve_tasks.errors import EvolveError
from evolve_tasks.journal.administration import (
    JournalInfo,
    forget_journal,
    journal_info,
    journal_sources,
    list_journals,
)
from evolve_tasks.naming import one_line

_BLOCK = re.compile(r"[a-z0-9-]+/[a-z0-9-]+")
_SHOWN = 50  # sources of a journal: a screen
_WIDTH = 120  # characters of a name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: words after the program's name; `None`: those of this process.

    Returns:
        0 if it was done, 1 if it was refused; the reason is on the error output.

    Example:
        >>> import tempfile
        >>> main(["journal", "list", "--storage", tempfile.mkdtemp()])
        no journals in this storage
        0
    """
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        store = _store(chosen.storage)
        match chosen.command:
            case "list":
                _list(list_journals(store))
            case "show":
                _show(chosen.name, store)
            case _:
                forget_journal(chosen.name, store)
                _say(f"forgot journal {chosen.name}")
    except (EvolveError, OSError, ValueError) as error:
        Console(stderr=True, soft_wrap=True).print(
            _plain(f"{type(error).__name__}: {error}", 2_000)
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evolve_tasks", description="Evolving workflows on Prefect and Dask."
    )
    topics = parser.add_subparsers(required=True, metavar="journal")
    topic = topics.add_parser("journal", help="what runs have finished, and resume from")
    commands = topic.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--storage",
        help="where the flow's results are: a directory, an address such as s3://bucket/folder, "
        "or a block such as remote-file-system/results (default: Prefect's default)",
    )
    commands.add_parser("list", parents=[common], help="all journals with what they hold")
    for name, told in (("show", "one journal and its sources"), ("forget", "remove a journal")):
        command = commands.add_parser(name, parents=[common], help=told)
        command.add_argument("name", metavar="NAME", help="the journal's name")
    return parser


def _store(storage: str | None) -> ResultStore | None:
    if storage is None:
        return None
    if "://" in storage:
        return ResultStore(result_storage=RemoteFileSystem(basepath=storage))
    if _BLOCK.fullmatch(storage) and not Path(storage).is_dir():
        return ResultStore(result_storage=cast(Any, resolve_result_storage)(storage, _sync=True))
    if not Path(storage).is_dir():
        raise NotADirectoryError(f"{storage!r} is no directory, no address and no block")
    return ResultStore(result_storage=LocalFileSystem(basepath=storage))


def _list(journals: Sequence[JournalInfo]) -> None:
    if not journals:
        _say("no journals in this storage")
        return
    table = Table("name", "sources", "gone", "items", "bytes", "last run", "claimed by")
    for column in table.columns[1:5]:
        column.justify = "right"
    for info in journals:
        table.add_row(
            _name(info),
            f"{info.sources:,}",
            f"{info.gone:,}",
            f"{info.items:,}",
            f"{info.size_bytes:,}",
            _time(info.last_run),
            _plain(info.claimed_by or ""),
        )
    Console().print(table)


def _show(name: str, store: ResultStore | None) -> None:
    info = journal_info(name, store)
    told: dict[str, str | Text] = {
        "name": _name(info),
        "folder": _plain(info.folder),
        "sources": f"{info.sources:,} ({info.gone:,} more vanished)",
        "items": f"{info.items:,}",
        "size": f"{info.size_bytes:,} bytes in {info.segments:,} segments",
        "last run": _plain(f"{_time(info.last_run)} {info.last_holder}"),
        "claimed by": _plain(info.claimed_by or "nobody"),
        "damaged": _plain("; ".join(info.damaged) or "nothing", 1_000),
    }
    about = Table(show_header=False)
    for row in told.items():
        about.add_row(*row)
    console = Console()
    console.print(about)
    sources = journal_sources(name, store)
    table = Table("source", "items", "done", "")
    for source in sources[:_SHOWN]:
        size = "?" if source.size is None else f"{source.size:,}"
        table.add_row(_plain(source.label), size, f"{source.done:,}", "gone" if source.gone else "")
    if sources:
        console.print(table)
    if len(sources) > _SHOWN:
        _say(f"and {len(sources) - _SHOWN:,} more")


def _name(info: JournalInfo) -> Text:
    return _plain(f"? ({info.folder})" if info.name is None else info.name)


def _plain(text: str, width: int = _WIDTH) -> Text:
    """Text of others: one line, without control characters or rich's markup."""
    return Text(one_line(text, width).encode(errors="replace").decode())


def _time(moment: datetime | None) -> str:
    return "unknown" if moment is None else moment.isoformat(sep=" ", timespec="seconds")


def _say(text: str) -> None:
    Console(soft_wrap=True).print(_plain(text))


if __name__ == "__main__":
    sys.exit(main())
