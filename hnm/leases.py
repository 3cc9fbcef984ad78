"""Leases, by which each process that works with a folder of results protects those that it uses.

A lease is a file in `.hnm-leases` that its process keeps locked as long as it lives, with the names
of the results that it uses, one a line. The lock vanishes with the process, however it ends, and
with it the lease counts for nothing. A process names a result before it looks whether it is there,
under the folder's lock; who removes results holds that lock alone while it reads the leases and
removes. So whichever comes first, a result is either seen to be gone or stays.

Where a folder belongs to another user, or its file system knows no locks, there are no leases, and
nobody is stopped.
"""

import atexit
import contextlib
import errno
import fcntl
import os
import re
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from hnm.failpoints import failpoint

FOLDER = ".hnm-leases"
LOCK = ".hnm-lock"
_NAME = re.compile(r"(\d+)-[0-9a-f]{32}")
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lease:
    """This process's lease in `root`; it ends with the process."""

    def __init__(self, root: Path) -> None:
        folder = root / FOLDER
        failpoint("lease.making", folder)
        folder.mkdir(exist_ok=True)
        self._root = root
        with locked(root, alone=True):
            living(root)  # those of the dead go
            unnamed = folder / uuid.uuid4().hex
            self._handle = os.open(
                unnamed, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o666
            )
            with _lockless():
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # by the file system's clock, as the times of results are
            begun_ns = os.fstat(self._handle).st_mtime_ns
            self.path = unnamed.rename(folder / f"{begun_ns}-{unnamed.name}")
        atexit.register(self._end, os.getpid())

    def name(self, results: Collection[str]) -> None:
        """Says that this process uses `results`, from now on as long as it lives."""
        with locked(self._root, alone=False):
            failpoint("lease.naming", self.path.parent)
            try:
                os.write(self._handle, "".join(f"{name}\n" for name in results).encode())
            except OSError as error:  # of the handle; it names no file
                raise OSError(error.errno, error.strerror, str(self.path)) from None

    def _end(self, process: int) -> None:
        if os.getpid() == process:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class InUse:
    """The results that living processes use."""

    names: frozenset[str]
    since: float
    """The time, in seconds of the epoch, when the oldest of these processes began to use the
    folder; it is infinite where there is none.
    """


_of_process: dict[tuple[int, Path], Lease | None] = {}


def lease_of(root: Path) -> Lease | None:
    """Returns the lease of this process in `root`, which the first call takes.

    It is None where the folder takes no leases.
    """
    key = os.getpid(), root.absolute()
    if key not in _of_process:
        try:
            _of_process[key] = Lease(root.absolute())
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            _of_process[key] = None
    return _of_process[key]


@contextlib.contextmanager
def locked(root: Path, *, alone: bool) -> Iterator[None]:
    """Holds the lock of `root`: `alone`, or beside others who do not want it alone."""
    try:
        handle = _opened(root / LOCK)
    except OSError as error:
        if error.errno not in (*_NOT_OURS, errno.ENOENT):
            raise
        yield
        return
    try:
        with _lockless():
            fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def living(root: Path) -> InUse:
    """Returns the results of the living leases, and removes the leases of dead processes.

    The caller must hold the folder's lock alone.
    """
    leases_here = {lease.path for lease in _of_process.values() if lease is not None}
    names: set[str] = set()
    since = float("inf")
    for path in sorted((root / FOLDER).glob("*")):
        begun_ns = _NAME.fullmatch(path.name)
        if begun_ns and (path in leases_here or _is_living(path)):
            since = min(since, int(begun_ns[1]) / 1e9)
            with contextlib.suppress(OSError):
                names |= set(path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return InUse(frozenset(names), since)


def _is_living(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # another user's: nobody can tell
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def _opened(lock: Path) -> int:
    common = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | common, 0o666)
    except PermissionError:
        return os.open(lock, os.O_RDONLY | common)  # another user's; it can be locked all the same


@contextlib.contextmanager
def _lockless() -> Iterator[None]:
    """Goes on without locks in a file system that has none."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
