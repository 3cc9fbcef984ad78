"""Standard output and standard error of a run: what cannot be written there costs the words, and
never the work.
"""

import contextlib
import errno
import io
import os
import select
import sys
from pathlib import Path
from typing import Any, TextIO


class _Forgiving(io.RawIOBase):
    """The bytes of a stream on their way to where nobody may want them any more."""

    def __init__(self, raw: Any, *, everything: bool) -> None:
        self._raw = raw
        self._everything = everything
        self._lost = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, content: Any) -> int:
        while not self._lost:
            try:
                if (count := self._raw.write(content)) is not None:
                    return int(count)
                select.select(
                    [], [self._raw], []
                )  # another program has made it one that does not wait
            except OSError as error:
                self._lost = True
                if not self._everything and error.errno != errno.EPIPE:
                    raise
        return len(content)


def forgive_output(*, everything: bool) -> None:
    """Has a closed pipe (`hnm … | head`) and characters that the terminal does not know end
    nothing.

    Args:
        everything: a full disk or a terminal that is gone neither; for stages, whose output is mere
        news of them.
    """
    sys.stdout = _forgiving(sys.stdout, sys.__stdout__, everything)
    sys.stderr = _forgiving(
        sys.stderr, sys.__stderr__, everything=True
    )  # where else could one say it


def say(line: str) -> None:
    """A line for people on standard error, as far as that goes."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
        print(line, file=sys.stderr, flush=True)


def _forgiving(stream: Any, first: Any, everything: bool) -> Any:
    if stream is None:  # the program was started with it closed
        return _nowhere()
    binary = getattr(stream, "buffer", None)
    raw = getattr(binary, "raw", binary)  # PYTHONUNBUFFERED leaves out what lies between
    if stream is not first or not isinstance(raw, io.FileIO):
        return stream  # a test's, or done already
    with contextlib.suppress(OSError):
        stream.flush()
    buffer = io.BufferedWriter(_Forgiving(raw, everything=everything))
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")
