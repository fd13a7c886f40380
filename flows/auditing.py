"""Find the functions of Python files, and measure how complex each of them is.

The two stages of `flows/code_audit.py` live here and not beside the flow: Dask workers import
them by name, and a flow file that Prefect loads by its path has another name there.
"""

from __future__ import annotations

import ast
import os
import stat
import sys
import sysconfig
import threading
import tokenize
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prefect import task
from radon.complexity import cc_rank
from radon.metrics import halstead_visitor_report, mi_compute
from radon.raw import Module as LineCounts
from radon.raw import analyze
from radon.visitors import ComplexityVisitor, HalsteadVisitor

from evolve_tasks import file_fingerprint

# Directories of the standard library that hold its tests, or what others have installed.
TEST_DIRECTORIES = ("test", "tests")
INSTALLED_DIRECTORIES = ("dist-packages", "site-packages")

# radon's line counter reads a statement again for each of its lines. Up to this many lines
# that costs a tenth of a second at worst.
LONG_STATEMENT = 200

# radon takes three Python frames for each level of a syntax tree; Python's parser gives at
# most 3,000 levels under its default limit.
DEEP_RECURSION = 20_000

# The recursion limit belongs to the process: a thread that is deep when another one lowers it
# again brings down the interpreter. Nothing is lost: this work holds Python's own lock anyway.
_recursing = threading.Lock()


@dataclass(frozen=True, slots=True, repr=False)
class SourceFile:
    """A Python file under a root.

    Args:
        root: the directory that is audited.
        name: the file's path from there, with `/` between its parts.
    """

    root: str
    name: str

    def __repr__(self) -> str:
        """Its name: that is what the UI and failures show of a source."""
        return self.name

    @property
    def path(self) -> str:
        """Where to open it."""
        return os.path.join(self.root, *self.name.split("/"))


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """One function of a file: a `def` or `async def`, wherever it stands.

    Args:
        file: the file's path from the audited root.
        name: the name after `def`.
        qualified_name: the name with its classes and functions, as in `__qualname__`.
        line: line of the `def`, below its decorators.
        end_line: its last line.
        source: these lines as they stand in the file.
    """

    file: str
    name: str
    qualified_name: str
    line: int
    end_line: int
    source: str


def standard_library() -> str:
    """Directory of the standard library of the interpreter that runs this."""
    return sysconfig.get_path("stdlib")


def checked_root(root: str | None) -> str:
    """Make the directory to audit an absolute path.

    Args:
        root: a directory; `None` for the standard library.

    Returns:
        Its absolute path.

    Raises:
        NotADirectoryError: there is no such directory.
    """
    if root is None:
        return standard_library()
    if not os.path.isdir(root):
        wrong = "is not a directory" if os.path.exists(root) else "does not exist"
        raise NotADirectoryError(f"root {root!r} {wrong}: give a directory with Python files")
    return os.path.abspath(root)


def excluded_directories(
    root: str | None, include_tests: bool, exclude: list[str] | None
) -> frozenset[str]:
    """Names of the directories to leave out.

    Args:
        root: as in `checked_root`; of a directory that somebody names, nothing is left out.
        include_tests: whether the standard library is audited with its tests.
        exclude: further names.
    """
    names = set(exclude or ())
    if root is None:
        names.update(INSTALLED_DIRECTORIES)
        names.update(() if include_tests else TEST_DIRECTORIES)
    return frozenset(names)


def python_files(
    root: str,
    exclude: frozenset[str] = frozenset(),
    on_unreadable: Callable[[str, OSError], None] | None = None,
) -> Iterator[SourceFile]:
    """Find the Python files under a directory, one by one, sorted by name.

    Args:
        root: the directory; links to other directories are not followed.
        exclude: names of directories that are left out.
        on_unreadable: told of each directory that cannot be listed.

    Yields:
        N >= 0 files, in the order in which `sorted` puts their names.
    """
    # Names that are still to come, the next one last; a directory's ends with "/", which
    # puts it where the names of its files belong.
    ahead = [""]
    while ahead:
        name = ahead.pop()
        if name and not name.endswith("/"):
            yield SourceFile(root, name)
            continue
        found = []
        try:
            with os.scandir(os.path.join(root, *name.split("/"))) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name not in exclude:
                            found.append(f"{name}{entry.name}/")
                    elif entry.name.endswith(".py") and not _is_directory(entry):
                        found.append(name + entry.name)
        except OSError as error:
            if on_unreadable is not None:
                on_unreadable(name.rstrip("/") or ".", error)
        ahead += sorted(found, reverse=True)


def file_state(file: SourceFile) -> tuple[str, int, int]:
    """What makes a file count as changed: its path, size and time of the last change.

    Args:
        file: the file.

    Raises:
        FileNotFoundError: it is gone.
    """
    return file_fingerprint(file.path)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to a directory; one that leads nowhere is a file that fails."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_source(path: str) -> str:
    r"""Read a Python file in the encoding that it declares.

    Args:
        path: the file.

    Returns:
        Its text, with `\n` at the ends of lines.

    Raises:
        OSError: it cannot be read, or is no file.
        SyntaxError: its encoding is unknown.
        ValueError: it is not written in its encoding.
    """
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{path} is not a regular file")
    with tokenize.open(path) as lines:
        return lines.read()


def functions_of(text: str, file: str) -> list[FunctionSource]:
    """Find every `def` and `async def` of a module: methods and nested ones too.

    Args:
        text: the module's source.
        file: its name, for the result.

    Returns:
        M >= 0 functions, by line.

    Raises:
        SyntaxError: it is not valid Python for this interpreter.
        ValueError: it has null bytes.
        RecursionError: it is nested too deeply for Python.
    """
    with _recursing:
        return _functions_of(text, file)


def _functions_of(text: str, file: str) -> list[FunctionSource]:
    # Python's tokenizer ends lines at "\n" alone; str.splitlines knows ten other ends.
    lines = text.split("\n")
    found: list[FunctionSource] = []
    # A stack, because files may be nested more deeply than Python recurses.
    ahead: list[tuple[ast.AST, str]] = [(_parsed(text), "")]
    while ahead:
        node, prefix = ahead.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                name = prefix + node.name
                found.append(
                    FunctionSource(
                        file=file,
                        name=node.name,
                        qualified_name=name,
                        line=node.lineno,
                        end_line=node.end_lineno or node.lineno,
                        source=_segment(lines, node),
                    )
                )
                prefix = f"{name}.<locals>."
            case ast.ClassDef():
                prefix = f"{prefix}{node.name}."
        # No expression holds a statement, so there are no functions in expressions.
        ahead += [
            (child, prefix)
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, ast.expr)
        ]
    found.sort(key=lambda function: function.line)
    return found


def _parsed(text: str) -> ast.Module:
    try:
        return _tree(text)
    except RecursionError:
        # The frames below us count too. In a thread of its own the answer depends on the
        # file alone.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(_tree, text).result()


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SystemError:
        # CPython counts the recursion of all threads in one place, and takes what another one has
        # added for a mistake of its own ("AST constructor recursion depth mismatch").
        return ast.parse(text)


def _segment(lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The lines of a function, in a form that `_standing_alone` can parse."""
    first = node.lineno - 1
    before = lines[first][: node.col_offset]
    joined = first > 0 and lines[first - 1].endswith("\\")
    if joined or before.strip(" \t"):
        # Its indentation is not what its line begins with: a form feed sets it back, and a
        # backslash takes it from the line before.
        with _deep_recursion():
            return ast.unparse(node) + "\n"
    return "\n".join(lines[first : node.end_lineno]) + "\n"


def measures(function: FunctionSource) -> dict[str, Any]:
    """Measure one function with radon.

    Args:
        function: the function.

    Returns:
        Where it is, and its measures, ready for JSON: `complexity` (cyclomatic, nested
        functions not counted in) and its `rank` from A to F, `maintainability` (0 to 100,
        higher is better), Halstead's `volume`, `difficulty` and `effort`, and its `lines`,
        `source_lines`, `logical_lines` and `comments`.
    """
    with _recursing:
        try:
            found = _measured(function.source)
        except RecursionError:
            with _deep_recursion():
                found = _measured(function.source)
    place = asdict(function)
    del place["source"]
    return place | found


def _measured(source: str) -> dict[str, Any]:
    node = _standing_alone(source)
    complexity = ComplexityVisitor.from_ast(node).functions[0].complexity
    halstead = halstead_visitor_report(HalsteadVisitor.from_ast(node))
    counts = _line_counts(source, node)
    # As radon does for a module: its docstrings count as comments, in percent of the source.
    commented = 100 * (counts.comments + counts.multi) / counts.sloc if counts.sloc else 0
    return {
        "complexity": complexity,
        "rank": cc_rank(complexity),
        "maintainability": mi_compute(halstead.volume, complexity, counts.lloc, commented),
        "volume": halstead.volume,
        "difficulty": halstead.difficulty,
        "effort": halstead.effort,
        "lines": counts.loc,
        "source_lines": counts.sloc,
        "logical_lines": counts.lloc,
        "comments": counts.comments,
    }


def _standing_alone(source: str) -> ast.stmt:
    # The last line of a function may end with a backslash, if an empty one follows.
    source += "\n"
    if not source[0].isspace():
        return _tree(source).body[0]
    block = _tree("if 1:\n" + source).body[0]
    assert isinstance(block, ast.If)
    return block.body[0]


def _line_counts(source: str, node: ast.stmt) -> Any:
    longest = 0
    if source.count("\n") > LONG_STATEMENT:
        longest = max(
            (part.end_lineno or part.lineno) - part.lineno
            for part in ast.walk(node)
            if isinstance(part, ast.stmt) and not hasattr(part, "body")
        )
    if longest > LONG_STATEMENT:
        return _plain_line_counts(source, node)
    try:
        return analyze(source)
    except Exception:
        # It tokenizes line by line, and there are files that it does not get through. Each of
        # its errors means the same: count in another way.
        return _plain_line_counts(source, node)


def _plain_line_counts(source: str, node: ast.stmt) -> Any:
    """Count in one pass; a multi-line string in the middle of code counts as code."""
    lines = [line.strip() for line in source.split("\n")[:-1]]
    comments = sum(line.startswith("#") for line in lines)
    blank = lines.count("")
    return LineCounts(
        loc=len(lines),
        lloc=sum(isinstance(part, ast.stmt) for part in ast.walk(node)),
        sloc=len(lines) - comments - blank,
        comments=comments,
        multi=0,
        blank=blank,
        single_comments=comments,
    )


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """Allow recursion into any tree that Python's parser gives; `_recursing` is held."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEEP_RECURSION))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@task
def parse_functions(file: SourceFile) -> list[FunctionSource]:
    """Expand a file into its functions; a file that is not valid Python fails."""
    return functions_of(read_source(file.path), file.name)


@task
def measure_function(function: FunctionSource) -> dict[str, Any]:
    """Process one function into its measures."""
    return measures(function)
