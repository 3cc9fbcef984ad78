"""What fails while a slide is read: whose fault it is, and what may pass.

Three kinds of error come out of reading a slide:

- `SlideError` is what the slide itself is: damaged, no slide at all, without tissue. It goes to
  quarantine.
- `StorageError` is storage that fails for a moment, as a mount that goes and comes back.
  `patiently` tries the slide again
  at once, as a whole: were a region that storage did not give called damaged, a passing fault would
  make a hole in a result that is kept.
- `MachineError` is all else that is no property of the slide: no right to read, too little memory,
  too many open files, a
  full disk, a folder that is not mounted, a file that changed meanwhile (`ChangedError`).
  `StorageError` is one of them.

`hnm.slides.workers.each` tries a slide that failed for the machine once more, alone, when all
others are done, and then fails with the names of all that failed again. None of them goes to
quarantine, for then the stage would end well without them.
"""

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hnm.errors import HnmError, MachineError, SlideError, error_of_machine

Job = TypeVar("Job")
Result = TypeVar("Result")

PASSING = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENODEV,
    }
    | {errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EAGAIN}
)
"""Errors of an operating system that a mount which goes and comes back gives."""
OF_THE_MACHINE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EDQUOT,
    }
)
"""Errors that do not pass by themselves, and that no file is the cause of."""
OF_THE_PATH = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.EINVAL}
)
"""Errors of what the manifest names: there is no such file."""
PAUSES = (1.0, 4.0, 16.0)
"""Seconds before the second try, the third, and the last."""
MOST_WORDS = 300
"""Characters of a library's message that are handed on: it may quote a file."""


class StorageError(MachineError):
    """The storage of a slide failed; it may come back."""


class ChangedError(MachineError):
    """A file is not the one any more whose fingerprint or digest names the result."""


def may_pass(error: OSError) -> bool:
    """Whether the same request may succeed later."""
    return error.errno in PASSING


def patiently(function: Callable[[Job], Result], job: Job) -> Result:
    """`function(job)`, tried again after each of `PAUSES` while storage fails; the last failure is
    a `StorageError`.
    """
    for pause in PAUSES:
        try:
            return function(job)
        except StorageError:
            time.sleep(pause)
        except OSError as error:
            if not may_pass(error):
                raise
            time.sleep(pause)
    tries = f"tried {len(PAUSES) + 1} times"
    try:
        return function(job)
    except StorageError as error:
        raise StorageError(f"{error}; {tries}") from None
    except OSError as error:
        if not may_pass(error):
            raise
        raise StorageError(f"its storage failed: {error.strerror}; {tries}") from None


def check_file(path: Path, thing: str, *, step: str = "open", cure: str = "") -> None:
    """Raises unless `path` is a regular file that may be read now; a named pipe, on which a library
    would wait for ever, is none.

    Args:
        path: of a slide or of what belongs to one.
        thing: how a message calls it.
        step: of the `SlideError`.
        cure: ends the message of the `SlideError`.

    Raises:
        SlideError: there is no such file, or it is a folder, a pipe, a device or a socket.
        MachineError: its folder is missing or empty, as that of a mount which is away; it may not
        be read.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            return
    except ValueError:  # a null character
        raise SlideError(f"{thing} has a name that no file can have{cure}", step) from None
    except OSError as error:
        raise error_of(error, path, thing, step=step, cure=cure) from None
    raise SlideError(f"{thing} is no regular file but a {_kind_of(kind)}{cure}", step)


def error_of(
    error: OSError, path: Path, thing: str, *, step: str = "open", cure: str = ""
) -> HnmError:
    """What the system says of the file `path`, as an error of the slide or of the machine; the
    arguments are those of `check_file`.
    """
    reason = error.strerror or str(error)
    if may_pass(error):
        return StorageError(f"{thing} cannot be read: {reason}")
    if error.errno in OF_THE_PATH:
        if error.errno == errno.ENOENT and _is_away(path.parent):
            return MachineError(
                f"{thing} is not there, and its folder is missing or empty; mount"
                f" it{cure or ', or correct the path'}"
            )
        said = "does not exist" if error.errno == errno.ENOENT else f"cannot be read: {reason}"
        return SlideError(f"{thing} {said}{cure}", step)
    return error_of_machine(OSError(error.errno, reason, thing)) or MachineError(
        f"{thing} cannot be read: {reason}"
    )


def error_in_words(text: str) -> MachineError | None:
    """What a library without codes says, where it hands on the words of the operating system for a
    fault of storage or machine; None otherwise.
    """
    if any(words in text for words in ("I/O error", *map(os.strerror, PASSING))):
        return StorageError(text)
    if any(os.strerror(code) in text for code in OF_THE_MACHINE):
        return MachineError(text)
    return None


def shown(path: Path) -> str:
    """The name of a file as any terminal and any CSV can show it: a name may hold bytes that are no
    UTF-8, and line breaks.
    """
    return _shortened(one_line(os.fsencode(path.name).decode("utf-8", "backslashreplace")))


def words_of(message: str) -> str:
    """A library's message, which may quote a file, as one line that is not long."""
    return _shortened(one_line(message))


def one_line(text: str) -> str:
    """`text` with a space for all that does not print."""
    return "".join(character if character.isprintable() else " " for character in text)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_WORDS else f"{text[:MOST_WORDS]}…"


def _is_away(folder: Path) -> bool:
    """Whether `folder` is missing or empty, as the place of a mount is while the mount is away."""
    try:
        return not any(folder.iterdir())
    except OSError:
        return True


def _kind_of(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "named pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
    )
    return next((name for is_of, name in kinds if is_of(mode)), "thing of another kind")
