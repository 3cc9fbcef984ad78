"""The record of a run: every event of one stage execution, on disk before it goes anywhere else.

A stage only ever appends to its record, so no tracking store can delay or stop it. A courier
process reads the record and brings it to MLflow; what could not be brought stays in `.hnm/spool`
until someone brings it. One folder a record:

    events.jsonl   one event a line; the first is `start`, the last `finish`
    files/         artifacts, as hard links where the file system has them
    alive.lock     held by the stage while it runs
    courier.lock   held by whoever brings the record to MLflow
    reason.txt     why the last attempt to bring it failed
    courier.log    what MLflow said meanwhile

A record of which MLflow has refused a part for good is brought as far as it goes and then lies,
whole, in `.hnm/refused`. So does one that is no record: that holds other lines than events, or
names files outside of itself. Nothing of it is brought.

Locks vanish with their process, so a killed stage is told from a slow one without looking at
process ids.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hnm.errors import TrackingError
from hnm.failpoints import failpoint
from hnm.files import parse_json, read_bounded, whole
from hnm.names import is_id
from hnm.redaction import redacted
from hnm.repository.outputs import is_inside

Event = dict[str, Any]
MOST_EVENTS_BYTES = 256 << 20
"""Of one record's events; a training of a million epochs has less."""
_STATUS = ("FINISHED", "FAILED", "KILLED")
CURE = "mend the cause and run `hnm track sync --retry`, or delete what lies there"
"""What to do about records that were set aside."""


class RecordError(TrackingError):
    """What lies in the spool is no record."""


def now() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return time.time_ns() // 1_000_000


def spool(root: Path) -> Path:
    """Where the records of the repository `root` lie."""
    return root / ".hnm" / "spool"


def waiting_records(root: Path) -> list["Record"]:
    """All records that no one has brought to MLflow yet, oldest first, and what lies there in the
    place of one.
    """
    return _records_in(spool(root))


def refused_records(root: Path) -> list["Record"]:
    """All records that were set aside, oldest first."""
    return _records_in(root / ".hnm" / "refused")


def _records_in(folder: Path) -> list["Record"]:
    try:
        places = sorted(folder.iterdir())
    except OSError:  # there is none; `spool_trouble` tells of one that cannot be read
        return []
    return [Record(place) for place in places if place.is_dir() and _has_events(place)]


def _has_events(folder: Path) -> bool:
    try:
        os.lstat(folder / "events.jsonl")
    except (
        FileNotFoundError
    ):  # a record whose disk was full, or the lock of a courier that came too late
        return False
    except OSError:  # the folder may not be read, which is told of it
        return True
    return True


def spool_trouble(root: Path) -> str:
    """Why the spool can take or give no record, and the cure, in one line; empty where it can."""
    folder = spool(root)
    if not os.path.lexists(folder):
        return ""
    if not folder.is_dir():
        return f"{folder} is no folder, so that no stage can record its run; move it away"
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return (
            f"{folder} may not be read and written, so that no stage can record its run; give this"
            " user the right to it (chmod u+rwx)"
        )
    return ""


def refusals(root: Path) -> str:
    """What was set aside, and the cure, in one line; empty where nothing was."""
    records = refused_records(root)
    if not records:
        return ""
    return (
        f"{len(records)} in .hnm/refused, the first {records[0].name} ({records[0].reason()});"
        f" {CURE}"
    )


class Record:
    """One run's record in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: list[Event] = []
        self._complained = False

    @classmethod
    def create(cls, root: Path, name: str) -> "Record":
        """A new record; its folder's name sorts by time and is the run's identity."""
        return cls(spool(root) / f"{now()}-{name}-{uuid.uuid4().hex[:8]}")

    @property
    def identity(self) -> str:
        """What tells this record from all others; the run's tag `hnm.record`."""
        return self.folder.name

    @property
    def name(self) -> str:
        """The run's name, or that of the folder where no event tells it."""
        try:
            return str(self.events()[0]["name"])
        except (RecordError, LookupError):
            return self.identity

    def append(self, event: str, *, at: int | None = None, **content: Any) -> None:
        """Writes one event; where the disk refuses it, says so once, keeps it and tries again with
        the next.
        """
        self._pending.append({"event": event, "time": now() if at is None else at, **content})
        lines = "".join(
            json.dumps(pending, allow_nan=False) + "\n" for pending in self._pending
        ).encode()
        try:
            failpoint("record.appending", self.folder / "events.jsonl")
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "events.jsonl").open("ab", buffering=0) as stream:
                end = stream.tell()
                if (written := stream.write(lines)) < len(lines):
                    stream.truncate(end)
                    raise OSError(f"only {written} of {len(lines)} bytes could be written")
        except OSError as error:
            self.complain(error)
        else:
            self._pending.clear()

    def keep(self, path: Path) -> str:
        """Keeps the file or folder at `path` with the record; where in the record it lies."""
        files = (
            (file for file in sorted(path.rglob("*")) if file.is_file())
            if path.is_dir()
            else (path,)
        )
        return self.keep_all(path.name, {file.relative_to(path).as_posix(): file for file in files})

    def keep_all(self, name: str, files: Mapping[str, Path]) -> str:
        """Keeps `files` as the folder `name`, or the one file "." as the file `name`; where in the
        record it lies.
        """
        place = Path("files") / uuid.uuid4().hex[:8] / name
        for inside, file in files.items():
            if not is_inside(inside) and inside != ".":
                raise TrackingError(
                    f"{inside!r} names no file inside {name}, so that it is not kept with the run;"
                    " rename it"
                )
            _link(file, self.folder / place / inside)
        return place.as_posix()

    def events(self) -> list[Event]:
        """The events written so far; a last line that a kill has torn is left out.

        Raises:
            RecordError: there is something else than events.
        """
        path = self.folder / "events.jsonl"
        if self._is_gone():
            return []
        what = f"the record {self.identity}"
        content = read_bounded(path, RecordError, what=what, most=MOST_EVENTS_BYTES)
        events = []
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
            where = f"line {number} of {what}"
            event = parse_json(line, RecordError, what=where)
            if (
                not isinstance(event, dict)
                or not isinstance(event.get("event"), str)
                or not _is_count(event.get("time"))
            ):
                raise RecordError(f"{where} is no event")
            events.append(event)
        return events

    def checked_events(self) -> list[Event]:
        """The events of a record that may be anyone's: each of a kind and with the content that a
        stage writes, its files inside the record.

        Raises:
            RecordError: one is not.
        """
        events = self.events()
        for number, event in enumerate(events, 1):
            if reason := _fault(event, first=number == 1) or self._fault_of_files(event):
                raise RecordError(
                    f"event {number} of the record {self.identity} is none that a stage writes:"
                    f" {reason}"
                )
        return events

    def _fault_of_files(self, event: Event) -> str:
        """What is wrong with the files that an event names; they lie in the record, and are no
        links to what lies elsewhere.
        """
        if event["event"] not in ("file", "model"):
            return ""
        name = event["path"]
        place = self.folder / name
        if not is_inside(name) or not name.startswith("files/"):
            return f"{name!r} leads out of the record"
        if place.resolve() != self.folder.resolve() / name:
            return f"{name!r} leads out of the record by a link"
        for file in (place, *(place.rglob("*") if place.is_dir() else ())):
            if file.is_symlink() or not (file.is_file() or file.is_dir()):
                return (
                    f"{file.relative_to(self.folder).as_posix()!r} is no regular file of the record"
                )
        return ""

    def _is_gone(self) -> bool:
        try:
            os.lstat(self.folder / "events.jsonl")
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Holds the lock that says that the stage still runs."""
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.folder / "alive.lock", timeout=0))
            except (OSError, NotImplementedError) as error:  # a disk without room, or without locks
                self.complain(error)
            yield

    def is_alive(self, seconds: float = 0.0) -> bool:
        """Whether the stage still runs after `seconds` in which it may come to its end."""
        try:
            with FileLock(self.folder / "alive.lock", timeout=seconds):
                return False
        except Timeout:
            return True
        except (
            OSError,
            NotImplementedError,
        ):  # a lock that cannot be had at all says nothing; no stage holds it
            return False

    def courier_lock(self, timeout: float) -> FileLock:
        """The lock of the one who brings this record; `filelock.Timeout` after `timeout`
        seconds.
        """
        return FileLock(self.folder / "courier.lock", timeout=timeout)

    def close_if_killed(self, seconds: float = 0.0) -> None:
        """Ends a record that its stage could not end, once it has been dead for up to `seconds`:
        status KILLED, at the time of its last event.
        """
        events = self.events()
        if events and events[-1]["event"] != "finish" and not self.is_alive(seconds):
            path = self.folder / "events.jsonl"
            whole_lines = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole_lines[0]) + len(whole_lines[1]))
            self.append("finish", at=events[-1]["time"], status="KILLED")

    def say_reason(self, error: Exception) -> None:
        """Notes why the record could not be brought; a disk that refuses even this is reason enough
        to say nothing.
        """
        self._note(first_line(error))

    def _note(self, reason: str) -> None:
        if not self._is_gone():
            with contextlib.suppress(OSError), whole(self.folder / "reason.txt") as temporary:
                temporary.write_text(redacted(reason), encoding="utf-8")

    def reason(self) -> str:
        """Why the record could not be brought; empty where no one knows."""
        try:
            content = read_bounded(
                self.folder / "reason.txt", RecordError, what="the reason", most=10_000
            )
        except RecordError:
            return ""
        return redacted(" ".join(content.decode("utf-8", "replace").split()))

    def set_aside(self, reasons: Sequence[str]) -> None:
        """Takes the record out of the spool, beside it, so that nothing waits behind it; one that
        cannot even be moved stays, and is passed over.
        """
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        with contextlib.suppress(OSError):
            self.folder.chmod(0o700)
        self._note(reasons[0] + more)
        try:
            self._move("refused")
        except OSError as error:
            print(
                f"tracking: {self.folder} is no record that can be brought, and cannot be set aside"
                f" ({error}); delete it",
                file=sys.stderr,
            )

    def put_back(self) -> None:
        """Puts a record that was set aside into the spool again."""
        self._move("spool")

    def refused(self) -> "Record | None":
        """This record where it was set aside; None where it was not."""
        aside = Record(self.folder.parent.parent / "refused" / self.folder.name)
        return None if aside._is_gone() else aside

    def _move(self, place: str) -> None:
        target = self.folder.parent.parent / place / self.folder.name
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # the lock of a courier that came too late
        self.folder.rename(target)
        self.folder = target

    def remove(self) -> None:
        """Drops the record, which MLflow now holds."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def complain(self, error: Exception) -> None:
        """Says once, in one line, that this record is not complete."""
        if not self._complained:
            print(
                redacted(
                    f"tracking: the record of the run cannot be written ({error}); the stage goes"
                    " on without it"
                ),
                file=sys.stderr,
            )
            self._complained = True


def first_line(error: Exception) -> str:
    """The first line of an error's message without secrets, for a line that says more than that; a
    long one keeps its ends, for the cause often stands last.
    """
    line = redacted((str(error).strip().splitlines() or [type(error).__name__])[0])
    return line if len(line) <= 200 else f"{line[:99]} … {line[-98:]}"


def _fault(event: Event, *, first: bool) -> str:
    """What is wrong with the content of an event, which may be anyone's; empty where nothing is."""
    kind = event["event"]
    if first != (kind == "start"):
        return "the first event, and no other, is the start"
    if kind not in _CONTENT:
        return f"its kind is {kind[:100]!r}"
    for name, fits in _CONTENT[kind].items():
        if not fits(event.get(name)):
            return f"{kind} has {name}={str(event.get(name))[:100]!r}"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(inner, str | int | float) for inner in value.values()
    )


_CONTENT: dict[str, dict[str, Callable[[Any], bool]]] = {
    "start": {
        "experiment": lambda value: isinstance(value, str) and is_id(value),
        "name": _is_text,
        "tags": _is_texts,
        "params": lambda value: isinstance(value, dict),
        "inputs": lambda value: (
            isinstance(value, list)
            and all(
                isinstance(row, list)
                and len(row) == 3
                and all(isinstance(part, str) for part in row)
                for row in value
            )
        ),
        "identity": lambda value: value is None or _is_text(value),
        "parent": lambda value: value is None or _is_text(value),
        "stages": (
            lambda value: (
                value is None
                or (
                    isinstance(value, dict)
                    and all(re.fullmatch("[0-9a-f]{64}", str(key)) for key in value.values())
                )
            )
        ),
    },
    "metrics": {
        "step": _is_count,
        "values": (
            lambda value: (
                isinstance(value, dict) and all(_is_number(number) for number in value.values())
            )
        ),
    },
    "not_finite": {"name": _is_text, "step": lambda value: value is None or _is_count(value)},
    "file": {"path": _is_text},
    "model": {"path": _is_text, "kind": _is_text},
    "finish": {"status": lambda value: value in _STATUS},
}
"""Kind of event -> what each part of its content has to be."""


def _link(source: Path, target: Path) -> None:
    """`source` as `target`; a hard link keeps the bytes for free, as files here are replaced and
    never written in place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(
            os.path.realpath(source), target
        )  # the file itself where DVC's cache is linked symbolically
    except OSError:
        shutil.copyfile(source, target)
