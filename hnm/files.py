"""Files: written whole or not at all, read within bounds, and told apart by digests.

What a stranger wrote is read by `read_bounded` and `parse_json`: only regular files, only so many
bytes, and every way in which they can be wrong is one error of the caller's kind.
"""

import contextlib
import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hnm.errors import REMAKE, HnmError, code_of_machine
from hnm.failpoints import failpoint

TEMPORARY = ".hnm-tmp-"
"""How the name of each temporary file and folder of this program begins; nothing else is ever
removed as a leftover.
"""
MOST_JSON_BYTES = 512 << 20

Refuse = Callable[[str], HnmError]
"""A kind of error, or what makes one from a message."""


def temporary_beside(path: Path) -> Path:
    """Returns a name beside `path` that nothing has yet, of this program's temporary ones, with the
    suffix of `path`.
    """
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{path.suffix}")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which becomes `path` when the block ends well and
    vanishes when it does not; its mode is the umask's.

    Raises:
        OSError: the disk refuses it, whatever kind of exception the library that writes makes of
        that; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        failpoint("whole.creating", path)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        failpoint("whole.writing", path)
        yield temporary
        failpoint("whole.syncing", path)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        failpoint("whole.renaming", path)
        temporary.replace(path)
        failpoint("whole.renamed", path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error says more
            temporary.unlink(missing_ok=True)
        if (refused := _refused_by_disk(error, temporary)) is not None:
            raise OSError(refused, os.strerror(refused), str(path)) from error
        raise


def write_json(value: Any, path: Path) -> None:
    """`value` as `json_text`, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """Returns `value` as JSON with sorted keys, so that equal values are equal bytes; NaN is
    refused.
    """
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_json(path: Path, kind: type[HnmError]) -> Any:
    """Returns the JSON value at `path`, which a stage has written; raises `kind` when it is missing
    or torn.
    """
    if not path.exists():
        raise kind(f"{path} does not exist; run the stage that makes it (dvc repro)")
    cure = f"; {REMAKE}"
    return parse_json(
        read_bounded(path, kind, what=str(path), cure=cure), kind, what=str(path), cure=cure
    )


def read_bounded(
    path: Path, kind: Refuse, *, what: str, cure: str = "", most: int = MOST_JSON_BYTES
) -> bytes:
    """Returns the bytes of a regular file of at most `most` bytes.

    Args:
        path: is opened without waiting, so that a named pipe does not hang.
        kind: makes the error where it is missing, no regular file, too large or unreadable.
        what: names the file in the error.
        cure: ends the message.
        most: bytes.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise kind(f"{what} cannot be read: {_reason(error)}{cure}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise kind(f"{what} is no regular file{cure}")
        if status.st_size > most:
            raise kind(
                f"{what} has {status.st_size} bytes, more than the {most} that are read{cure}"
            )
        with os.fdopen(handle, "rb", closefd=False) as stream:
            content = stream.read(
                min(most, status.st_size) + 1
            )  # Python asks for as much memory as it is told to read
    except OSError as error:
        raise kind(f"{what} cannot be read: {_reason(error)}{cure}") from None
    finally:
        os.close(handle)
    if len(content) > most:
        raise kind(f"{what} has more than the {most} bytes that are read{cure}")
    return content


def parse_json(content: bytes, kind: Refuse, *, what: str, cure: str = "") -> Any:
    """Returns the JSON value in `content`; `kind` where it is none, is nested too deep, or holds a
    number that is not finite.
    """
    try:
        return json.loads(
            content.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise kind(f"{what} is nested too deep to be read{cure}") from None
    except ValueError as error:  # of UTF-8, of JSON, and of numbers with thousands of digits
        raise kind(f"{what} is not JSON: {error}{cure}") from None


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, or of a folder's files with their names; temporary
    files that a kill has left are none of them.
    """
    if path.is_dir():
        files = (
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and not file.name.startswith(TEMPORARY)
        )
        return key_of(files={file.relative_to(path).as_posix(): digest_of(file) for file in files})
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def key_of(**causes: Any) -> str:
    """Returns the key of a result from all that can change it: JSON-ready values by name."""
    return hashlib.sha256(json.dumps(causes, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _refused_by_disk(error: BaseException, temporary: Path) -> int | None:
    """Returns the errno of what the operating system refused while `temporary` was written; None
    where it refused something else, or nothing.
    """
    if not isinstance(error, Exception) or isinstance(error, HnmError | MemoryError):
        return None
    other = getattr(error, "filename", None)
    if other is not None and str(other) != str(temporary):
        return None
    return code_of_machine(error)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
