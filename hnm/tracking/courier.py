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
from typing import TextIO

from hnm.errors import TrackingError
from hnm.output import say
from hnm.redaction import redacted
from hnm.tracking.connection import connect, store_errors
from hnm.tracking.delivery import Delivery, bring_waiting
from hnm.tracking.record import CURE, Record, RecordError, first_line
from hnm.tracking.system import SystemWatch

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


def follow(root: Path, record: Record, stage_pid: int) -> bool:
    """Follows a record until its stage has ended; whether all of it was brought.

    The records that wait from before are brought once at the start, and those of a study's trials
    each time, as they come one by one.
    """
    watch = SystemWatch(stage_pid)
    delivery: Delivery | None = None
    stage_runs = True
    with record.courier_lock(0):
        while stage_runs:
            stage_runs = not _stage_ends_within(POLL_SECONDS)
            if not stage_runs:
                _stop_after(COURIER_SECONDS)
                with contextlib.suppress(RecordError):
                    record.close_if_killed(1.0)
            try:
                events = record.events()
                is_first = delivery is None
                if delivery is None:
                    delivery = Delivery(root, record, connect(root))
                delivery.bring(events)
                if stage_runs and watch.due():
                    delivery.system(watch.sample(), watch.samples)
                if is_first or (events and events[0].get("identity")):
                    bring_waiting(root, delivery.client)
            except (*store_errors(), TrackingError) as error:  # type: ignore[misc]
                record.say_reason(first_line(error))
    if delivery is None or not delivery.is_complete:
        return False
    delivery.settle()
    try:  # the summary, which the stage has written last and which links the other runs
        bring_waiting(root, delivery.client, OTHERS_SECONDS)
    except (*store_errors(), TrackingError) as error:  # type: ignore[misc]
        say(first_line(error))
    return True


def _stop_after(seconds: float) -> None:
    """Ends this process then, whatever it waits for."""
    watchdog = threading.Timer(seconds, os._exit, [1])
    watchdog.daemon = True
    watchdog.start()


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
