"""What was measured, kept as JSON, and made into RESULTS.md and results.svg."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.plot import svg
from benchmarks.table import Run, markdown

HERE = Path(__file__).resolve().parent
_RUNS: TypeAdapter[list[Run]] = TypeAdapter(list[Run])


def keep(run: Run, place: Path = HERE) -> None:
    """Put a run in the place of the one of the same command, and write all three files anew."""
    stored = place / "results.json"
    runs = _RUNS.validate_json(stored.read_bytes()) if stored.exists() else []
    program = run.command.split(" --")[0]
    others = [one for one in runs if one.command.split(" --")[0] != program]
    runs = sorted([*others, run], key=lambda one: one.command)
    place.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(_RUNS.dump_json(runs, indent=1) + b"\n")
    (place / "RESULTS.md").write_text(markdown(runs), encoding="utf-8")
    (place / "results.svg").write_text(svg(runs), encoding="utf-8")
