"""Stores that are away in every way: each call ends in time, in one line, without secrets."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hnm.tracking import time_limits as patience
from hnm.tracking.record import Record, waiting_records
from hnm.tracking.time_limits import PatientClient, StoreSilentError, within


def test_a_block_ends_in_time_and_again_where_a_library_goes_on() -> None:
    former = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(StoreSilentError, match=r"no answer within 0\.2 s"), within(0.2):
        try:
            time.sleep(30)
        except OSError:  # as a library that tries again
            time.sleep(30)
    assert time.monotonic() - began < 5
    assert signal.getsignal(signal.SIGALRM) is former


def test_an_alarm_that_was_set_before_still_rings() -> None:
    rung: list[int] = []
    former = signal.signal(signal.SIGALRM, lambda number, _: rung.append(number))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with within(5.0):
            pass
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGALRM, former)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert rung == [signal.SIGALRM]


def test_in_another_thread_a_block_is_left_alone() -> None:
    done: list[bool] = []

    def work() -> None:
        with within(0.01):
            time.sleep(0.05)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


class Slow:
    """A client that answers after a while."""

    name = "slow"

    def get_run(self, seconds: float) -> str:
        time.sleep(seconds)
        return "run"

    def log_artifact(self, _: str, path: str) -> str:
        time.sleep(0.3)
        return path


def test_each_call_of_a_client_ends_in_time_and_files_may_take_longer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(patience, "ANSWER_SECONDS", 0.1)
    client = PatientClient(Slow())
    assert client.name == "slow" and client.get_run(0.0) == "run"
    with pytest.raises(StoreSilentError):
        client.get_run(5.0)
    (tmp_path / "large").write_bytes(bytes(100_000))
    (tmp_path / "small").touch()
    assert client.log_artifact("run", str(tmp_path / "large")) == str(tmp_path / "large")
    with pytest.raises(StoreSilentError):
        client.log_artifact("run", str(tmp_path / "small"))


@contextmanager
def server(answer: bytes, *, drips: bool) -> Iterator[int]:
    """The port of a server that sends `answer` and then, where it drips, a space every 50 ms for
    ever.
    """
    stopped = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(answer)
                while not stopped.wait(0.05):
                    if drips:
                        connection.sendall(b" ")
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while not stopped.is_set():
                try:
                    threading.Thread(
                        target=serve, args=(listening.accept()[0],), daemon=True
                    ).start()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        stopped.set()


PROGRAM = """
import sys
from pathlib import Path
from hnm.tracking import time_limits as patience
patience.ANSWER_SECONDS = 2.0
patience.SETTINGS["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"
from hnm.cli import app
app(["track", "sync"])
"""
DRIP = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "drips"), [(b"", False), (DRIP, True)], ids=["silent", "dripping"]
)
def test_a_sync_at_a_server_that_hangs_ends_in_one_line_without_its_password(
    tmp_path: Path, answer: bytes, drips: bool
) -> None:
    record = Record.create(tmp_path, "later")
    record.append("start", experiment="demo", name="later", tags={}, params={}, inputs=[])
    record.append("finish", status="FINISHED")
    with server(answer, drips=drips) as port:
        environment = os.environ | {
            "DVC_ROOT": str(tmp_path),
            "MLFLOW_TRACKING_URI": f"http://user:geheim1@127.0.0.1:{port}",
        }
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert time.monotonic() - began < 60
    assert done.returncode == 1 and "geheim1" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith(
        f"error: MLflow at http://***@127.0.0.1:{port} does not take the runs: "
    ) and line.endswith("they wait, sync again when it does")
    (waits,) = waiting_records(tmp_path)
    assert "geheim1" not in (waits.folder / "reason.txt").read_text()
