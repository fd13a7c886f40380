"""The two commands have the same options, and both end what they started."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from benchmarks.sizes import FULL, QUICK, SMOKE, Sizes

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for.

    Args:
        command: the command with its options, as the table names it.
        sizes: how much is measured.
        only: names of sections; `None` for all of them.
        into: where results are written; `None` for nowhere.
    """

    command: str
    sizes: Sizes
    only: list[str] | None
    into: Path | None


def wanted(program: str, summary: str, names: Sequence[str]) -> Wanted:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=program, description=summary)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a smaller version, about ten minutes")
    size.add_argument(
        "--smoke", action="store_true", help="seconds: shows that it runs, measures nothing"
    )
    parser.add_argument("--seeds", type=int, help="works in the skewed section")
    parser.add_argument("--repeats", type=int, help="times that both sides of a ratio run")
    parser.add_argument(
        "--only", nargs="+", choices=names, help="these sections, printed and not written"
    )
    parser.add_argument("--into", type=Path, help=f"where to write; {HERE.name}/ if not given")
    given = parser.parse_args()
    sizes = SMOKE if given.smoke else QUICK if given.quick else FULL
    for name in ("seeds", "repeats"):
        if (number := getattr(given, name)) is not None:
            if number < 1:
                parser.error(f"--{name} {number}: give a number from 1")
            sizes = replace(sizes, **{name: number})
    # A table is of one whole run: a part of it, or one that measures nothing, replaces none.
    partly = given.only is not None or given.smoke
    into = given.into or (None if partly else HERE)
    options = [text for text in sys.argv[1:] if given.into is None or text != str(given.into)]
    command = " ".join([program, *(text for text in options if text != "--into")])
    return Wanted(command, sizes, given.only, into)


def home() -> tempfile.TemporaryDirectory[str]:
    """A directory that is gone afterwards, also if a server still writes into it."""
    return tempfile.TemporaryDirectory(prefix="evolve-bench-", ignore_cleanup_errors=True)


def leave_in_order() -> None:
    """Let a signal that ends us end what we have started, too."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
