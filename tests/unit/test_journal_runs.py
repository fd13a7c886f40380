"""A journal over several runs: what is known, what is done again, what damage costs."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.filesystems import LocalFileSystem, NullFileSystem, RemoteFileSystem
from prefect.results import ResultStore
from prefect.serializers import CompressedPickleSerializer, JSONSerializer, PickleSerializer

from evolve_tasks.errors import InvalidInput, JournalBusy, JournalLost
from evolve_tasks.journal import Journal, Known, token_below
from evolve_tasks.journal.records import decode, encode
from evolve_tasks.journal.segments import MANY, Segments
from evolve_tasks.journal.storage import Files, LocalFiles, folder_name, journals_root

CODE = ("fp", "parse", "process")


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ResultStore]:
    if request.param == "local":
        yield local(tmp_path)
    else:
        yield ResultStore(
            result_storage=RemoteFileSystem(basepath=f"memory://{tmp_path.name}/deep/results")
        )
        system = fsspec.filesystem("memory")
        if system.exists(f"/{tmp_path.name}"):
            system.rm(f"/{tmp_path.name}", recursive=True)


def local(path: Path, **more: Any) -> ResultStore:
    return ResultStore(result_storage=LocalFileSystem(basepath=str(path)), **more)


def opened(store: ResultStore, name: str = "ingest") -> Journal:
    return Journal.open(name, store, holder="run")


def files_of(store: ResultStore, name: str = "ingest") -> Files:
    return journals_root(store).folder(folder_name(name))


def segments_of(store: ResultStore) -> list[str]:
    return sorted(name for name in files_of(store).names() if name.endswith(".seg"))


def write(
    journal: Journal, source: str, results: list[Any], start: int = 0, size: int | None = None
) -> None:
    whole = start + len(results) if size is None else size
    journal.note_listed(source, 0, f"{source}.txt", "fp", "parse", whole, "items")
    journal.note_done(source, 0, "fp", "process", "items", start, results)


def known(journal: Journal, source: str, *code: str, items: str | None = None) -> Known | None:
    fingerprint, parse, process = code or CODE
    return journal.known(source, 0, fingerprint, parse, process, items_token=items)


def results(journal: Journal, source: str) -> dict[int, Any]:
    found = known(journal, source)
    if found is None:
        return {}
    read: dict[int, Any] = {}
    end = 0
    for start, stop, values in journal.values(found):
        assert end <= start < stop
        assert stop - start == len(values)
        read.update(zip(range(start, stop), values, strict=True))
        end = stop
    return read


# -- what is known -------------------------------------------------------------------------------


def test_a_later_run_finds_what_was_finished(store: ResultStore) -> None:
    with opened(store) as journal:
        assert known(journal, "a") is None
        journal.note_listed("a", 0, "a.txt", "fp", "parse", 10, "items")
        journal.note_done("a", 0, "fp", "process", "items", 6, ["six", "seven"])
        journal.note_done("a", 0, "fp", "process", "items", 0, [0, {"one": 1}])
        journal.note_done("a", 0, "fp", "process", "items", 2, [(2,)])
    with opened(store) as journal:
        found = known(journal, "a")
        assert found is not None
        assert (found.size, found.items_token, found.listed) == (10, "items", True)
        assert found.ranges == ((0, 3), (6, 8))
        assert (found.done, found.complete) == (5, False)
        assert list(journal.values(found)) == [
            (0, 3, [0, {"one": 1}, (2,)]),
            (6, 8, ["six", "seven"]),
        ]
        journal.note_done("a", 0, "fp", "process", "items", 3, [3, 4, 5])
        journal.note_done("a", 0, "fp", "process", "items", 8, [8, 9])
        journal.flush()
        found = known(journal, "a")
        assert found is not None
        assert found.complete
        assert list(results(journal, "a")) == list(range(10))
        assert journal.damaged == []


def test_a_source_without_items_is_complete(store: ResultStore) -> None:
    with opened(store) as journal:
        write(journal, "a", [])
        journal.flush()
        found = known(journal, "a")
        assert found is not None
        assert found.complete
        assert list(journal.values(found)) == []


def test_equal_sources_are_told_apart_by_occurrence(store: ResultStore) -> None:
    with opened(store) as journal:
        for occurrence in (0, 1):
            journal.note_listed("a", occurrence, "a", "fp", "parse", 1, "items")
            journal.note_done("a", occurrence, "fp", "process", "items", 0, [occurrence])
        journal.flush()
        found = journal.known("a", 1, *CODE)
        assert found is not None
        assert list(journal.values(found)) == [(0, 1, [1])]


def test_what_depends_on_a_change_is_invalid_and_nothing_else(store: ResultStore) -> None:
    with opened(store) as journal:
        write(journal, "a", [1, 2])
    with opened(store) as journal:
        # Another process code: the size is known, the results are not.
        found = known(journal, "a", "fp", "parse", "process 2")
        assert found is not None
        assert (found.size, found.ranges, found.complete) == (2, (), False)
        # Another parse code: nothing before it ran; with the same items the results hold.
        assert known(journal, "a", "fp", "parse 2", "process") is None
        found = known(journal, "a", "fp", "parse 2", "process", items="items")
        assert found is not None
        assert (found.ranges, found.listed, found.differs) == (((0, 2),), False, False)
        assert known(journal, "a", "fp", "parse 2", "process", items="others") is None
        # Another fingerprint: nothing holds, even if the items look the same.
        assert known(journal, "a", "fp 2", "parse", "process") is None
        assert known(journal, "a", "fp 2", "parse", "process", items="items") is None
        # The same code gave other items: said, and nothing of the old ones is used.
        found = known(journal, "a", items="others")
        assert found is not None
        assert (found.differs, found.ranges, found.listed) == (True, (), False)
        found = known(journal, "a", items="unsure-others")
        assert found is None
        # What can't be recognised is never resumed.
        assert journal.known(None, 0, *CODE) is None
        assert journal.known("a", 0, None, "parse", "process") is None


def test_a_changed_source_replaces_what_was_known_of_it(store: ResultStore) -> None:
    with opened(store) as journal:
        write(journal, "a", [1, 2])
        journal.flush()
        journal.note_listed("a", 0, "a.txt", "fp 2", "parse", 1, "items 2")
        journal.note_done("a", 0, "fp 2", "process", "items 2", 0, ["new"])
    with opened(store) as journal:
        assert known(journal, "a") is None
        found = known(journal, "a", "fp 2", "parse", "process")
        assert found is not None
        assert list(journal.values(found)) == [(0, 1, ["new"])]


def test_portions_of_neighbours_become_one_record(store: ResultStore) -> None:
    with opened(store) as journal:
        for start in reversed(range(0, 1_000, 2)):
            write(journal, "a", [start, start + 1], start, 1_000)
    (segment,) = segments_of(store)
    assert files_of(store).names()[segment] < 200_000
    with opened(store) as journal:
        found = known(journal, "a")
        assert found is not None
        assert len(list(journal.values(found))) == 1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.booleans()), max_size=12))
def test_portions_in_any_order_and_overlap_are_read_once(
    portions: list[tuple[int, int, bool]],
) -> None:
    storage = RemoteFileSystem(basepath=f"memory://{uuid.uuid4().hex}")
    store = ResultStore(result_storage=storage)
    with opened(store) as journal:
        for start, length, flush in portions:
            values = list(range(start, start + length))
            journal.note_done("a", 0, "fp", "process", "items", start, values)
            if flush:
                journal.flush()
    with opened(store) as journal:
        journal.note_listed("a", 0, "a", "fp", "parse", 25, "items")
        journal.flush()
        wanted = {n for start, length, _ in portions for n in range(start, start + length)}
        assert results(journal, "a") == {n: n for n in sorted(wanted) if n < 25}
        found = known(journal, "a")
        assert found is not None
        assert found.done == sum(n < 25 for n in wanted)


# -- sources that vanish -------------------------------------------------------------------------


def test_a_vanished_source_is_reported_once(store: ResultStore) -> None:
    with opened(store) as journal:
        write(journal, "a", [1])
        write(journal, "b", [2])
        assert journal.vanished() == []
    with opened(store) as journal:
        known(journal, "a")
        assert journal.vanished() == ["b.txt"]
        # The flow is killed before it could say so: nothing is flushed, the next one says it.
        journal._records.clear()
    for expected in (["b.txt"], []):
        with opened(store) as journal:
            known(journal, "a")
            assert journal.vanished() == expected
    with opened(store) as journal:
        assert results(journal, "b") == {0: 2}  # it came back
        known(journal, "a")
        assert journal.vanished() == []
    with opened(store) as journal:
        known(journal, "a")
        assert journal.vanished() == ["b.txt"]


def test_a_source_that_came_is_not_missed_though_nobody_knows_whether_it_changed(
    store: ResultStore,
) -> None:
    with opened(store) as journal:
        write(journal, "a", [1])
    with opened(store) as journal:
        assert journal.known("a", 0, None, "parse", "process") is None
        assert journal.vanished() == []
    with opened(store) as journal:
        assert journal.vanished() == ["a.txt"]
    with opened(store) as journal:
        assert journal.known("a", 0, None, "parse", "process") is None  # it came back
    with opened(store) as journal:
        assert not journal._segments.index.sources["a", 0].is_gone
        assert results(journal, "a") == {0: 1}


def test_of_equal_sources_none_is_missed_while_there_is_one(store: ResultStore) -> None:
    with opened(store) as journal:
        for occurrence in range(3):
            journal.note_listed("a", occurrence, "a.txt", "fp", "parse", 1, "items")
            journal.note_done("a", occurrence, "fp", "process", "items", 0, [occurrence])
    with opened(store) as journal:
        known(journal, "a")
        assert journal.vanished() == []
    for expected in (["a.txt"], []):
        with opened(store) as journal:
            assert journal.vanished() == expected
    with opened(store) as journal:
        found = journal.known("a", 2, *CODE)
        assert found is not None
        assert list(journal.values(found)) == [(0, 1, [2])]


def write_below(journal: Journal, root: str, result: Any) -> str:
    below = token_below(root, [0])
    journal.known(root, 0, *CODE)
    journal.note_given(root, 0, f"{root}.txt", "fp")
    journal.note_listed(below, 0, f"{root}.txt 0", "fp", "parse", 1, "items")
    journal.note_done(below, 0, "fp", "process", "items", 0, [result])
    return below


def test_what_lies_below_a_source_vanishes_with_it_and_not_before(store: ResultStore) -> None:
    with opened(store) as journal:
        a, b = write_below(journal, "a", 1), write_below(journal, "b", 2)
        journal.note_done(token_below("", "key"), 0, "fp", "process", "unique", 0, [3])
        assert journal.vanished() == []
    # The list itself could not be read tonight.
    with opened(store) as journal:
        known(journal, "a")
        journal.note_given("a", 0, "a.txt", "fp")
        assert journal.vanished() == ["b.txt"]
    with opened(store) as journal:
        assert journal.vanished() == ["a.txt"]
    with opened(store) as journal:
        assert journal.vanished() == []
        known(journal, "a")  # it came back, again without its list
    with opened(store) as journal:
        assert results(journal, a) == {0: 1}
        segments, index = journal._segments, journal._segments.index
        # Of what is gone nothing is kept, however many compactions that takes.
        for _ in range(3):
            index.forget_gone(set(segments._sizes))
            segments._write_anew(set(segments._sizes))
    with opened(store) as journal:
        assert results(journal, a) == {0: 1}
        kept = set(journal._segments.index.sources)
        assert kept == {("a", 0), (a, 0), (token_below("", "key"), 0)}
        assert (b, 0) not in kept


def test_that_a_source_is_gone_outlives_all_that_lay_below_it(store: ResultStore) -> None:
    with opened(store) as journal:
        write_below(journal, "a", 1)
        journal.flush()
        (first,) = segments_of(store)
    for expected in (["a.txt"], []):
        with opened(store) as journal:
            assert journal.vanished() == expected
    gone = set(segments_of(store)) - {first}
    with opened(store) as journal:
        for _ in range(2):
            journal._segments.index.forget_gone(gone)
            journal._segments._write_anew(gone)
            gone = set(segments_of(store)) - {first}
    with opened(store) as journal:
        assert journal._segments.index.sources["a", 0].is_gone
        assert journal.vanished() == []


ALL = [f"s{number}" for number in range(20)]
HALF = ALL[:10]
LARGE = 150_000  # bytes of a result: ten of them are worth a compaction


def night(store: ResultStore, sources: list[str], said: list[str], *, ends: bool = True) -> int:
    """Work on sources, each in a segment of its own; give how many were known in whole."""
    resumed = 0
    with opened(store) as journal:
        for source in sources:
            if results(journal, source):
                resumed += 1
                continue
            write(journal, source, [bytes(LARGE)])
            journal.flush()
        if ends:
            assert journal.vanished() == [f"{source}.txt" for source in said]
        assert journal.damaged == []
    return resumed


GONE = sorted(set(ALL) - set(HALF))


def test_a_source_that_one_run_has_missed_has_lost_nothing(store: ResultStore) -> None:
    assert night(store, ALL, []) == 0
    assert night(store, HALF, GONE) == 10
    assert night(store, ALL, []) == 20
    # Missed again later, and so not twice one after the other.
    assert night(store, HALF, GONE) == 10
    # A run that ends before it has seen all of them does not count.
    for _ in range(3):
        assert night(store, HALF[:3], [], ends=False) == 3
    assert night(store, ALL, []) == 20


def test_a_source_that_two_runs_have_missed_is_forgotten(store: ResultStore) -> None:
    assert night(store, ALL, []) == 0
    for said in (GONE, []):
        assert night(store, HALF, said) == 10
    before = sum(files_of(store).names().values())
    assert before > 20 * LARGE
    assert night(store, HALF, []) == 10
    assert sum(files_of(store).names().values()) < 0.6 * before
    assert night(store, ALL, []) == 10
    assert night(store, ALL, []) == 20


def test_that_a_source_is_missed_is_said_and_noted_once_by_a_run(store: ResultStore) -> None:
    with opened(store) as journal:
        write(journal, "a", [1])
    with opened(store) as journal:
        assert journal.vanished() == ["a.txt"]
        journal.flush()
        assert journal.vanished() == []
    with opened(store) as journal:
        entry = journal._segments.index.sources["a", 0]
        assert (entry.is_gone, entry.is_given_up) == (True, False)
        assert journal.vanished() == []
    with opened(store) as journal:
        assert journal._segments.index.sources["a", 0].is_given_up
        count = len(segments_of(store))
        assert journal.vanished() == []
        journal.flush()
        assert len(segments_of(store)) == count, "it was noted a third time"
        assert results(journal, "a") == {0: 1}  # nothing was cleaned yet
    with opened(store) as journal:
        assert not journal._segments.index.sources["a", 0].is_gone


# -- storage -------------------------------------------------------------------------------------

NAMES = [
    "../x", "../../etc/passwd", "a/b", "a\\b", "x" * 5_000, "a\nb", "a\0b", ".", "..", "~", "C:\\x",
    "\ud800", "ünï", "a b", "A B", "a-b", "CON", "-rf", "%2e%2e/", "journal.json",
]  # fmt: skip


def test_any_name_is_one_safe_folder(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in NAMES:
        with opened(local(base), name) as journal:
            write(journal, "a", [name])
    for name in NAMES:
        with opened(local(base), name) as journal:
            assert results(journal, "a") == {0: name}
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert [path.name for path in base.iterdir()] == ["evolve-journals"]
    folders = [path.name for path in (base / "evolve-journals").iterdir()]
    assert len(folders) == len(NAMES)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in folders)
    assert max(map(len, folders)) <= 64


@pytest.mark.parametrize("name", ["", " ", "\n", None, 7])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InvalidInput, match="give a text such as 'ingest'"):
        opened(local(tmp_path), name)


def test_a_storage_that_cannot_list_is_refused() -> None:
    class Sealed(NullFileSystem):
        pass

    store = ResultStore.model_construct(result_storage=Sealed())
    with pytest.raises(
        InvalidInput, match=r"a Sealed.*Use a LocalFileSystem or a RemoteFileSystem"
    ):
        opened(store)


def test_a_remote_block_of_local_files_is_as_durable_as_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ResultStore(result_storage=RemoteFileSystem(basepath="local://results/deep"))
    assert isinstance(journals_root(store), LocalFiles)
    with opened(store) as journal:
        write(journal, "a", [1])
    with opened(local(tmp_path / "results" / "deep")) as journal:
        assert results(journal, "a") == {0: 1}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b'{"name": "ingest"}'])
def test_what_is_said_of_the_journal_may_be_damaged(tmp_path: Path, content: bytes) -> None:
    store = local(tmp_path)
    with opened(store) as journal:
        write(journal, "a", [1])
    files_of(store).write("journal.json", content)
    with opened(store) as journal:
        assert results(journal, "a") == {0: 1}


def test_a_later_format_and_a_foreign_name_are_refused(tmp_path: Path) -> None:
    store = local(tmp_path)
    for content, said in ((b'{"format": 2}', "format"), (b'{"name": "other"}', "belongs to")):
        files_of(store).write("journal.json", content)
        with pytest.raises(InvalidInput, match=said), opened(store):
            pass
    assert list(files_of(store).names()) == ["journal.json"]


# -- serializers ---------------------------------------------------------------------------------


def test_each_result_is_read_by_the_serializer_that_wrote_it(tmp_path: Path) -> None:
    serializers: list[Any] = [PickleSerializer(), JSONSerializer(), CompressedPickleSerializer()]
    for number, serializer in enumerate(serializers):
        with opened(local(tmp_path, serializer=serializer)) as journal:
            write(journal, str(number), [number, [number]])
    for serializer in serializers:
        with opened(local(tmp_path, serializer=serializer)) as journal:
            for number in range(3):
                assert results(journal, str(number)) == {0: number, 1: [number]}


def test_a_result_that_the_serializer_refuses_costs_itself_alone(tmp_path: Path) -> None:
    refused = lambda: 1  # noqa: E731
    store = local(tmp_path, serializer=JSONSerializer(object_encoder=None))
    with opened(store) as journal:
        write(journal, "a", [0, 1, refused, 3, 4, 5])
        journal.flush()
        assert len(journal.unsaved) == 1
        assert "result 2" in journal.unsaved[0]
    with opened(store) as journal:
        assert results(journal, "a") == {0: 0, 1: 1, 3: 3, 4: 4, 5: 5}


class Vanishing:
    """A class that a later version of the code no longer has."""


def test_a_result_that_cannot_be_read_any_more_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = local(tmp_path, serializer=PickleSerializer(picklelib="pickle"))
    with opened(store) as journal:
        write(journal, "a", [Vanishing()], 0, 2)
        journal.flush()
        write(journal, "a", [1], 1, 2)
    monkeypatch.delitem(globals(), "Vanishing")
    with opened(store) as journal:
        assert results(journal, "a") == {1: 1}
        assert "can't be read (AttributeError" in journal.damaged[0]
        found = known(journal, "a")
        assert found is not None
        assert found.ranges == ((1, 2),)
        # Not done again: whoever can read it may still have it.
    with opened(store) as journal:
        assert results(journal, "a") == {1: 1}
        assert journal.damaged
        journal.note_done("a", 0, "fp", "process", "items", 0, ["again"])
    for _ in range(2):
        with opened(store) as journal:
            assert results(journal, "a") == {0: "again", 1: 1}
            assert journal.damaged == []


def test_what_cannot_be_read_stays_for_who_can_unless_it_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = local(tmp_path, serializer=PickleSerializer(picklelib="pickle"))
    with opened(store) as journal:
        write(journal, "a", [Vanishing(), Vanishing()])
        write(journal, "b", [Vanishing()])
        write(journal, "c", [3])
    with monkeypatch.context() as without:
        without.delitem(globals(), "Vanishing")
        with opened(store) as journal:
            assert results(journal, "a") == results(journal, "b") == {}
            journal.note_done("a", 0, "fp", "process", "items", 1, ["again"])
    with opened(store) as journal:
        assert results(journal, "a") == {1: "again"}
        assert isinstance(results(journal, "b")[0], Vanishing)
        assert results(journal, "c") == {0: 3}
        assert journal.damaged == []


def test_a_segment_that_somebody_removed_is_borne(tmp_path: Path) -> None:
    store = local(tmp_path)
    with opened(store) as journal:
        write(journal, "a", [1])
    with opened(store) as journal:
        (segment,) = segments_of(store)
        files_of(store).remove(segment)
        assert results(journal, "a") == {}
        write(journal, "a", ["again"])
    with opened(store) as journal:
        assert results(journal, "a") == {0: "again"}
        assert journal.damaged == []


# -- damage --------------------------------------------------------------------------------------


def test_any_damage_is_noticed_and_costs_only_what_it_hit(tmp_path: Path) -> None:
    store = local(tmp_path)
    with opened(store) as journal:
        for source in "abc":
            write(journal, source, [source] * 5)
            journal.flush()
    first, second, third = segments_of(store)
    files = files_of(store)
    whole = files.read(second)
    border = len(encode(decode(whole)[0][0]))  # a cut there leaves one whole record
    for at in {*range(0, len(whole), 7)} - {border}:
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
            files.write(second, damaged)
            segments = Segments(files, "reader")
            segments.load()
            # Read as a run would, without the compaction that would mend it.
            journal = opened(store)
            journal._segments = segments
            assert results(journal, "a") == dict.fromkeys(range(5), "a")
            assert results(journal, "c") == dict.fromkeys(range(5), "c")
            assert results(journal, "b") in ({}, dict.fromkeys(range(5), "b"))
            assert journal.damaged
    files.write(second, whole[: len(whole) // 2])
    with opened(store) as journal:
        assert "cut off" in journal.damaged[0]
        assert "are done again" in journal.damaged[0] or "is done again" in journal.damaged[0]
        assert second not in segments_of(store)
        write(journal, "b", ["again"] * 5)
    with opened(store) as journal:
        assert journal.damaged == []
        for source, value in {"a": "a", "b": "again", "c": "c"}.items():
            assert results(journal, source) == dict.fromkeys(range(5), value)
    assert first in segments_of(store)
    assert third in segments_of(store)


def test_results_under_another_name_are_not_taken(tmp_path: Path) -> None:
    """Segments that were swapped are whole, and say something else than the index remembers."""
    store = local(tmp_path)
    with opened(store) as journal:
        write(journal, "a", ["a"])
        journal.flush()
        write(journal, "b", ["b"])
        journal.flush()
        first, second = segments_of(store)
        files = files_of(store)
        one, two = files.read(first), files.read(second)
        files.write(first, two)
        files.write(second, one)
        assert results(journal, "a") == {}
        assert results(journal, "b") == {}
        assert len(journal.damaged) == 2


def test_a_storage_that_refuses_a_write_loses_nothing(tmp_path: Path) -> None:
    store = local(tmp_path)
    with opened(store) as journal:
        write(journal, "a", [1, 2])
        files: Any = journal._segments._files
        real = files.write

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        files.write = full
        with pytest.raises(OSError, match="No space"):
            journal.flush()
        files.write = real
        journal.flush()
        assert results(journal, "a") == {0: 1, 1: 2}


# -- many segments -------------------------------------------------------------------------------


def test_a_long_run_leaves_few_segments(store: ResultStore) -> None:
    with opened(store) as journal:
        for start in range(300):
            write(journal, "a", [start], start, 300)
            journal.flush()
            assert len(segments_of(store)) <= MANY + 1
        assert results(journal, "a") == {n: n for n in range(300)}
    with opened(store) as journal:
        assert results(journal, "a") == {n: n for n in range(300)}


def test_what_is_of_no_use_any_more_is_removed(tmp_path: Path) -> None:
    store = local(tmp_path)
    for version in range(8):
        with opened(store) as journal:
            for source in "abc":
                known(journal, source)
                journal.note_listed(source, 0, source, f"fp {version}", "parse", 1, "items")
                journal.note_done(
                    source, 0, f"fp {version}", "process", "items", 0, [bytes(300_000)]
                )
            known(journal, "stays")
            if not version:
                write(journal, "stays", ["stays"])
                write(journal, "goes", ["goes" * 1_000])
            journal.vanished()
    sizes = files_of(store).names()
    assert sum(sizes.values()) < 6_000_000  # of 9.6 MB that were written
    with opened(store) as journal:
        assert results(journal, "stays") == {0: "stays"}
        assert journal.vanished() == ["a", "b", "c"]
        assert ("goes", 0) not in journal._segments.index.sources


class Cut(Exception):
    """The process ended here."""


@pytest.mark.parametrize("damage", [False, True])
def test_a_compaction_may_be_cut_off_after_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    monkeypatch.setattr("evolve_tasks.journal.segments.MANY", 4)
    monkeypatch.setattr("evolve_tasks.journal.segments.JOINED", 900)
    steps = 0
    while True:
        store = local(tmp_path / str(steps))
        for number in range(4):
            with opened(store) as journal:
                write(journal, f"s{number}", [number, number])
                known(journal, "a")
                journal.note_done("a", 0, "fp", "process", "items", number, [number])
                if number == 0:
                    write(journal, "gone", [1])
                if number in (1, 2):
                    for other in ("s0", "s1", "a"):
                        known(journal, other)
                    assert journal.vanished() == (["gone.txt"] if number == 1 else [])
        files: Any = files_of(store)
        if damage:
            files.write("000000000099-x.seg", b"EVJ\x01 torn")
        files.write("000000000098-x.seg", files.read(segments_of(store)[0]))  # there twice
        segments = Segments(files, "compacting")
        segments.load()
        remaining = steps

        def step(real: Any) -> Any:
            def counted(*arguments: Any, **keywords: Any) -> None:
                nonlocal remaining
                if remaining == 0:
                    raise Cut
                remaining -= 1
                real(*arguments, **keywords)

            return counted

        files.write = step(files.write)
        files.remove = step(files.remove)
        try:
            segments.compact()
            cut = False
        except Cut:
            cut = True
        with opened(store) as journal:
            for number in range(4):
                assert results(journal, f"s{number}") == {0: number, 1: number}
            journal.note_listed("a", 0, "a", "fp", "parse", 4, "items")
            journal.flush()
            assert results(journal, "a") == {n: n for n in range(4)}
            assert journal.vanished() == []
        if not cut:
            break
        steps += 1
    assert steps > 6


# -- several runs --------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_breaks_nothing(store: ResultStore) -> None:
    with opened(store) as journal:
        with pytest.raises(JournalBusy, match="held by run"), opened(store):
            pass
        with opened(store, "another"):
            pass
        write(journal, "a", [1])
    with opened(store) as journal:
        assert results(journal, "a") == {0: 1}


def write_after_a_takeover(store: ResultStore) -> None:
    with opened(store) as journal:
        (claim,) = (name for name in files_of(store).names() if name.startswith("claim-"))
        files_of(store).remove(claim)
        journal._lock.beat()
        write(journal, "a", [1])
        journal.flush()


def test_who_lost_the_journal_writes_nothing_more(store: ResultStore) -> None:
    with pytest.raises(JournalLost, match="its claim was removed"):
        write_after_a_takeover(store)
    assert segments_of(store) == []


def fail_after_a_note(store: ResultStore) -> None:
    with opened(store) as journal:
        write(journal, "a", [1])
        raise RuntimeError("the flow failed")


def test_a_run_that_fails_leaves_what_it_noted(store: ResultStore) -> None:
    with pytest.raises(RuntimeError, match="the flow failed"):
        fail_after_a_note(store)
    with opened(store) as journal:
        assert results(journal, "a") == {0: 1}


WRITER = """
import sys
from pathlib import Path
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from evolve_tasks.journal import Journal

store = ResultStore(result_storage=LocalFileSystem(basepath=sys.argv[1]))
with Journal.open("ingest", store, holder="doomed") as journal:
    journal.note_listed("a", 0, "a", "fp", "parse", 1_000_000, "items")
    for start in range(0, 1_000_000, 100):
        journal.note_done("a", 0, "fp", "process", "items", start, list(range(start, start + 100)))
        journal.flush()
        print(start + 100, flush=True)
"""


def test_after_kill_9_in_the_middle_of_writing_everything_that_was_reported_is_there(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        reported = 0
        for line in process.stdout:
            reported = int(line)
            if reported >= 9_000:  # it has joined its segments once, and is at it again
                process.kill()
                break
        rest = process.stdout.read().split()
        reported = max([reported, *map(int, rest[:-1])])
    store = local(tmp_path)
    (tmp_path / "evolve-journals" / folder_name("ingest") / "9-x.seg.0.part").write_text("torn")
    with opened(store) as journal:
        assert journal.damaged == []
        found = results(journal, "a")
        assert found == {n: n for n in range(len(found))}
        assert len(found) >= reported
    assert not list(tmp_path.rglob("*.part"))
