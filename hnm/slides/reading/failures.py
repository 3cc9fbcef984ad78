"""Errors while a slide is read: whose fault they are, and which of them may pass.

Three kinds of error come out of reading a slide:

- `SlideError` says something of the slide itself: it is damaged, no slide at all, or without
  tissue. It goes to quarantine.
- `StorageError` is storage that fails for a moment, such as a mount that goes and comes back.
  `patiently` tries the whole slide again. Were a region that storage did not give called damaged, a
  passing fault would make a hole in a stored result.
- `MachineError` is everything else that is no property of the slide: no right to read, too little
  memory, too many open files, a full disk, a folder that is not mounted, a file that changed
  meanwhile (`ChangedError`). `StorageError` is one of them.

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
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.EAGAIN,
    }
)
"""Errors of a mount that goes and comes back: the same request may succeed later."""
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
"""Errors of a path in the manifest that names no file."""
PAUSES = (1.0, 4.0, 16.0)
"""Seconds before the second try, the third, and the last."""
MOST_CHARACTERS = 300
"""Characters of a name or of a library's message that are handed on: either may be a stranger's."""
KINDS_OF_FILE = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class StorageError(MachineError):
    """The storage of a slide failed; it may come back."""


class ChangedError(MachineError):
    """A file has changed since its fingerprint or digest, which names the result, was taken."""


def patiently(function: Callable[[Job], Result], job: Job) -> Result:
    """Returns `function(job)`, tried again after each of `PAUSES` while storage fails.

    Raises:
        StorageError: the last try failed too.
    """
    tries = 0
    while True:
        try:
            return function(job)
        except (StorageError, OSError) as error:
            if isinstance(error, OSError):
                if error.errno not in PASSING:
                    raise
                error = StorageError(f"its storage failed: {error.strerror}")
            if tries == len(PAUSES):
                raise StorageError(f"{error}; tried {tries + 1} times") from None
        time.sleep(PAUSES[tries])
        tries += 1


def check_file(path: Path, thing: str = "", *, step: str = "open", cure: str = "") -> None:
    """Raises unless `path` is a regular file that may be read now.

    A named pipe is none: a library would wait on it for ever.

    Args:
        path: the file of a slide or of what belongs to one.
        thing: how a message calls the file; without it, by its name.
        step: the step of the `SlideError`.
        cure: the end of the message of the `SlideError`.

    Raises:
        SlideError: there is no such file, or it is a folder, a pipe, a device or a socket.
        MachineError: its folder is missing or empty, as that of a mount which is away, or it may
            not be read.
    """
    thing = thing or printable_name(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            return
    except ValueError:  # a null character
        raise SlideError(f"{thing} has a name that no file can have{cure}", step) from None
    except OSError as error:
        raise error_of(error, path, thing, step=step, cure=cure) from None
    kind = KINDS_OF_FILE.get(stat.S_IFMT(mode), "thing of another kind")
    raise SlideError(f"{thing} is no regular file but a {kind}{cure}", step)


def error_of(
    error: OSError, path: Path, thing: str = "", *, step: str = "open", cure: str = ""
) -> HnmError:
    """Returns the system's error about the file `path` as an error of the slide or of the machine.

    The arguments are those of `check_file`.
    """
    thing = thing or printable_name(path)
    reason = error.strerror or str(error)
    if error.errno in PASSING:
        return StorageError(f"{thing} cannot be read: {reason}")
    if error.errno == errno.ENOENT:
        if _is_away(path.parent):
            return MachineError(
                f"{thing} is not there, and its folder is missing or empty; mount"
                f" it{cure or ', or correct the path'}"
            )
        return SlideError(f"{thing} does not exist{cure}", step)
    if error.errno in OF_THE_PATH:
        return SlideError(f"{thing} cannot be read: {reason}{cure}", step)
    return error_of_machine(OSError(error.errno, reason, thing)) or MachineError(
        f"{thing} cannot be read: {reason}"
    )


def error_in_words(text: str) -> MachineError | None:
    """Returns a library's message as an error of the machine, or None where it is none.

    Libraries without codes hand on the operating system's words for a fault of storage or machine.
    """
    if any(words in text for words in ("I/O error", *map(os.strerror, PASSING))):
        return StorageError(text)
    if any(os.strerror(code) in text for code in OF_THE_MACHINE):
        return MachineError(text)
    return None


def printable_name(path: Path) -> str:
    """Returns the name of a file as any terminal and any CSV can show it.

    A name may hold bytes that are no UTF-8, and line breaks.
    """
    return short_line(os.fsencode(path.name).decode("utf-8", "backslashreplace"))


def short_line(text: str) -> str:
    """Returns a stranger's text as one line that is not long."""
    line = one_line(text)
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}…"


def one_line(text: str) -> str:
    """Returns `text` with a space for all that does not print."""
    return "".join(character if character.isprintable() else " " for character in text)


def _is_away(folder: Path) -> bool:
    """Returns whether `folder` is missing or empty, as the place of an absent mount is."""
    try:
        return not any(folder.iterdir())
    except OSError:
        return True
