from pathlib import Path

import pytest

from hnm.errors import EvidenceError
from hnm.evidence.openings import Looks, Opening, enter_opening, looks, read_openings


def opening(state: str) -> Opening:
    return Opening(state, "p1", "c0ffee", "false", "evaluate")


def test_openings_stay_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "test_ledger.csv"
    assert read_openings(path) == []
    for state in ("b", "a", "b"):
        enter_opening(path, opening(state))
    assert path.read_text() == "state,params,commit,dirty,by\n" + "".join(f"{state},p1,c0ffee,false,evaluate\n" for state in "bab")
    assert read_openings(path) == [opening("b"), opening("a"), opening("b")]


def test_looks_count_openings_and_states() -> None:
    openings = [opening(state) for state in ("b", "a", "b", "c")]
    assert looks(openings) == Looks(4, 3)
    assert looks(openings, other_than="b") == Looks(2, 2)
    assert looks([]) == Looks(0, 0)


@pytest.mark.parametrize(
    ("content", "message"), [("state,commit\n", "is no ledger"), ("state,params,commit,dirty,by\n1,2,3,4,5,6\n", "row 2: has too many cells")]
)
def test_a_damaged_ledger_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "test_ledger.csv"
    path.write_text(content)
    with pytest.raises(EvidenceError, match=rf"{message}.*restore it by git checkout test_ledger\.csv"):
        read_openings(path)
