"""What is known of a slide's file before its pixels are read: what is kept of a URL, and the table
of the quarantine.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from hnm.errors import MachineError, SlideError
from hnm.slides.cohort.cohort import Opening, Stated, cohort, identify, quarantine_frame
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.failures import StorageError
from hnm.slides.reading.remote import Version
from hnm.store import Store
from hnm.tables import QUARANTINE

STATED = Stated("aperio", (0.25, 0.5), None, (130, 100), Box(0, 0, 130, 100), "f")
URL = "https://archive.example.org/a.svs"


@pytest.fixture
def served(monkeypatch):
    """What the server holds: versions, one a question, and what their files state, one a
    reading.
    """
    versions, statements = [], []
    monkeypatch.setattr(cohort, "version_of", lambda url: Version(url, 300, versions.pop(0)))
    monkeypatch.setattr(cohort, "_stated", lambda source: statements.pop(0))
    return versions, statements


def kept_in(store: Store) -> list[Path]:
    return list(store.root.rglob("*.json"))


def test_what_a_url_states_is_kept_under_the_version_that_was_read(tmp_path, served):
    versions, statements = served
    store = Store(tmp_path / "store")
    versions += ["v1", "v2"]
    statements += [STATED]
    with pytest.raises(StorageError, match=r"^a.svs changed while it was read$"):
        identify(Opening("a", URL, None, known=store))
    assert kept_in(store) == []
    versions += ["v2", "v2", "v2"]
    statements += [STATED]
    assert identify(Opening("a", URL, None, known=store)).fingerprint == "f"
    assert identify(Opening("a", URL, None, known=store)).mpp == (0.25, 0.5)
    assert len(kept_in(store)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        '{"vendor": 1}',
        json.dumps({**asdict(STATED), "mpp": [1]}),
        "[" * 50_000,
        "x" * 70_000,
    ],
)
def test_what_was_kept_and_is_damaged_is_read_anew(tmp_path, served, damage):
    versions, statements = served
    store = Store(tmp_path / "store")
    versions += ["v1"] * 4
    statements += [STATED, STATED]
    known = identify(Opening("a", URL, None, known=store))
    (path,) = kept_in(store)
    content = path.read_text()
    path.write_text(damage)
    assert identify(Opening("a", URL, None, known=store)) == known
    assert path.read_text() == content


def test_a_mask_is_digested_as_it_is_read(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    (tmp_path / "m.png").write_bytes(b"any bytes")
    assert (
        identify(Opening("a", str(path), None, tmp_path / "m.png")).mask_digest
        == hashlib.sha256(b"any bytes").hexdigest()
    )
    assert identify(Opening("a", str(path), None)).mask_digest == ""
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(
        SlideError,
        match=(
            r"^its mask folder.png is no regular file but a folder; correct the manifest's column"
            r" mask"
        ),
    ) as caught:
        identify(Opening("a", str(path), None, tmp_path / "folder.png"))
    assert caught.value.step == "tissue"
    with pytest.raises(
        MachineError, match=r"^its mask m.png is not there, and its folder is missing or empty"
    ):
        identify(Opening("a", str(path), None, tmp_path / "away" / "m.png"))


def test_a_reason_is_one_line_that_can_be_written(tmp_path):
    frame = quarantine_frame({"a": SlideError("one\ntwo\x1b[2J\udcff" + "x" * 5000)})
    reason = frame["reason"].iloc[0]
    assert reason.startswith(r"one two\x1b[2J\xffxxx")
    assert reason.isprintable()
    QUARANTINE.write(frame, tmp_path / "q.csv")
    assert QUARANTINE.read(tmp_path / "q.csv")["reason"].tolist() == [reason]
