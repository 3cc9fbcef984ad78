"""The storage of a study's trials while it runs: a journal file, SQLite, or a server's database."""

import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from hnm.errors import StudyError
from hnm.files import whole
from hnm.tracking.record import first_line

STORAGE_ERRORS: tuple[type[Exception], ...] = (
    SQLAlchemyError,
    optuna.exceptions.StorageInternalError,
)
"""Errors of a storage that is away, locked or full."""
JOURNAL = "journal:///"
HEARTBEAT_SECONDS = int(os.environ.get("HNM_STUDY_HEARTBEAT", "30"))
"""Seconds between two messages of a trial to a server that it is alive."""
SILENT_SECONDS = 4 * HEARTBEAT_SECONDS
"""Seconds without a message, after which a trial counts as dead."""
ALIVE = "alive"
"""Attribute of a trial that has sent such a message."""
CONNECT_SECONDS = 15
"""Longest that a server may take to answer a connection; PGCONNECT_TIMEOUT or `connect_timeout` in
the URL say otherwise.
"""
ANSWER_SECONDS = 60.0
"""Longest that a server may take to answer one statement."""
CREATIONS = 5
"""Tries to make a server's tables: where two machines make them at once, one fails."""


def file_of(url: str) -> Path | None:
    """Returns the file of a storage; None for that of a server."""
    if url.startswith(JOURNAL):
        return Path(url.removeprefix(JOURNAL))
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    is_file = parsed.get_backend_name() == "sqlite" and "uri" not in parsed.query
    return Path(parsed.database) if is_file and parsed.database else None


@contextmanager
def alone(url: str, name: str) -> Iterator[None]:
    """Keeps other commands away from a storage that is a file, so that what runs in it when one
    starts is of a dead process. A server takes many commands.
    """
    path = file_of(url)
    if path is None:
        yield
        return
    try:
        lock = FileLock(path.with_name(f"{path.name}.tune"), timeout=0)
        with usable(url, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError):
            lock.acquire()
    except Timeout:
        raise StudyError(
            f"the study {name} is running already; wait for it, or choose another name by --study"
        ) from None
    try:
        yield
    finally:
        lock.release()


def open_storage(url: str, *, make: bool) -> Any:
    """Returns Optuna's storage at `url`; `make` makes a file or a server's tables where there are
    none.

    Raises:
        StudyError: it cannot be reached, read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings(
        "ignore", "Heartbeat of storage is supposed to be used"
    )  # `heartbeat_of` sends them
    path = file_of(url)
    if path is not None and not make and not path.exists():
        raise StudyError(
            f"{path} does not exist: there is no such study here; start it by hnm tune, or name its"
            " storage by --storage"
        )
    with usable(url, ImportError, ValueError, OSError):
        if url.startswith(JOURNAL):
            assert path is not None
            if not os.access(path if path.exists() else path.parent, os.W_OK):
                raise PermissionError(f"{path} is read-only")
            return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        return _database(
            url.replace("postgresql://", "postgresql+psycopg://", 1), heartbeat=path is None
        )


def _database(url: str, *, heartbeat: bool) -> Any:
    engine: dict[str, Any] = {}
    beats: dict[str, Any] = {}
    if heartbeat:
        engine["pool_pre_ping"] = True
        beats = {"heartbeat_interval": HEARTBEAT_SECONDS, "grace_period": SILENT_SECONDS}
    if make_url(url).drivername == "postgresql+psycopg":
        engine["creator"] = partial(_connected, url)
    attempt = 1
    while True:
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=engine, **beats)
        except SQLAlchemyError as error:
            if not heartbeat or attempt == CREATIONS or "already exists" not in str(error):
                raise
            attempt += 1
            time.sleep(1.0)


def _connected(url: str) -> Any:
    """Returns a connection to PostgreSQL that ends where an answer does not come in time, so that
    a server that hangs does not hang the study, in any thread.
    """
    import psycopg

    class Connection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
            return super().wait(self._timed(gen), *arguments, **named)

        def _timed(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            deadline = time.monotonic() + ANSWER_SECONDS
            try:
                # it ends at once where there is nothing to ask the server
                waited_for = next(gen)
                while True:
                    ready = yield waited_for
                    if not ready and time.monotonic() > deadline:
                        self.pgconn.finish()  # else taking back the transaction would wait as long
                        raise psycopg.OperationalError(f"no answer within {ANSWER_SECONDS:g} s")
                    waited_for = gen.send(ready)
            except StopIteration as end:
                return end.value

    parsed = make_url(url)
    positional, named = parsed.get_dialect()().create_connect_args(parsed)
    named.setdefault("connect_timeout", os.environ.get("PGCONNECT_TIMEOUT", CONNECT_SECONDS))
    return Connection.connect(*positional, **named)


@contextmanager
def usable(url: str, *also: type[Exception]) -> Iterator[None]:
    """Turns what the storage raises in the block, and errors of the kinds `also`, into a
    `StudyError` that names the storage and the cure.
    """
    try:
        yield
    except (*STORAGE_ERRORS, *also) as error:
        cause = error.__cause__ or error
        raise StudyError(
            f"the storage {url} cannot be used ({type(cause).__name__}:"
            f" {first_line(Exception(str(cause)))}); check --storage, whether its server answers,"
            " and whether its file can be written; the same command then goes on"
        ) from error


@contextmanager
def heartbeat_of(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
    """Tells a server, as long as the block runs, that the trial is alive; a message that it does
    not get is sent again later.
    """
    storage: Any = study._storage
    if not optuna.storages._heartbeat.is_heartbeat_enabled(storage):
        yield
        return
    storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr(ALIVE, True)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(*STORAGE_ERRORS):
                storage.record_heartbeat(trial._trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def close_dead(study: optuna.Study, url: str) -> None:
    """Ends the trials that a dead process left running: in a file all of them, on a server those
    that have been silent for long.

    To Optuna a trial without any heartbeat is not dead, but its process may have been killed before
    the first.
    """
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    if file_of(url) is None:
        optuna.storages.fail_stale_trials(study)
        oldest = datetime.now() - timedelta(seconds=SILENT_SECONDS)
        running = [
            trial
            for trial in running
            if ALIVE not in trial.user_attrs
            and trial.datetime_start is not None
            and trial.datetime_start < oldest
        ]
    for trial in running:
        # another machine may be first
        with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def mend_journal(path: Path, say: Callable[[str], None]) -> None:
    """Cuts off the last line where a kill has torn it, and unlocks what a dead writer has locked;
    a copy of the torn journal stays beside it.

    Raises:
        StudyError: another line is damaged.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    broken = [number for number, line in enumerate(lines) if not _is_whole(line)]
    if not broken:
        return
    if broken != [len(lines) - 1]:
        raise StudyError(
            f"{path} is damaged in line {broken[0] + 1} of {len(lines)}; restore the file from a"
            " copy, or begin another study by --study"
        )
    number = 1 + max(
        (int(copy.suffix[1:]) for copy in path.parent.glob(f"{path.name}.torn.*")), default=0
    )
    copy = path.with_name(f"{path.name}.torn.{number}")
    for target, content in ((copy, lines), (path, lines[:-1])):
        with whole(target) as temporary:
            temporary.write_bytes(b"".join(content))
    say(f"the last line of {path.name} was torn by a kill and is cut off; {copy.name} keeps it")


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
