"""The pure parts of the flows: what is found, how it is measured, what the tables say."""

import ast
import io
import json
import os
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import dask
import pytest
from radon.complexity import cc_visit
from radon.metrics import mi_visit
from rich.console import Console

from evolve_tasks import Counts, Failure, Outcome
from flows import audit_changes, code_audit, evolving_files
from flows.auditing import (
    LONG_STATEMENT,
    FunctionSource,
    SourceFile,
    checked_root,
    excluded_directories,
    functions_of,
    measures,
    python_files,
    read_source,
    standard_library,
)
from flows.command_line import existing_cluster, refuse_empty_address, shown
from flows.evolving_files import File, StrategyRun, compared


def names(root: Path, exclude: frozenset[str] = frozenset()) -> list[str]:
    return [file.name for file in python_files(str(root), exclude)]


def walked(source: str | bytes) -> list[tuple[int, str, int | None]]:
    return sorted(
        (node.lineno, node.name, node.end_lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def found(source: str) -> list[tuple[int, str, int | None]]:
    return [
        (function.line, function.name, function.end_line) for function in functions_of(source, "f")
    ]


class TestDiscovery:
    def test_gives_sorted_names_of_python_files_only(self, tmp_path: Path) -> None:
        for name in ("b.py", "a/z.py", "a.py", "a-b/c.py", "a/b/c.py", "a.txt", "c.PY", ".h/i.py"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        expected = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py"))
        assert names(tmp_path) == expected
        assert len(expected) == 6

    def test_is_lazy(self, tmp_path: Path) -> None:
        (tmp_path / "a.py").touch()
        (tmp_path / "b").mkdir()
        files = python_files(str(tmp_path))
        assert next(files).name == "a.py"
        (tmp_path / "b" / "late.py").touch()
        assert next(files).name == "b/late.py"

    def test_directory_named_like_a_file_is_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "x.py").mkdir()
        (tmp_path / "x.py" / "y.py").touch()
        assert names(tmp_path) == ["x.py/y.py"]

    def test_links_to_directories_are_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "f.py").touch()
        (tmp_path / "a" / "up").symlink_to(tmp_path)
        (tmp_path / "d.py").symlink_to(tmp_path / "a")
        (tmp_path / "file.py").symlink_to(tmp_path / "a" / "f.py")
        (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
        (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
        assert names(tmp_path) == ["a/f.py", "file.py", "gone.py", "loop.py"]

    def test_excluded_directories_are_left_out_wherever_they_are(self, tmp_path: Path) -> None:
        for name in ("tests/a.py", "b/tests/c.py", "b/tests.py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert names(tmp_path, frozenset({"tests"})) == ["b/tests.py"]

    def test_unreadable_directory_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "closed").mkdir()
        (tmp_path / "open.py").touch()
        scandir = os.scandir

        def refusing(path: str):
            if path.endswith("closed") or path.endswith("closed/"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        told: list[tuple[str, OSError]] = []
        files = list(
            python_files(
                str(tmp_path), on_unreadable=lambda name, error: told.append((name, error))
            )
        )
        assert [file.name for file in files] == ["open.py"]
        assert [name for name, _ in told] == ["closed"]

    def test_deep_directories(self, tmp_path: Path) -> None:
        deep = tmp_path.joinpath(*["d"] * 400)
        deep.mkdir(parents=True)
        (deep / "f.py").touch()
        assert names(tmp_path) == ["d/" * 400 + "f.py"]

    def test_path_of_a_file(self) -> None:
        assert SourceFile("/r", "a/b.py").path == os.path.join("/r", "a", "b.py")

    def test_standard_library_without_tests_and_installed_packages(self) -> None:
        excluded = excluded_directories(None, False, None)
        assert {"test", "tests", "site-packages"} <= excluded
        assert "test" not in excluded_directories(None, True, None)
        assert "site-packages" in excluded_directories(None, True, None)

    def test_of_a_root_that_was_named_nothing_is_left_out(self) -> None:
        assert excluded_directories("/x", False, None) == frozenset()
        assert excluded_directories("/x", False, ["old"]) == frozenset({"old"})

    @pytest.mark.parametrize("root", ["", "nowhere", __file__])
    def test_wrong_root_is_named(self, root: str) -> None:
        with pytest.raises(NotADirectoryError, match="root"):
            checked_root(root)

    def test_default_root_is_the_standard_library(self) -> None:
        assert checked_root(None) == standard_library()
        assert (Path(standard_library()) / "ast.py").is_file()


SOURCE = textwrap.dedent(
    '''
    import functools

    @functools.cache
    @staticmethod
    def decorated(a, b=lambda: 0): return a

    class Outer:
        class Inner:
            async def method(self):
                def nested():
                    async def deeper(): yield
                return [lambda x: x for _ in ()]
        if True:
            def conditional(self): """One
    line less indented"""

    try:
        def tried(): pass
    except ValueError:
        def caught(): pass
    else:
        def other(): pass
    finally:
        def last(): pass

    match 1:
        case 1:
            def matched(): pass
        case _:
            for x in ():
                def looped(): pass
            else:
                while 0:
                    with a as b:
                        def within(): pass

    anonymous = lambda: None
    def twice(): pass
    def twice(): pass
    '''
)


class TestFunctions:
    def test_every_def_of_a_module(self) -> None:
        assert found(SOURCE) == walked(SOURCE)
        assert len(found(SOURCE)) == 14

    def test_qualified_names_are_those_of_python(self) -> None:
        qualified = {function.qualified_name for function in functions_of(SOURCE, "f")}
        assert "Outer.Inner.method.<locals>.nested.<locals>.deeper" in qualified
        assert {"decorated", "Outer.conditional", "caught"} <= qualified

    def test_line_of_a_decorated_function_is_that_of_its_def(self) -> None:
        decorated = functions_of(SOURCE, "f")[0]
        assert (decorated.name, decorated.line) == ("decorated", 6)
        assert decorated.source.startswith("def decorated(")

    @pytest.mark.parametrize(
        "source", ["", "\n\n", "# only this", "x = lambda: 0", "class A: pass"]
    )
    def test_files_without_functions(self, source: str) -> None:
        assert functions_of(source, "f") == []

    @pytest.mark.parametrize(
        "source",
        [
            "def f():\n\x0c    return 1\n",
            "if 1:\n\x0c    def f():\n        return 1\n",
            "if 1:\n    \\\n  def f():\n        return 1\n",
            "def f():\n    return 1 \\\n\n",
            "# back\\\ndef f(): pass",
            "x = 'a\x1cb\u2028c'\ndef f(): return '\x85'\n",
            "if 1:\n\tdef f():\n\t\treturn 1\n",
            "def f(): pass; x = 1",
            "async def f():\n    async with a: await b\n    async for c in d: pass",
            "def f():\n  def g():\n    x = '''\nless'''\n    return x\n  return g",
            "def f(): return f'{(lambda: 1)()}'",
            "def f(*, a: (yield) = 0): pass" if sys.version_info < (3, 8) else "def f(a, /): pass",
            "class A:\n    def f(self):  # comment\\\n        ...\n",
        ],
    )
    def test_odd_layout_is_found_and_measured(self, source: str) -> None:
        assert found(source) == walked(source)
        for function in functions_of(source, "f"):
            assert measures(function)["complexity"] >= 1

    def test_deep_expression_is_measured(self) -> None:
        source = "def f():\n    return " + " + ".join(["x"] * 900) + "\n"
        assert found(source) == walked(source)
        (function,) = functions_of(source, "f")
        limit = sys.getrecursionlimit()
        assert measures(function)["complexity"] == 1
        assert sys.getrecursionlimit() == limit

    def test_deep_nesting_of_functions(self) -> None:
        lines = [" " * depth + f"def f{depth}():" for depth in range(95)]
        source = "\n".join([*lines, " " * 95 + "pass"])
        assert found(source) == walked(source)
        assert all(measures(function) for function in functions_of(source, "f"))

    def test_depth_of_the_caller_does_not_matter(self) -> None:
        source = "def f(): return " + "-" * 900 + "x"

        def below(depth: int) -> list[tuple[int, str, int | None]]:
            return found(source) if depth == 0 else below(depth - 1)

        assert below(sys.getrecursionlimit() - 300) == walked(source)

    def test_too_deep_for_python_fails(self) -> None:
        with pytest.raises((RecursionError, MemoryError, SyntaxError)):
            functions_of("x = " + "-" * 100_000 + "1", "f")

    @pytest.mark.parametrize("source", ["def f(:", "x = 1\0", "def f():\nreturn 1", "print 1"])
    def test_what_is_not_python_fails(self, source: str) -> None:
        with pytest.raises((SyntaxError, ValueError)):
            functions_of(source, "f")

    def test_agrees_with_the_standard_library(self) -> None:
        for name in ("ast.py", "typing.py", "enum.py", "encodings/__init__.py"):
            path = Path(standard_library()) / name
            assert found(read_source(str(path))) == walked(path.read_bytes())


class TestReading:
    def test_declared_encoding(self, tmp_path: Path) -> None:
        path = tmp_path / "latin.py"
        path.write_bytes("# coding: latin-1\ndef é(): return 'ü'\n".encode("latin-1"))
        assert found(read_source(str(path))) == [(2, "é", 2)]

    def test_byte_order_mark_and_line_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "dos.py"
        path.write_bytes("\ufeffx = 1\r\ndef f():\r\n    pass\r\n".encode())
        assert found(read_source(str(path))) == walked(path.read_bytes()) == [(2, "f", 3)]
        path.write_bytes(b"x = 1\rdef f():\r    pass\r")
        assert found(read_source(str(path))) == walked(path.read_bytes())

    @pytest.mark.parametrize(
        "content",
        [b"x = '\xff'\n", b"# coding: nonsense\n", b"# coding: hex\n", b"\n\n\n\n'\xe9'\n"],
    )
    def test_undecodable_file_fails(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "bad.py"
        path.write_bytes(content)
        with pytest.raises((SyntaxError, ValueError, LookupError)):
            read_source(str(path))

    def test_pipe_fails_and_does_not_wait(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe.py"
        os.mkfifo(path)
        with pytest.raises(OSError, match="regular file"):
            read_source(str(path))


BRANCHES = '''
def branches(a, b):
    """Doc."""
    # comment
    if a and b:
        for x in a:
            x += 1
    return [y for y in b if y]
'''


class TestMeasures:
    def test_are_those_of_radon(self) -> None:
        (function,) = functions_of(BRANCHES, "f.py")
        measured = measures(function)
        assert measured["complexity"] == cc_visit(BRANCHES)[0].complexity == 6
        assert measured["rank"] == "B"
        assert measured["maintainability"] == pytest.approx(mi_visit(function.source, multi=True))
        assert (measured["lines"], measured["comments"]) == (7, 1)
        assert {"file", "name", "qualified_name", "line", "end_line"} <= measured.keys()
        assert "source" not in measured
        assert json.loads(json.dumps(measured)) == measured

    def test_method_measures_like_a_function(self) -> None:
        method = "class A:\n" + textwrap.indent(BRANCHES.strip(), "    ")
        (one,), (other,) = functions_of(BRANCHES, "f"), functions_of(method, "f")
        for name in ("complexity", "volume", "maintainability", "lines", "source_lines"):
            assert measures(one)[name] == measures(other)[name]

    def test_nested_function_is_not_counted_twice(self) -> None:
        outer, inner = functions_of("def f():\n    def g():\n        if 1: pass\n", "f")
        assert (measures(outer)["complexity"], measures(inner)["complexity"]) == (1, 2)

    def test_long_statement_is_counted_in_one_pass(self) -> None:
        rows = "".join(f"        {number}: 'x',\n" for number in range(20 * LONG_STATEMENT))
        (function,) = functions_of(f"def f():\n    # comment\n\n    return {{\n{rows}    }}\n", "f")
        measured = measures(function)
        assert measured["lines"] == 20 * LONG_STATEMENT + 5
        assert measured["comments"] == 1

    def test_threads_do_not_cut_each_other_short(self) -> None:
        deep = "def f():\n    return " + " + ".join(["x"] * 900) + "\n"
        (function,) = functions_of(deep, "f")
        errors: list[BaseException] = []

        def measure() -> None:
            try:
                for _ in range(5):
                    measures(function)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=measure) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


def outcome_of(*files: tuple[str, list[int]], failures: list[Failure] | None = None) -> Outcome:
    failures = failures or []
    by_source = []
    for name, complexities in files:
        source = SourceFile("/r", name)
        functions = [
            measures(FunctionSource(name, f"f{line}", f"f{line}", line, line, "def f(): pass\n"))
            | {"complexity": complexity}
            for line, complexity in enumerate(complexities, 1)
        ]
        by_source.append((source, functions))
    results = [function for _, functions in by_source for function in functions]
    failed_sources = sum(len(failure.index) == 1 for failure in failures)
    failed_items = len(failures) - failed_sources
    return Outcome(
        results=results,
        by_source=by_source,
        failures=failures,
        counts=Counts(
            sources=len(files),
            sources_failed=failed_sources,
            discovered=len(results) + failed_items,
            done=len(results),
            failed=failed_items,
        ),
        strategy="sequential",
        reason="",
        duration_s=0.0,
    )


def failure_of(name: str, *index: int, message: str = "bad") -> Failure:
    return Failure("parse", SourceFile("/r", name), index, "item", "SyntaxError", message)


class TestAudit:
    def test_counts_and_packages(self) -> None:
        outcome = outcome_of(
            ("a.py", [1, 2]),
            ("p/b.py", [10]),
            ("p/bad.py", []),
            ("p/q/c.py", [7, 3]),
            failures=[failure_of("p/bad.py", 2)],
        )
        audit = code_audit.audit_of(outcome, [{"file": "closed", "error": "PermissionError"}])
        assert audit.counts == {
            "files": 3,
            "files_failed": 1,
            "directories_failed": 1,
            "functions": 5,
            "functions_failed": 0,
        }
        assert [row["file"] for row in audit.failures] == ["closed", "p/bad.py"]
        assert [(row["package"], row["files"], row["failures"]) for row in audit.packages] == [
            ("p", 2, 1),
            (".", 1, 0),
        ]
        assert audit.packages[0]["complexity"] == 20
        assert audit.packages[0]["worst"] == 10
        assert str(audit) == "5 functions in 3 files audited, 2 failures"
        assert list(audit.as_json()) == ["functions", "failures", "counts"]

    def test_what_was_resumed_counts_as_what_was_measured_now(self) -> None:
        outcome = outcome_of(("a.py", [5, 9]))
        resumed = replace(outcome.counts, done=0, resumed=2)
        audit = code_audit.audit_of(replace(outcome, counts=resumed))
        assert str(audit) == "2 functions in 1 files audited"
        assert audit.counts["functions_failed"] == 0
        assert not audit.nothing_succeeded

    def test_worst_first_and_ties_in_order_of_place(self) -> None:
        audit = code_audit.audit_of(outcome_of(("b.py", [5, 9, 5]), ("a.py", [5])))
        places = [row["place"] for row in code_audit.worst_rows(audit, 3)]
        assert places == ["b.py:2", "a.py:1", "b.py:1"]

    @pytest.mark.parametrize(
        ("outcome", "nothing"),
        [
            (outcome_of(), False),
            (outcome_of(("a.py", [])), False),
            (outcome_of(("a.py", []), failures=[failure_of("a.py", 0)]), True),
            (outcome_of(("a.py", []), ("b.py", []), failures=[failure_of("a.py", 0)]), False),
            (outcome_of(("a.py", []), failures=[failure_of("a.py", 0, 0)]), True),
            (outcome_of(("a.py", [1]), failures=[failure_of("a.py", 0, 1)]), False),
        ],
    )
    def test_a_run_in_which_everything_failed_is_told_apart(
        self, outcome: Outcome, nothing: bool
    ) -> None:
        audit = code_audit.audit_of(outcome)
        assert audit.nothing_succeeded is nothing
        if nothing:
            assert "a.py: SyntaxError: bad" in str(code_audit.NothingAudited(audit))

    def test_tables_show_names_of_any_bytes(self) -> None:
        name = os.fsdecode(b"\xff[bold].py")
        audit = code_audit.audit_of(
            outcome_of(
                (name, [3]), failures=[failure_of(name, 0, 1, message="first [red]\nsecond")]
            )
        )
        text = io.StringIO()
        code_audit.show(audit, 5, Console(file=text, width=120))
        shown_text = text.getvalue()
        shown_text.encode()
        assert "[bold].py:1" in shown_text
        assert "first [red]" in shown_text
        assert "second" not in shown_text

    def test_long_tables_are_cut_and_say_so(self) -> None:
        files = [(f"p{number}/a.py", [1]) for number in range(30)]
        failures = [failure_of(f"p{number}/a.py", number, 1) for number in range(30)]
        text = io.StringIO()
        audit = code_audit.audit_of(outcome_of(*files, failures=failures))
        code_audit.show(audit, 4, Console(file=text, width=120))
        assert "and 26 more packages" in text.getvalue()
        assert "and 10 more failures" in text.getvalue()

    def test_empty_audit_has_tables_too(self) -> None:
        text = io.StringIO()
        code_audit.show(code_audit.audit_of(outcome_of()), 5, Console(file=text, width=120))
        assert "0 functions in 0 files audited" in text.getvalue()


class TestExistingCluster:
    def test_the_one_that_dasks_setting_names(self) -> None:
        with dask.config.set({"scheduler-address": "tcp://10.0.0.1:8786"}):
            runner = existing_cluster()
            refuse_empty_address()
        assert runner is not None
        assert runner.address == "tcp://10.0.0.1:8786"

    def test_none_where_nothing_is_set(self) -> None:
        with dask.config.set({"scheduler-address": None}):
            assert existing_cluster() is None
            refuse_empty_address()

    def test_a_deployment_without_its_address_says_what_is_missing(self) -> None:
        with dask.config.set({"scheduler-address": ""}):
            assert existing_cluster() is None  # the flow file has to be imported all the same
            for run in (code_audit.code_audit.fn, audit_changes.audit_changes.fn):
                with pytest.raises(ValueError, match="DASK_SCHEDULER_ADDRESS is empty: set it"):
                    run()


class TestCommandLines:
    @pytest.mark.parametrize("main", [code_audit.main, evolving_files.main])
    def test_help(self, main, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert ended.value.code == 0
        assert "--strategy" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("main", "arguments", "words"),
        [
            (code_audit.main, ["--root", "nowhere"], "'nowhere' does not exist"),
            (code_audit.main, ["--strategy", "quick"], "as_completed"),
            (code_audit.main, ["--batch", "0"], "whole number from 1"),
            (code_audit.main, ["--json", "no/such/place.json"], "does not exist; make it first"),
            (code_audit.main, ["--json", "."], "is a directory"),
            (evolving_files.main, ["--strategy", "quick"], "nested"),
            (evolving_files.main, ["--files", "-1"], "whole number from 1"),
            (evolving_files.main, ["--scale", "nan"], "number from 0"),
        ],
    )
    def test_wrong_input_ends_before_work_starts(
        self, main, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert words in capsys.readouterr().err.replace("\n", " ")

    def test_shown_can_always_be_written(self) -> None:
        assert shown(os.fsdecode(b"a\xff")) == "a\\udcff"


class TestEvolvingFiles:
    def test_same_work_for_the_same_seed(self) -> None:
        file = File("file.3.txt", seed=1, scale=0)
        items = evolving_files.parse_file.fn(file)
        assert items == evolving_files.parse_file.fn(File("file.3.txt", seed=1, scale=0))
        assert 1 <= len(items) <= evolving_files.MOST_ITEMS
        assert [evolving_files.process_item.fn(item) for item in items] == [
            item.x + 1 for item in items
        ]

    def test_numbers_do_not_depend_on_the_process(self) -> None:
        # Random(text) hashes with SHA-512; hash(text) would differ in each process.
        assert File("file.0.txt").chance(1).random() == pytest.approx(0.9893881399931047)

    def test_other_seed_other_work(self) -> None:
        def all_items(seed: int) -> list[list[float]]:
            files = [File(f"file.{number}.txt", seed, 0) for number in range(10)]
            return [[item.x for item in evolving_files.parse_file.fn(file)] for file in files]

        assert all_items(0) != all_items(1)
        assert len({len(items) for items in all_items(0)}) > 1

    def test_speed_up_is_over_sequential(self) -> None:
        runs = compared(
            [StrategyRun("sequential", 8.0, 1.0, [1.0]), StrategyRun("nested", 2.0, 0.5, [1.0])]
        )
        assert [run.speed_up for run in runs] == [1.0, 4.0]
        assert not any(run.error for run in runs)
        assert runs[1].row()["speed-up"] == "4.0"

    def test_strategies_that_disagree_are_told(self) -> None:
        runs = compared(
            [StrategyRun("sequential", 1.0, 1.0, [1.0]), StrategyRun("async", 1.0, 1.0, [2.0])]
        )
        assert runs[1].error == "its results differ from those of sequential"
        assert "async: its results differ" in str(evolving_files.ExampleFailed(runs))

    def test_failed_strategy_is_no_yardstick(self) -> None:
        runs = compared(
            [
                StrategyRun("sequential", 1.0, None, [], error="broke"),
                StrategyRun("async", 1.0, 1.0, [2.0]),
            ]
        )
        assert [run.error for run in runs] == ["broke", ""]
        assert runs[1].speed_up is None

    def test_table(self) -> None:
        text = io.StringIO()
        runs = compared([StrategyRun("sequential", 8.0, 1.0, [1.0, 2.0])])
        evolving_files.show(runs, Console(file=text, width=120))
        assert "first result after" in text.getvalue()
        assert "remark" not in text.getvalue()
