import os
from pathlib import Path

import pytest

from hnm.errors import EvidenceError
from hnm.evidence.test_ledger import LedgerEntry, Looks, enter, looks, read_ledger


def entry(state: str) -> LedgerEntry:
    return LedgerEntry(state * 64, "1" * 64, "c0ffee", "false", "evaluate")


def test_entries_stay_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "test_ledger.csv"
    assert read_ledger(path) == []
    for state in ("b", "a", "b"):
        enter(path, entry(state))
    assert path.read_text() == "state,params,commit,dirty,by\n" + "".join(
        f"{state * 64},{'1' * 64},c0ffee,false,evaluate\n" for state in "bab"
    )
    assert read_ledger(path) == [entry("b"), entry("a"), entry("b")]


def test_looks_count_times_and_states() -> None:
    entries = [entry(state) for state in ("b", "a", "b", "c")]
    assert looks(entries) == Looks(4, 3)
    assert looks(entries, other_than="b" * 64) == Looks(2, 2)
    assert looks([]) == Looks(0, 0)


HEADER = "state,params,commit,dirty,by\n"
LINE = f"{'b' * 64},{'1' * 64},c0ffee,false,evaluate\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("state,commit\n", r"is no ledger of test openings \(columns \['state', 'commit'\]\)"),
        (HEADER + LINE.replace("evaluate", "evaluate,6"), "row 2: has more cells than the header"),
        (HEADER + "a,b\n" + LINE, "row 2: has fewer cells than the header"),
        (HEADER + LINE + "bbbb,1,,,\n", "row 3: 'bbbb,1,,,' is no opening of the test labels"),
        (HEADER + LINE.replace("c0ffee", "c0\0ffee"), "line 2 holds a null character"),
        (HEADER + LINE + '"open\n', "line 3: unexpected end of data; a quote may be open"),
        (HEADER + LINE + LINE[:-1], "its last line is torn"),
        (HEADER + LINE + LINE[:70], "its last line is torn"),
        (HEADER[:-3], "its last line is torn"),
    ],
)
def test_a_damaged_ledger_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "test_ledger.csv"
    path.write_text(content)
    with pytest.raises(
        EvidenceError, match=rf"{message}.*restore it by git checkout test_ledger\.csv"
    ):
        read_ledger(path)


@pytest.mark.parametrize("end", [-1, 70])
def test_no_line_goes_on_behind_a_torn_one(tmp_path: Path, end: int) -> None:
    path = tmp_path / "test_ledger.csv"
    path.write_text(HEADER + LINE[:end])
    with pytest.raises(
        EvidenceError, match=r"its last line is torn; restore it by git checkout test_ledger\.csv"
    ):
        enter(path, entry("a"))
    assert path.read_text() == HEADER + LINE[:end]


def test_a_ledger_that_is_no_file_or_no_utf8(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(EvidenceError, match="is no regular file; restore it"):
            read_ledger(path)
        with pytest.raises(EvidenceError, match="is no regular file; restore it"):
            enter(path, entry("a"))
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"\xe9\n")
    with pytest.raises(EvidenceError, match=r"is not CSV in UTF-8: 'utf-8' codec.*restore it"):
        read_ledger(tmp_path / "latin.csv")
