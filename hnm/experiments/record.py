"""The record of a run: every event of one stage execution, on disk before it goes anywhere else.

A stage only ever appends to its record, so no tracking store can delay or stop it. A courier process reads the record
and brings it to MLflow; what could not be brought stays in `.hnm/spool` until someone brings it. One folder a record:

    events.jsonl   one event a line; the first is `start`, the last `finish`
    files/         artifacts, as hard links where the file system has them
    alive.lock     held by the stage while it runs
    courier.lock   held by whoever brings the record to MLflow
    reason.txt     why the last attempt to bring it failed
    courier.log    what MLflow said meanwhile

A record of which MLflow has refused a part for good is brought as far as it goes and then lies, whole, in `.hnm/refused`.

Locks vanish with their process, so a killed stage is told from a slow one without looking at process ids.
"""

import contextlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

Event = dict[str, Any]
CURE = "mend the cause and run `hnm track sync --retry`, or delete what lies there"
"""What to do about records that MLflow has refused for good."""


def now() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return time.time_ns() // 1_000_000


def spool(root: Path) -> Path:
    """Where the records of the repository `root` lie."""
    return root / ".hnm" / "spool"


def waiting_records(root: Path) -> list["Record"]:
    """All records that no one has brought to MLflow yet, oldest first."""
    return [Record(events.parent) for events in sorted(spool(root).glob("*/events.jsonl"))]


def refused_records(root: Path) -> list["Record"]:
    """All records of which MLflow has refused a part for good, oldest first."""
    return [Record(events.parent) for events in sorted((root / ".hnm" / "refused").glob("*/events.jsonl"))]


def refusals(root: Path) -> str:
    """What MLflow has refused for good, and the cure, in one line; empty where it has refused nothing."""
    records = refused_records(root)
    if not records:
        return ""
    return f"{len(records)} in .hnm/refused, the first {records[0].name} ({records[0].reason()}); {CURE}"


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
        """The run's name."""
        return str(self.events()[0]["name"])

    def append(self, event: str, *, at: int | None = None, **content: Any) -> None:
        """Writes one event; where the disk refuses it, says so once, keeps it and tries again with the next."""
        self._pending.append({"event": event, "time": now() if at is None else at, **content})
        lines = "".join(json.dumps(pending, allow_nan=False) + "\n" for pending in self._pending).encode()
        try:
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
        files = (file for file in sorted(path.rglob("*")) if file.is_file()) if path.is_dir() else (path,)
        return self.keep_all(path.name, {file.relative_to(path).as_posix(): file for file in files})

    def keep_all(self, name: str, files: Mapping[str, Path]) -> str:
        """Keeps `files` as the folder `name`, or the one file "." as the file `name`; where in the record it lies."""
        place = Path("files") / uuid.uuid4().hex[:8] / name
        for inside, file in files.items():
            _link(file, self.folder / place / inside)
        return place.as_posix()

    def events(self) -> list[Event]:
        """The events written so far; a last line that a kill has torn is left out."""
        try:
            text = (self.folder / "events.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Holds the lock that says that the stage still runs."""
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.folder / "alive.lock", timeout=0))
            except OSError as error:  # a disk without room, or without locks
                self.complain(error)
            yield

    def is_alive(self, seconds: float = 0.0) -> bool:
        """Whether the stage still runs after `seconds` in which it may come to its end."""
        try:
            with FileLock(self.folder / "alive.lock", timeout=seconds):
                return False
        except Timeout:
            return True

    def courier_lock(self, timeout: float) -> FileLock:
        """The lock of the one who brings this record; `filelock.Timeout` after `timeout` seconds."""
        return FileLock(self.folder / "courier.lock", timeout=timeout)

    def close_if_killed(self, seconds: float = 0.0) -> None:
        """Ends a record that its stage could not end, once it has been dead for up to `seconds`: status KILLED, at the time of its last event."""
        events = self.events()
        if events and events[-1]["event"] != "finish" and not self.is_alive(seconds):
            path = self.folder / "events.jsonl"
            whole_lines = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole_lines[0]) + len(whole_lines[1]))
            self.append("finish", at=events[-1]["time"], status="KILLED")

    def say_reason(self, error: Exception) -> None:
        """Notes why the record could not be brought; a disk that refuses even this is reason enough to say nothing."""
        with contextlib.suppress(OSError):
            (self.folder / "reason.txt").write_text(first_line(error), encoding="utf-8")

    def reason(self) -> str:
        """Why the record could not be brought; empty where no one knows."""
        try:
            return (self.folder / "reason.txt").read_text(encoding="utf-8")
        except OSError:
            return ""

    def set_aside(self, reasons: Sequence[str]) -> None:
        """Takes the record out of the spool, beside it: MLflow refuses a part of it for good, and nothing is to wait behind it."""
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        (self.folder / "reason.txt").write_text(reasons[0] + more, encoding="utf-8")
        self._move("refused")

    def put_back(self) -> None:
        """Puts a record that was set aside into the spool again."""
        self._move("spool")

    def refused(self) -> "Record | None":
        """This record where it was set aside; None where it was not."""
        aside = Record(self.folder.parent.parent / "refused" / self.folder.name)
        return aside if aside.events() else None

    def _move(self, place: str) -> None:
        target = self.folder.parent.parent / place / self.folder.name
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # the lock of a courier that came too late
        self.folder.rename(target)
        self.folder = target

    def remove(self) -> None:
        """Drops the record, which MLflow now holds."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def complain(self, error: OSError) -> None:
        """Says once, in one line, that this record is not complete."""
        if not self._complained:
            print(f"tracking: the record of the run cannot be written ({error}); the stage goes on without it", file=sys.stderr)
            self._complained = True


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a line that says more than that; a long one keeps its ends, for the cause often stands last."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:99]} … {line[-98:]}"


def _link(source: Path, target: Path) -> None:
    """`source` as `target`; a hard link keeps the bytes for free, as files here are replaced and never written in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
