"""MLflow that is away, slow, broken, or of another version: no training fails for it, and nothing
is lost.
"""

import http.server
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hnm.errors import TrackingError
from hnm.tracking.connection import connect
from hnm.tracking.record import waiting_records
from tests.support.stages import Project

STATED_SECONDS = 60.0
"""Within which `hnm track sync` ends, whatever the server does."""


@contextmanager
def server(how: str) -> Iterator[str]:
    """A server that answers 500 to everything, or a byte a second, or cuts the line."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if how == "500":
                self.send_error(500, "the database is away")
            elif how == "cut":
                self.connection.close()
            else:
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                for _ in range(100_000):
                    try:
                        self.wfile.write(b" ")
                        self.wfile.flush()
                    except OSError:
                        return
                    time.sleep(1)

        do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815  # the names that http.server calls

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://someone:s3cr3tword@127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()


@pytest.mark.parametrize(
    "how",
    [
        "500",
        pytest.param("slow", marks=pytest.mark.soak),
        pytest.param("cut", marks=pytest.mark.soak),
    ],
)
def test_mlflow_500_and_slow(project: Project, undisturbed: Project, how: str) -> None:
    """The stage writes what it always does, in time; `hnm track sync` says in one line that it
    could not, without the password; the run waits.
    """
    project.clear("mine@1")
    with server(how) as url:
        begin = time.monotonic()
        done = project.run("mine@1", HNM_TRACKING="on", MLFLOW_TRACKING_URI=url)
        assert done.code == 0 and "Traceback" not in done.err, done.err
        assert time.monotonic() - begin < 30
        assert len(waiting_records(project.folder)) == 1
        begin = time.monotonic()
        synced = project.run("hnm track sync", HNM_TRACKING="on", MLFLOW_TRACKING_URI=url)
        assert time.monotonic() - begin < STATED_SECONDS
        assert "Traceback" not in synced.err and synced.err.strip(), synced.err
        assert "s3cr3tword" not in done.err + done.out + synced.err + synced.out
    assert project.bytes_of("data/mined") == undisturbed.bytes_of("data/mined")
    assert len(waiting_records(project.folder)) == 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new tracking store."""
    root = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(root)
    return root / "mlflow.db"


@pytest.mark.parametrize("how", ["newer", "torn", "text", "empty"])
def test_mlflow_newer_schema(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A store that a later MLflow has made, or a file that is none, is named with a cure and stays
    as it is.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(store, tmp_path / "mlflow.db")
    database = tmp_path / "mlflow.db"
    if how == "newer":
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    elif how == "torn":
        database.write_bytes(database.read_bytes()[:5000])
    elif how == "text":
        database.write_text("this is no database")
    else:
        database.write_bytes(b"")
        connect(tmp_path)  # SQLite takes an empty file for a new database
        return
    before = database.stat().st_size
    with pytest.raises(TrackingError, match=r"mlflow\.db"):
        connect(tmp_path).search_experiments()
    assert database.stat().st_size == before
    if how == "newer":
        with sqlite3.connect(database) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
                ("ffffffffffff",)
            ]


def test_a_garbage_record_in_the_spool_blocks_no_other(
    project: Project, undisturbed: Project
) -> None:
    """Set aside and named; a stage's own record is not held up by it."""
    for number, content in enumerate(
        (b"\xff\xfe not a record", b"{}", b'{"event": "start"}', b"[" * 100_000, b"")
    ):
        folder = project.folder / ".hnm" / "spool" / f"0000000{number}-head-r1"
        folder.mkdir(parents=True)
        (folder / "events.jsonl").write_bytes(content)
    project.clear("mine@1")
    done = project.run("mine@1", HNM_TRACKING="on", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.code == 0 and "Traceback" not in done.err, done.err
    assert project.bytes_of("data/mined") == undisturbed.bytes_of("data/mined")
    doctor = project.run("hnm doctor")
    assert "Traceback" not in doctor.err + doctor.out, doctor.err


def test_a_spool_and_a_cost_that_cannot_be_written(project: Project, undisturbed: Project) -> None:
    """A finished training is never lost to its record: files in the place of folders stop
    neither.
    """
    for name in ("spool", "cost"):
        shutil.rmtree(project.folder / ".hnm" / name, ignore_errors=True)
        (project.folder / ".hnm" / name).write_text("in the way")
    project.clear("head@0")
    done = project.run("head@0", HNM_TRACKING="on", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.code == 0 and "Traceback" not in done.err, done.err
    assert project.bytes_of("data/heads/0", "data/scores/0") == undisturbed.bytes_of(
        "data/heads/0", "data/scores/0"
    )
