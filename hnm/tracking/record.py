"""The record of a run: every event of one stage execution, on disk before it goes anywhere else.

A stage only ever appends to its record, so no tracking store can delay or stop it. A courier
process reads the record and brings it to MLflow; what could not be brought stays in `.hnm/spool`
until someone brings it. A record is a folder:

    events.jsonl   one event a line; the first is `start`, the last `finish`
    files/         artifacts, as hard links where the file system has them
    alive.lock     held by the stage while it runs
    courier.lock   held by whoever brings the record to MLflow
    reason.txt     why the last attempt to bring it failed
    courier.log    what MLflow said meanwhile

When MLflow refuses a part of a record for good, the rest is brought, and the whole record is moved
to `.hnm/refused`. A folder that is no record goes there too, and nothing of it is brought: its
lines are no events, or its events name files outside of it.

Locks vanish with their process, so a killed stage is told from a slow one without looking at
process ids.
"""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hnm.errors import TrackingError
from hnm.failpoints import failpoint
from hnm.files import parse_json, read_bounded, whole
from hnm.names import ID
from hnm.output import say
from hnm.redaction import redacted
from hnm.repository.outputs import is_inside

Event = dict[str, Any]
MOST_EVENTS_BYTES = 256 << 20
"""Most bytes of the events of one record; a training of a million epochs has less."""
CURE = "mend the cause and run `hnm track sync --retry`, or delete what lies there"
"""What to do about records that were set aside."""
REFUSED = "refused"
"""Folder of the records that were set aside, beside the spool."""


class RecordError(TrackingError):
    """What lies in the spool is no record."""


Count = Annotated[int, Field(ge=0, lt=2**63)]
Word = Annotated[str, Field(min_length=1)]
Number = Annotated[float, Field(gt=-1e308, lt=1e308)]
StageKey = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Content(BaseModel):
    """What an event holds beside its kind and its time; other names are passed over."""

    model_config = ConfigDict(strict=True)


class _Start(_Content):
    experiment: Annotated[str, Field(pattern=f"^{ID}$")]
    name: Word
    tags: dict[str, str | int | float]
    params: dict[str, Any]
    inputs: list[Annotated[list[str], Field(min_length=3, max_length=3)]]
    identity: Word | None = None
    parent: Word | None = None
    stages: dict[str, StageKey] | None = None


class _Metrics(_Content):
    step: Count
    values: dict[str, Number]


class _NotFinite(_Content):
    name: Word
    step: Count | None


class _File(_Content):
    path: Word


class _Model(_File):
    kind: Word


class _Finish(_Content):
    status: Literal["FINISHED", "FAILED", "KILLED"]


CONTENT: Mapping[str, type[_Content]] = {
    "start": _Start,
    "metrics": _Metrics,
    "not_finite": _NotFinite,
    "file": _File,
    "model": _Model,
    "finish": _Finish,
}
"""Kind of event -> what it has to hold."""


def now() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return time.time_ns() // 1_000_000


def spool(root: Path) -> Path:
    """The folder of the records of the repository `root`."""
    return root / ".hnm" / "spool"


def waiting_records(root: Path) -> list["Record"]:
    """The records that no one has brought to MLflow yet, oldest first, and whatever else lies
    there.
    """
    return _records_in(spool(root))


def refused_records(root: Path) -> list["Record"]:
    """The records that were set aside, oldest first."""
    return _records_in(root / ".hnm" / REFUSED)


def _records_in(folder: Path) -> list["Record"]:
    """The folders with events. One without is a record whose disk was full, or the lock of a
    courier that came too late.
    """
    try:
        places = sorted(folder.iterdir())
    except OSError:  # there is none; `spool_trouble` speaks of one that cannot be read
        return []
    records = (Record(place) for place in places if place.is_dir())
    return [record for record in records if record.has_events()]


def spool_trouble(root: Path) -> str:
    """Why no stage can record its run, and the cure, in one line; empty where each can."""
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
    """The records that were set aside, and the cure, in one line; empty where there are none."""
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

    @classmethod
    @contextlib.contextmanager
    def written(
        cls, root: Path, start: Mapping[str, Any], status: str = "FINISHED"
    ) -> Iterator["Record"]:
        """A new record of a run that is over, complete when the block ends; nothing of it stays
        where the block fails.

        Args:
            root: the repository.
            start: content of the event `start`.
            status: of the event `finish`.
        """
        record = cls.create(root, start["name"])
        with record.alive():
            try:
                record.append("start", **start)
                yield record
                record.append("finish", status=status)
            except BaseException:
                record.remove()
                raise

    @property
    def identity(self) -> str:
        """The name that no other record has; the run's tag `hnm.record`."""
        return self.folder.name

    @property
    def name(self) -> str:
        """The run's name, or the folder's where no event says it."""
        try:
            return str(self.events()[0]["name"])
        except (RecordError, LookupError):
            return self.identity

    @property
    def _events(self) -> Path:
        return self.folder / "events.jsonl"

    def has_events(self) -> bool:
        """Whether something lies where the events belong. It does too where the folder may not be
        read: the next reader says so.
        """
        try:
            os.lstat(self._events)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def append(self, event: str, *, at: int | None = None, **content: Any) -> None:
        """Writes one event. Where the disk refuses it, says so once and tries again with the next
        event.
        """
        self._pending.append({"event": event, "time": now() if at is None else at, **content})
        lines = "".join(
            json.dumps(pending, allow_nan=False) + "\n" for pending in self._pending
        ).encode()
        try:
            failpoint("record.appending", self._events)
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._events.open("ab", buffering=0) as stream:
                end = stream.tell()
                if (written := stream.write(lines)) < len(lines):
                    stream.truncate(end)
                    raise OSError(f"only {written} of {len(lines)} bytes could be written")
        except OSError as error:
            self.complain(error)
        else:
            self._pending.clear()

    def keep(self, path: Path) -> str:
        """Keeps the file or folder at `path` with the record; returns its place there."""
        files = [path]
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return self.keep_all(path.name, {file.relative_to(path).as_posix(): file for file in files})

    def keep_all(self, name: str, files: Mapping[str, Path]) -> str:
        """Keeps `files` as the folder `name`, or the one file "." as the file `name`; returns its
        place in the record.
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
        """The events written so far, without a last line that a kill has torn.

        Raises:
            RecordError: there is something else than events.
        """
        if not self.has_events():
            return []
        what = f"the record {self.identity}"
        content = read_bounded(self._events, RecordError, what=what, most=MOST_EVENTS_BYTES)
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        return [_event(line, f"line {number} of {what}") for number, line in enumerate(lines, 1)]

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
        """What is wrong with the files that an event names. They have to lie in the record, and may
        be no links to other places.
        """
        if event["event"] not in ("file", "model"):
            return ""
        name = event["path"]
        place = self.folder / name
        if not is_inside(name) or not name.startswith("files/"):
            return f"{name!r} leads out of the record"
        if place.resolve() != self.folder.resolve() / name:
            return f"{name!r} leads out of the record by a link"
        for file in (place, *place.rglob("*")):
            if file.is_symlink() or not (file.is_file() or file.is_dir()):
                return (
                    f"{file.relative_to(self.folder).as_posix()!r} is no regular file of the record"
                )
        return ""

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Holds the lock that says that the stage still runs."""
        with contextlib.ExitStack() as locks:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(FileLock(self.folder / "alive.lock", timeout=0))
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
        except (OSError, NotImplementedError):  # no stage holds a lock that nobody can have
            return False

    def courier_lock(self, timeout: float) -> FileLock:
        """The lock of whoever brings this record; `filelock.Timeout` after `timeout` seconds."""
        return FileLock(self.folder / "courier.lock", timeout=timeout)

    def close_if_killed(self, seconds: float = 0.0) -> None:
        """Ends a record whose stage is dead and could not end it, as KILLED at the time of its last
        event. The stage has up to `seconds` to die.
        """
        events = self.events()
        if events and events[-1]["event"] != "finish" and not self.is_alive(seconds):
            whole_lines, line_end, _ = self._events.read_bytes().rpartition(b"\n")
            os.truncate(self._events, len(whole_lines) + len(line_end))
            self.append("finish", at=events[-1]["time"], status="KILLED")

    def say_reason(self, reason: str) -> None:
        """Notes why the record could not be brought; a disk that refuses even this stays silent."""
        if self.has_events():
            with contextlib.suppress(OSError), whole(self.folder / "reason.txt") as temporary:
                temporary.write_text(redacted(reason), encoding="utf-8")

    def reason(self) -> str:
        """Why the record could not be brought; empty where no one has noted it."""
        try:
            content = read_bounded(
                self.folder / "reason.txt", RecordError, what="the reason", most=10_000
            )
        except RecordError:
            return ""
        return redacted(" ".join(content.decode("utf-8", "replace").split()))

    def set_aside(self, reasons: Sequence[str]) -> None:
        """Moves the record out of the spool, so that nothing waits behind it. One that cannot be
        moved stays, and is passed over.
        """
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        with contextlib.suppress(OSError):
            self.folder.chmod(0o700)
        self.say_reason(reasons[0] + more)
        try:
            self._move(REFUSED)
        except OSError as error:
            say(
                f"tracking: {self.folder} is no record that can be brought, and cannot be set aside"
                f" ({error}); delete it"
            )

    def put_back(self) -> None:
        """Moves a record that was set aside into the spool again."""
        self._move("spool")

    def refused(self) -> "Record | None":
        """This record where it was set aside; None where it was not."""
        aside = Record(self._beside(REFUSED))
        return aside if aside.has_events() else None

    def _beside(self, place: str) -> Path:
        return self.folder.parent.parent / place / self.folder.name

    def _move(self, place: str) -> None:
        target = self._beside(place)
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # the lock of a courier that came too late
        self.folder.rename(target)
        self.folder = target

    def remove(self) -> None:
        """Deletes the record, which MLflow now holds."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def complain(self, error: Exception) -> None:
        """Says once, in one line, that this record is not complete."""
        if not self._complained:
            say(
                redacted(
                    f"tracking: the record of the run cannot be written ({error}); the stage goes"
                    " on without it"
                )
            )
            self._complained = True


def first_line(error: Exception) -> str:
    """The first line of an error's message, without secrets, as a part of another line. A long one
    is cut in its middle, for the cause often stands last.
    """
    line = redacted((str(error).strip().splitlines() or [type(error).__name__])[0])
    return line if len(line) <= 200 else f"{line[:99]} … {line[-98:]}"


def _event(line: bytes, where: str) -> Event:
    event = parse_json(line, RecordError, what=where)
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        moment = event.get("time")
        if type(moment) is int and 0 <= moment < 2**63:
            return event
    raise RecordError(f"{where} is no event")


def _fault(event: Event, *, first: bool) -> str:
    """What is wrong with the content of an event, which may be anyone's; empty where nothing is."""
    kind = event["event"]
    if first != (kind == "start"):
        return "the first event, and no other, is the start"
    if kind not in CONTENT:
        return f"its kind is {kind[:100]!r}"
    try:
        CONTENT[kind].model_validate(event)
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        return f"{kind} has {name}={str(event.get(str(name)))[:100]!r}"
    return ""


def _link(source: Path, target: Path) -> None:
    """Makes `source` the file `target` too. A hard link keeps the bytes for free, as files here are
    replaced and never written in place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # the file itself where DVC's cache is linked symbolically
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
