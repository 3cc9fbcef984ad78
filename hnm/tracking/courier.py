"""The courier: a child process that brings a stage's record to MLflow while the stage trains.

It alone imports MLflow. The stage does not notice when the store is away, slow, locked or full.
"""

import contextlib
import io
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hnm.errors import TrackingError
from hnm.output import say
from hnm.redaction import redacted
from hnm.tracking.connection import connect, store_errors
from hnm.tracking.delivery import Delivery, bring_waiting
from hnm.tracking.record import CURE, Record, RecordError, first_line
from hnm.tracking.system import SystemWatch

if TYPE_CHECKING:
    from mlflow import MlflowClient

COURIER_SECONDS = 60.0
"""Longest that a courier goes on alone after its stage."""
OTHERS_SECONDS = 20.0
"""Longest that the courier of the last stage waits for those of the stages before it."""
POLL_SECONDS = 0.5

Process = subprocess.Popen[bytes]


def send_courier(root: Path, record: Record) -> Process | None:
    """Starts the courier of the running stage's record; it learns of the stage's end by the end of
    its standard input.
    """
    words = [root.resolve(), record.folder.resolve(), os.getpid()]
    command = [sys.executable, "-m", "hnm.tracking.courier", *map(str, words)]
    try:
        with (record.folder / "courier.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        record.complain(error)
        return None


def await_courier(courier: Process | None, name: str, record: Record, seconds: float) -> None:
    """Gives the courier a last moment; says in one line where the run is when that was not
    enough.
    """
    if courier is None or courier.stdin is None:
        return
    courier.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        courier.wait(timeout=seconds)
    if courier.returncode is None:
        _say_waiting(name, "no answer yet")
    elif courier.returncode:
        _say_waiting(name, record.reason() or "its courier was stopped")
    elif aside := record.refused():
        say(
            f"tracking: MLflow refuses a part of the run {name}, which lies in .hnm/refused"
            f" ({aside.reason()}); {CURE}"
        )


def _say_waiting(name: str, reason: str) -> None:
    say(
        redacted(
            f"tracking: the run {name} waits in .hnm/spool ({reason}); the next stage or `hnm"
            " track sync` brings it to MLflow"
        )
    )


class _Trip:
    """A courier's way with one record."""

    def __init__(self, root: Path, record: Record) -> None:
        self._root = root
        self._record = record
        self._client: MlflowClient | None = None
        self._delivery: Delivery | None = None
        self._others_brought = False

    def go_on(self, watch: SystemWatch | None = None) -> None:
        """Brings the events that are new, the samples of `watch`, and once the records that wait.

        Of a study the waiting records are brought each time, as its trials come one by one.
        """
        try:
            events = self._record.events()
            if self._client is None or self._delivery is None:
                self._client = connect(self._root)
                self._delivery = Delivery(self._root, self._record, self._client)
            self._delivery.bring(events)
            if watch is not None and watch.due():
                self._delivery.system(watch.sample(), watch.samples)
            is_study = bool(events and events[0].get("identity"))
            if is_study or not self._others_brought:
                bring_waiting(self._root, self._client)
                self._others_brought = True
        except (*store_errors(), TrackingError) as error:  # type: ignore[misc]
            self._record.say_reason(first_line(error))

    def finish(self) -> bool:
        """Whether all was brought. The last record to come may be the summary, which links the runs
        of other stages.
        """
        if self._client is None or self._delivery is None or not self._delivery.is_complete:
            return False
        self._delivery.settle()
        try:
            bring_waiting(self._root, self._client, OTHERS_SECONDS)
        except (*store_errors(), TrackingError) as error:  # type: ignore[misc]
            say(first_line(error))
        return True


def follow(root: Path, record: Record, stage_pid: int) -> bool:
    """Follows a record until its stage has ended; whether all of it was brought."""
    trip = _Trip(root, record)
    watch = SystemWatch(stage_pid)
    with record.courier_lock(0):
        while not _stage_ends_within(POLL_SECONDS):
            trip.go_on(watch)
        watchdog = threading.Timer(COURIER_SECONDS, os._exit, [1])
        watchdog.daemon = True
        watchdog.start()
        with contextlib.suppress(RecordError):
            record.close_if_killed(1.0)
        trip.go_on()
    return trip.finish()


def _stage_ends_within(seconds: float) -> bool:
    return bool(select.select([sys.stdin], [], [], seconds)[0])


class _Log(io.TextIOBase):
    """A text stream without secrets: what libraries write to it is redacted line by line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        """Writes the lines that have ended; the last one waits for its end."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._stream.write(redacted(line) + "\n")
        self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Does nothing: a line that has not ended may still become a secret."""


if __name__ == "__main__":
    sys.stdout = sys.stderr = _Log(sys.stderr)
    sys.exit(0 if follow(Path(sys.argv[1]), Record(Path(sys.argv[2])), int(sys.argv[3])) else 1)
