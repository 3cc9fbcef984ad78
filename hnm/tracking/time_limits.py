"""How long this program waits for a tracking store: each call to it ends within a stated time,
whatever the store does.

A store may be a server that accepts and never answers, that sends a byte now and then, or an
address that leads nowhere. Time limits of a connection do not see a slow drip, so that an alarm of
the process stands behind them.
"""

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 60.0
"""Longest that one call to the store may take."""
AGAIN_SECONDS = 1.0
"""So long goes each further try of a library that goes on when its time is over."""
LOCK_SECONDS = 60.0
"""Longest that this process waits for others of this repository that use the store."""
SLOWEST_BYTES_A_SECOND = 100_000
"""A file may take longer than an answer: as long as it takes at this speed."""
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "PGCONNECT_TIMEOUT": "15",
    "PGOPTIONS": "-c lock_timeout=15s -c statement_timeout=50s",
}
"""Environment variables of the libraries beneath, where the user has set none; seconds."""
_SENDS = ("log_artifact", "log_artifacts", "log_model_artifacts")
_RECEIVES = ("download_artifacts",)
RECEIVE_SECONDS = 3600.0
"""Longest that the files of one model or run may take to come."""


class StoreSilentError(OSError):
    """The store has not answered in time."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends the block after `seconds`, again and again as long as a library retries; only in a
    process's main thread.

    Raises:
        StoreSilentError: the time is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise StoreSilentError(f"no answer within {seconds:g} s")

    former = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(
            signal.ITIMER_REAL,
            max(0.001, left - (time.monotonic() - began)) if left else 0.0,
            interval,
        )
        signal.signal(signal.SIGALRM, former)


class PatientClient:
    """MLflow's client, each call of which ends in time."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)
        if not callable(function):
            return function

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            with within(_seconds(name, arguments)):
                return function(*arguments, **named)

        return call


def _seconds(name: str, arguments: tuple[Any, ...]) -> float:
    if name in _RECEIVES:
        return RECEIVE_SECONDS
    if name in _SENDS:
        return ANSWER_SECONDS + _size(Path(arguments[1])) / SLOWEST_BYTES_A_SECOND
    return ANSWER_SECONDS


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(os.lstat(file).st_size for file in path.rglob("*"))
