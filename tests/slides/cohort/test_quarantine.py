"""The quarantine: its share and its table."""

import pytest

from hnm.errors import CohortError, SlideError
from hnm.slides.cohort.quarantine import check_quarantine, quarantine_frame
from hnm.tables import QUARANTINE


def test_too_large_a_quarantine_lists_its_reasons():
    check_quarantine({"a": "bad"}, 10, 0.1)
    with pytest.raises(
        CohortError,
        match=(
            r"2 of 10 slides are in quarantine, more than cohort.max_quarantined_share=0.1"
            r" allows:\n  a: worse\n  b: bad"
        ),
    ):
        check_quarantine({"b": "bad", "a": "worse"}, 10, 0.1)


def test_quarantine_rows():
    assert QUARANTINE.check(quarantine_frame({}), "x").empty
    frame = QUARANTINE.check(
        quarantine_frame({"b": SlideError("gone"), "a": SlideError("blank", step="tissue")}), "x"
    )
    assert frame.to_numpy().tolist() == [["a", "tissue", "blank"], ["b", "open", "gone"]]


def test_a_reason_is_one_line_that_can_be_written(tmp_path):
    frame = quarantine_frame({"a": SlideError("one\ntwo\x1b[2J\udcff" + "x" * 5000)})
    reason = frame["reason"].iloc[0]
    assert reason.startswith(r"one two\x1b[2J\xffxxx")
    assert reason.isprintable()
    QUARANTINE.write(frame, tmp_path / "q.csv")
    assert QUARANTINE.read(tmp_path / "q.csv")["reason"].tolist() == [reason]
