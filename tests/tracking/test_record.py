import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnm.tracking import record as record_module
from hnm.tracking.record import Record, waiting_records


def test_events_come_back_in_order(tmp_path: Path) -> None:
    record = Record.create(tmp_path, "head-r1")
    record.append("start", name="head-r1", at=1000)
    record.append("metrics", at=1001, step=2, values={"epoch/loss": 0.25})
    assert record.events() == [
        {"event": "start", "time": 1000, "name": "head-r1"},
        {"event": "metrics", "time": 1001, "step": 2, "values": {"epoch/loss": 0.25}},
    ]


def test_records_wait_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for time, name in ((2000, "b"), (1000, "c"), (3000, "a")):
        monkeypatch.setattr(record_module, "now", lambda time=time: time)
        Record.create(tmp_path, name).append("start")
    assert [record.identity.split("-")[1] for record in waiting_records(tmp_path)] == [
        "c",
        "b",
        "a",
    ]


def test_a_torn_last_line_is_left_out_and_cut_when_the_record_is_closed(tmp_path: Path) -> None:
    record = Record.create(tmp_path, "head-r1")
    record.append("start", at=1000)
    with (record.folder / "events.jsonl").open("a") as stream:
        stream.write('{"event": "metr')
    assert record.events() == [{"event": "start", "time": 1000}]
    record.close_if_killed()
    assert record.events() == [
        {"event": "start", "time": 1000},
        {"event": "finish", "time": 1000, "status": "KILLED"},
    ]


def test_a_full_disk_is_said_once_and_its_events_come_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record.create(tmp_path, "head-r1")
    record.append("start", at=1)
    opened = Path.open

    def full(path: Path, *arguments: object, **more: object) -> object:
        if path.name == "events.jsonl" and "a" in str(arguments):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        record.append("metrics", at=2)
        record.append("metrics", at=3)
    record.append("finish", at=4)
    assert [event["time"] for event in record.events()] == [1, 2, 3, 4]
    assert (
        capsys.readouterr().err
        == "tracking: the record of the run cannot be written ([Errno 28] No space left on device);"
        " the stage goes on without it\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_really_full_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record.create(tmp_path, "head-r1")
    record.folder.mkdir(parents=True)
    (record.folder / "events.jsonl").symlink_to("/dev/full")
    record.append("start")
    assert "No space left on device" in capsys.readouterr().err


def test_kept_files_outlive_their_replacement(tmp_path: Path) -> None:
    folder = tmp_path / "heads" / "1"
    folder.mkdir(parents=True)
    (folder / "head.json").write_text("old")
    record = Record.create(tmp_path, "head-r1")
    kept_folder, kept_file = record.keep(folder), record.keep(folder / "head.json")
    (folder / "new").write_text("new")
    (folder / "new").replace(folder / "head.json")
    assert (record.folder / kept_folder / "head.json").read_text() == "old"
    assert (record.folder / kept_file).read_text() == "old"
    assert kept_folder.endswith("/1") and kept_file.endswith("/head.json")


def test_files_are_copied_where_links_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "history.csv").write_text("epoch,loss\n")
    record = Record.create(tmp_path, "head-r1")
    assert (record.folder / record.keep(tmp_path / "history.csv")).read_text() == "epoch,loss\n"


def test_a_killed_stage_is_told_from_one_that_runs(tmp_path: Path) -> None:
    record = Record.create(tmp_path, "head-r1")
    record.append("start", at=1000)
    program = (
        "import sys\nfrom pathlib import Path\nfrom hnm.tracking.record import Record\nwith"
        " Record(Path(sys.argv[1])).alive():\n print(flush=True); input()"
    )
    stage = subprocess.Popen(
        [sys.executable, "-c", program, record.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert stage.stdout is not None
    stage.stdout.readline()
    record.close_if_killed()
    assert record.is_alive() and len(record.events()) == 1
    stage.kill()
    stage.wait()
    record.close_if_killed()
    assert not record.is_alive()
    assert record.events()[-1] == {"event": "finish", "time": 1000, "status": "KILLED"}


START = {"experiment": "demo", "name": "later", "tags": {}, "params": {}, "inputs": []}


def test_a_record_that_is_being_written_is_not_taken_for_a_killed_one(tmp_path: Path) -> None:
    with Record.written(tmp_path, START, "FAILED") as record:
        Record(record.folder).close_if_killed()
        record.append("metrics", step=0, values={"epoch/loss": 0.5})
    assert [event.get("status") for event in record.checked_events()] == [None, None, "FAILED"]


def test_nothing_stays_of_a_record_whose_content_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Record.written(tmp_path, START) as record:
        raise ZeroDivisionError
    assert waiting_records(tmp_path) == [] and not record.folder.exists()
