"""Ray in an environment of its own, and a process there that runs what it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.cluster import END_S, end
from benchmarks.sizes import Shape

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv"  # git ignores every .venv
CONSTRAINTS = HERE / "peers-constraints.txt"


class RayEnded(Exception):
    """The process that runs Ray gave no answer, or one that says what is wrong."""


class Ray:
    """A process that runs Ray's ways, one after another.

    Args:
        started: the process.
        log: what it wrote, for errors.
    """

    def __init__(self, started: subprocess.Popen[str], log: Path) -> None:
        self._started = started
        self._log = log

    def seconds(self, way: str, shape: Shape) -> float:
        """Run a way on trivial items; the process checks the results.

        Raises:
            RayEnded: it failed; the error has what Ray said.
        """
        assert self._started.stdin is not None
        assert self._started.stdout is not None
        question = {"way": way, "sources": shape.sources, "items": shape.items}
        self._started.stdin.write(json.dumps(question) + "\n")
        self._started.stdin.flush()
        line = self._started.stdout.readline()
        said = json.loads(line) if line else {"error": self._log.read_text()[-4_000:]}
        if "error" in said:
            raise RayEnded(said["error"])
        return float(said["seconds"])


def python_with_ray() -> Path:
    """The interpreter of the environment, which is made on first use and when versions change."""
    ready = ENVIRONMENT / ".ready"
    versions = CONSTRAINTS.read_text()
    python = ENVIRONMENT / "bin" / "python"
    if not ready.exists() or ready.read_text() != versions:
        print("Making an environment with Ray, about a minute", flush=True)
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([str(python), *install, "-c", str(CONSTRAINTS), "ray"], check=True)
        ready.write_text(versions)
    return python


def ray_version() -> str:
    """The version that is pinned."""
    lines = CONSTRAINTS.read_text().splitlines()
    return next(line.removeprefix("ray==") for line in lines if line.startswith("ray=="))


@contextmanager
def ray_process(home: Path) -> Iterator[Ray]:
    """Start Ray, with all its files in `home`, and end it by its id."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "ray.log"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Ray keeps a token for its processes in the home directory: it goes with everything else.
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_HOME": str(home), "HOME": str(home)}
    with log.open("w") as written:
        started = subprocess.Popen(
            [str(python_with_ray()), str(HERE / "ray_ways.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=written,
            env=environment,
            text=True,
        )
    try:
        yield Ray(started, log)
    finally:
        assert started.stdin is not None
        started.stdin.close()  # Ray ends its own processes when there are no more questions
        with suppress(subprocess.TimeoutExpired):
            started.wait(END_S)
        end(started)
