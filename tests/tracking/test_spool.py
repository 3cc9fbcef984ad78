"""Whatever lies in the spool: what is a record is brought, all else is set aside with its reason,
and nothing waits behind it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hnm.cli import app
from hnm.doctor import examine
from hnm.params import load_params
from hnm.tracking import record as record_module
from hnm.tracking.connection import connect
from hnm.tracking.delivery import bring_waiting
from hnm.tracking.record import Record, refused_records, spool, spool_trouble, waiting_records
from hnm.tracking.replay import sync
from hnm.tracking.runs import track_stage

START = {
    "event": "start",
    "time": 1,
    "experiment": "demo",
    "name": "head-r1",
    "tags": {},
    "params": {},
    "inputs": [],
}
FINISH = {"event": "finish", "time": 2, "status": "FINISHED"}


def lines(*events: Any) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


GARBAGE: list[tuple[bytes, str]] = [
    (b"word\n", "line 1 of the record 1-garbage is not JSON"),
    (b"7\n", "line 1 of the record 1-garbage is no event"),
    (b"[]\n", "is no event"),
    (b"{}\n", "is no event"),
    (b'{"event": "start", "time": "now"}\n', "is no event"),
    (b"[" * 100_000 + b"\n", "nested too deep"),
    (b"\xff\n", "is not JSON"),
    (b"\n\n", "is not JSON"),
    (b'{"event": "start", "time": 1e999}\n', "is not JSON"),
    (lines(FINISH), "the first event, and no other, is the start"),
    (lines(START, START), "the first event, and no other, is the start"),
    (lines(START, {"event": "explode", "time": 1}), "its kind is 'explode'"),
    (lines(START, {"event": "settle", "time": 1}, FINISH), "its kind is 'settle'"),
    (lines({**START, "name": 7}, FINISH), "start has name='7'"),
    (lines({**START, "experiment": "../../../x"}, FINISH), "start has experiment="),
    (lines({**START, "tags": {"a": []}}, FINISH), "start has tags="),
    (lines({**START, "params": []}, FINISH), "start has params="),
    (lines({**START, "inputs": [["a", "b"]]}, FINISH), "start has inputs="),
    (lines({**START, "stages": {"head": "x"}}, FINISH), "start has stages="),
    (
        lines(START, {"event": "metrics", "time": 1, "step": "x", "values": {}}, FINISH),
        "metrics has step='x'",
    ),
    (
        lines(START, {"event": "metrics", "time": 1, "step": 2**70, "values": {}}, FINISH),
        "metrics has step=",
    ),
    (
        lines(START, {"event": "metrics", "time": 1, "step": 1, "values": {"a": "b"}}, FINISH),
        "metrics has values=",
    ),
    (lines(START, {"event": "file", "time": 1}, FINISH), "file has path='None'"),
    (
        lines(START, {"event": "file", "time": 1, "path": "../../../params.yaml"}, FINISH),
        "leads out of the record",
    ),
    (
        lines(START, {"event": "file", "time": 1, "path": "/etc/passwd"}, FINISH),
        "leads out of the record",
    ),
    (
        lines(START, {"event": "model", "time": 1, "path": "files/link", "kind": "head"}, FINISH),
        "leads out of the record by a link",
    ),
    (
        lines(START, {"event": "file", "time": 1, "path": "files/folder"}, FINISH),
        "'files/folder/link' is no regular file of the record",
    ),
    (lines(START, {**FINISH, "status": "GREAT"}), "finish has status='GREAT'"),
]


def later(root: Path) -> Record:
    record = Record.create(root, "later")
    record.append("start", experiment="demo", name="later", tags={}, params={}, inputs=[])
    record.append("finish", status="FINISHED")
    return record


def garbage(root: Path, content: bytes = b"word\n") -> Path:
    folder = spool(root) / "1-garbage"
    (folder / "files" / "folder").mkdir(parents=True)
    (folder / "events.jsonl").write_bytes(content)
    (root / "params.yaml").touch()
    for link in (folder / "files" / "link", folder / "files" / "folder" / "link"):
        link.symlink_to(root / "params.yaml")
    return folder


class NoStore:
    """A client that takes everything."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: []


@pytest.mark.parametrize(("content", "reason"), GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_record_is_set_aside_with_its_reason_and_nothing_of_it_is_brought(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    garbage(tmp_path, content)
    bring_waiting(tmp_path, NoStore())  # type: ignore[arg-type]
    (aside,) = refused_records(tmp_path)
    assert reason in aside.reason() and waiting_records(tmp_path) == []


def test_a_record_behind_one_that_is_none_is_brought_and_the_doctor_names_the_other(
    root: Path,
) -> None:
    garbage(root)
    folder, pipe = spool(root) / "2-folder", spool(root) / "3-pipe"
    (folder / "events.jsonl").mkdir(parents=True)
    pipe.mkdir()
    os.mkfifo(pipe / "events.jsonl")
    os.mkfifo(pipe / "reason.txt")
    later(root)
    assert sync(root).brought == ["later"]
    assert [aside.identity for aside in refused_records(root)] == [
        "1-garbage",
        "2-folder",
        "3-pipe",
    ]
    assert refused_records(root)[2].reason() == "the record 3-pipe is no regular file"
    says = next(finding.says for finding in examine(root) if finding.thing == "runs")
    assert says.startswith(
        "not brought: 3 in .hnm/refused, the first 1-garbage (line 1 of the record 1-garbage is not"
        " JSON"
    )
    shown = CliRunner().invoke(app, ["track", "sync", "--retry"]).output
    assert "1-garbage" in shown and len(refused_records(root)) == 3


def test_a_record_that_is_too_large_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "MOST_EVENTS_BYTES", 10)
    garbage(tmp_path, lines(START, FINISH))
    bring_waiting(tmp_path, NoStore())  # type: ignore[arg-type]
    assert "more than the 10 that are read" in refused_records(tmp_path)[0].reason()


def test_one_record_that_the_store_cannot_take_stops_no_other(root: Path) -> None:
    class OddClient:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def create_run(self, *arguments: Any, run_name: str, **named: Any) -> Any:
            if run_name == "head-r1":
                raise ValueError_of_mlflow(
                    "a fault of this record alone, at https://me:geheim1@host"
                )
            return client.create_run(*arguments, run_name=run_name, **named)

    from mlflow.exceptions import MlflowException as ValueError_of_mlflow

    client = connect(root)
    garbage(root, lines(START, FINISH))
    later(root)
    names, (line,) = bring_waiting(root, OddClient())  # type: ignore[arg-type]
    assert names == ["later"]
    assert line.startswith(
        "the run head-r1 waits, while MLflow answers: a fault of this record alone, at"
        " https://***@host; run hnm track sync again, or delete "
    )
    assert waiting_records(root)[0].reason() == "a fault of this record alone, at https://***@host"


@pytest.mark.parametrize("trouble", ["file", "read-only", "full"])
def test_a_spool_that_cannot_be_written_fails_no_training(
    root: Path, trouble: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / "head.json").write_text("{}")
    if trouble == "file":
        (root / ".hnm").mkdir()
        spool(root).write_text("")
    elif trouble == "full":
        monkeypatch.setenv("HNM_FAILPOINT", "record.appending=ENOSPC")
    else:
        monkeypatch.setattr(record_module, "spool", lambda _: Path("/proc/none/spool"))
    params = load_params(root / "params.yaml")
    with track_stage("head", {"round": 1}, {"head": params.head}, params) as tracker:
        tracker.epoch(1, {"loss": 0.5})
        tracker.file(root / "head.json")
        tracker.model(root, "head")
    said = [line for line in capfd.readouterr().err.splitlines() if "cannot be written" in line]
    assert len(said) == 1 and said[0].endswith("the stage goes on without it")
    if trouble == "file":
        assert (
            spool_trouble(root)
            == f"{spool(root)} is no folder, so that no stage can record its run; move it away"
        )
        assert spool_trouble(root) in next(
            finding.says for finding in examine(root) if finding.thing == "runs"
        )
        assert waiting_records(root) == []
