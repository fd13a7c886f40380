"""What an owner of journals sees and does, as functions and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.results import ResultStore

from evolve_tasks.__main__ import main
from evolve_tasks.errors import InvalidInput, JournalBusy
from evolve_tasks.journal import (
    Journal,
    forget_journal,
    journal_info,
    journal_sources,
    list_journals,
    token_below,
)

EVIL = "\x1b[31mred\x1b[0m [bold]x[/bold]\nforged line\u202e"


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(result_storage=LocalFileSystem(basepath=str(tmp_path)))


def fill(store: ResultStore, name: str, *, label: str = "a.txt", vanish: bool = False) -> None:
    with Journal.open(name, store, holder="flow run brave-lion") as journal:
        for source in ("a", "b"):
            journal.note_listed(source, 0, label, "fp", "parse", 5, "items")
            journal.note_done(source, 0, "fp", "process", "items", 1, [1, 2])
    if vanish:
        with Journal.open(name, store, holder="flow run brave-lion") as journal:
            journal.known("a", 0, "fp", "parse", "process")
            journal.vanished()


def test_journals_are_listed_with_what_they_hold(store: ResultStore) -> None:
    assert list_journals(store) == []
    fill(store, "nightly")
    fill(store, "hourly", vanish=True)
    hourly, nightly = list_journals(store)
    assert (hourly.name, hourly.sources, hourly.gone, hourly.items) == ("hourly", 1, 1, 4)
    assert (nightly.name, nightly.sources, nightly.gone, nightly.items) == ("nightly", 2, 0, 4)
    assert nightly.size_bytes > 500
    assert nightly.last_holder == "flow run brave-lion"
    assert nightly.claimed_by is None
    assert nightly.last_run is not None
    assert datetime.now(UTC) - nightly.last_run < timedelta(minutes=5)
    assert journal_info("nightly", store) == nightly
    assert [source.done for source in journal_sources("nightly", store)] == [2, 2]


def test_what_lies_below_a_source_is_counted_with_it(store: ResultStore) -> None:
    with Journal.open("deep", store, holder="flow run brave-lion") as journal:
        journal.note_given("a", 0, "a.txt", "fp")
        for number in range(3):
            below = token_below("a", [number])
            journal.note_listed(below, 0, f"a.txt {number}", "fp", "parse", 5, "items")
            journal.note_done(below, 0, "fp", "process", "items", 1, [1, 2])
        # An item that is known by itself, and a source that is shorter now than it was.
        journal.note_done(token_below("", "key"), 0, "fp", "process", "unique", 0, [1])
        journal.note_done("b", 0, "fp", "process", "items", 0, [1, 2, 3])
        journal.note_listed("b", 0, "b.txt", "fp", "parse", 2, "items")
        journal.note_done("c", 0, "fp", "process", "items", 0, [1, 2, 3])
        journal.note_listed("c", 0, "c.txt", "fp", "parse", 2, "other items")
    told = [(one.label, one.size, one.done) for one in journal_sources("deep", store)]
    assert told == [("a.txt", 15, 6), ("b.txt", 2, 2), ("c.txt", 2, 0)]
    info = journal_info("deep", store)
    assert (info.sources, info.gone, info.items) == (3, 0, 9)
    with Journal.open("deep", store, holder="flow run brave-lion") as journal:
        journal.known("b", 0, "fp", "parse", "process")
        assert journal.vanished() == ["a.txt", "c.txt"]
    info = journal_info("deep", store)
    assert (info.sources, info.gone) == (1, 2)


def test_a_journal_is_forgotten_and_no_other(store: ResultStore, tmp_path: Path) -> None:
    fill(store, "nightly")
    fill(store, "hourly")
    forget_journal("nightly", store)
    assert [info.name for info in list_journals(store)] == ["hourly"]
    assert len(list((tmp_path / "evolve-journals").iterdir())) == 1
    for function in (forget_journal, journal_info, journal_sources):
        with pytest.raises(InvalidInput, match="no journal 'nightly'"):
            function("nightly", store)


def test_a_journal_on_a_remote_storage_is_forgotten() -> None:
    store = ResultStore(result_storage=RemoteFileSystem(basepath="memory://administration"))
    fill(store, "nightly")
    assert [info.name for info in list_journals(store)] == ["nightly"]
    forget_journal("nightly", store)
    assert list_journals(store) == []


def test_a_journal_in_use_is_shown_and_not_forgotten(store: ResultStore) -> None:
    with Journal.open("nightly", store, holder="flow run brave-lion"):
        assert "brave-lion" in (journal_info("nightly", store).claimed_by or "")
        with pytest.raises(JournalBusy, match="brave-lion"):
            forget_journal("nightly", store)
    assert len(list_journals(store)) == 1


def test_a_damaged_journal_is_shown_as_it_is(store: ResultStore, tmp_path: Path) -> None:
    fill(store, "nightly")
    (folder,) = (tmp_path / "evolve-journals").iterdir()
    (segment,) = folder.glob("*.seg")
    segment.write_bytes(segment.read_bytes()[:-1])
    assert "cut off" in journal_info("nightly", store).damaged[0]
    (folder / "journal.json").write_text("{")
    (info,) = list_journals(store)
    assert info.name is None
    assert len(info.damaged) == 2
    forget_journal("nightly", store)
    assert list_journals(store) == []


# -- the command line ----------------------------------------------------------------------------

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Said:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["journal", *arguments, "--storage", str(tmp_path)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_commands_list_show_and_forget(store: ResultStore, say: Said) -> None:
    assert say("list") == (0, "no journals in this storage\n", "")
    fill(store, "nightly", vanish=True)
    status, out, _ = say("list")
    assert status == 0
    assert [cell.strip() for cell in out.splitlines()[3].split("│")[1:5]] == [
        "nightly",
        "1",
        "1",
        "4",
    ]
    status, out, _ = say("show", "nightly")
    assert status == 0
    assert "a.txt" in out
    assert "1 (1 more vanished)" in out
    assert "flow run brave-lion" in out
    assert say("forget", "nightly") == (0, "forgot journal nightly\n", "")
    status, out, err = say("forget", "nightly")
    assert (status, out) == (1, "")
    assert "InvalidInput: there is no journal 'nightly'" in err


def test_a_journal_in_use_is_refused_with_its_holder(store: ResultStore, say: Said) -> None:
    with Journal.open("nightly", store, holder="flow run brave-lion"):
        status, _, err = say("forget", "nightly")
    assert status == 1
    assert "held by flow run brave-lion" in err


def test_names_and_labels_of_others_do_no_harm(store: ResultStore, say: Said) -> None:
    fill(store, EVIL, label=EVIL)
    for words in (["list"], ["show", EVIL], ["forget", EVIL], ["forget", EVIL]):
        _, out, err = say(*words)
        said = out + err
        assert "red" in said
        assert "\x1b" not in said
        assert "\u202e" not in said
        assert not any(line.startswith("forged") for line in said.splitlines())
        assert "[bold]x[/bold]" in said


def test_a_storage_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing")
    assert main(["journal", "list", "--storage", missing]) == 1
    assert "is no directory, no address and no block" in capsys.readouterr().err
    assert not (tmp_path / "missing").exists()


def test_an_address_is_a_storage(capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(result_storage=RemoteFileSystem(basepath="memory://commands"))
    fill(store, "nightly")
    assert main(["journal", "list", "--storage", "memory://commands"]) == 0
    assert "nightly" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["journal"], ["journal", "show"], ["other"]])
def test_wrong_words_are_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: python -m evolve_tasks" in capsys.readouterr().err
