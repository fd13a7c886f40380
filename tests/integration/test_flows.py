"""The command lines of the flows, as people call them: real processes, real input."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.servers import prefect_environment

pytestmark = pytest.mark.cluster

PROJECT = Path(__file__).parents[2]
DEADLINE_S = 120


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Prefect home for all: making its database takes longer than a run."""
    return tmp_path_factory.mktemp("prefect")


def call(home: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=PROJECT,
        env=prefect_environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def awkward_tree(root: Path) -> None:
    """Files of every kind that a directory may hold."""
    content: dict[str, bytes] = {
        "empty.py": b"",
        "plain.py": b"@d\ndef a(): pass\nclass B:\n    async def c(self):\n        def e(): pass\n",
        "p/__init__.py": b"x = lambda: 0\n",
        "p/latin.py": "# coding: latin-1\ndef é(): return 'ü'\n".encode("latin-1"),
        "p/dos.py": b"\xef\xbb\xbfdef f():\r\n    return 1 \\\r\n\r\n",
        "p/deep.py": b"def f(): return " + b" + ".join([b"x"] * 900),
        "p/feed.py": b"if 1:\n\x0c    def f():\n        return 1\n",
        "p/many.py": b"".join(b"def f%d(a): return a if a else 0\n" % i for i in range(250)),
        "x.py/inside.py": b"def f(): pass\n",
        os.fsdecode(b"p/odd\xff.py"): b"def f(): pass\n",
        "bad/syntax.py": b"def f(:\n",
        "bad/null.py": b"x = 1\0\n",
        "bad/cookie.py": b"# coding: nonsense\ndef f(): pass\n",
        "bad/bytes.py": b"def f(): return '\xff'\n",
        "bad/too_deep.py": b"x = " + b"-" * 20_000 + b"1\n",
    }
    for name, source in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
    (root / "p" / "again").symlink_to(root)
    (root / "bad" / "gone.py").symlink_to(root / "nowhere")
    (root / "bad" / "loop.py").symlink_to(root / "bad" / "loop.py")
    os.mkfifo(root / "bad" / "pipe.py")


def walked(root: Path) -> tuple[list[tuple[str, int, str]], list[str]]:
    """Functions and unparsable files, found in another way than the flow does."""
    functions: list[tuple[str, int, str]] = []
    failed: list[str] = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if path.suffix != ".py":
                continue
            relative = path.relative_to(root).as_posix()
            try:
                if path.is_fifo():
                    raise OSError("a pipe")
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
                failed.append(relative)
                continue
            functions += [
                (relative, node.lineno, node.name)
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
    return sorted(functions), sorted(failed)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    awkward_tree(root)
    return root


@pytest.mark.parametrize("strategy", ["auto", "sequential"])
def test_audit_finds_exactly_what_ast_walk_finds(
    strategy: str, tree: Path, home: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    ended = call(
        home,
        "flows.code_audit",
        *("--root", str(tree), "--strategy", strategy, "--json", str(report), "--batch", "40"),
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(report.read_text())
    functions, failed = walked(tree)
    listed = [(found["file"], found["line"], found["name"]) for found in told["functions"]]
    assert listed == functions
    assert [failure["file"] for failure in told["failures"]] == failed
    assert len(failed) == 8
    assert all(failure["error"] for failure in told["failures"])
    assert told["counts"] == {
        "files": 10,
        "files_failed": 8,
        "directories_failed": 0,
        "functions": len(functions),
        "functions_failed": 0,
    }
    assert all(found["complexity"] >= 1 for found in told["functions"])
    assert "The most complex functions" in ended.stdout
    assert "bad/syntax.py" in ended.stdout
    # Not a terminal: no progress, no log lines; what failed is in the table.
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert "INFO" not in ended.stderr


def test_audit_in_which_all_failed_does_not_look_fine(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f(:")
    report = tmp_path / "report.json"
    ended = call(
        home,
        "flows.code_audit",
        *("--root", str(tmp_path), "--strategy", "sequential", "--json", str(report)),
    )
    assert ended.returncode == 1
    assert "nothing could be audited" in ended.stderr
    assert "bad.py" in ended.stdout
    assert [failure["file"] for failure in json.loads(report.read_text())["failures"]] == ["bad.py"]


def test_example_with_all_strategies(home: Path) -> None:
    ended = call(home, "flows.evolving_files", "--scale", "0.1", "--seed", "3")
    assert ended.returncode == 0, ended.stderr
    rows = [line.split("│")[1:-1] for line in ended.stdout.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in cells] == ["sequential", "as_completed", "async", "nested"]
    assert len({row[3] for row in cells}) == 1
    assert all(0 < float(row[4]) <= float(row[1]) for row in cells)
    assert "\x1b" not in ended.stdout + ended.stderr
