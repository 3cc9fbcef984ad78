"""Standard output and standard error of a run.

Where they cannot be written, the words are lost, and never the work.
"""

import contextlib
import errno
import io
import os
import select
import sys
from pathlib import Path
from typing import Any


class _Forgiving(io.RawIOBase):
    """A stream that drops its bytes once nobody takes them any more."""

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
                # another program has made it a stream that does not wait
                select.select([], [self._raw], [])
            except OSError as error:
                self._lost = True
                if not self._everything and error.errno != errno.EPIPE:
                    raise
        return len(content)


def forgive_output(*, everything: bool) -> None:
    """Lets the run go on after a closed pipe (`hnm … | head`) or characters that a terminal lacks.

    Args:
        everything: whether it also goes on after a full disk or a lost terminal. Stages do, whose
            output is mere news of them.
    """
    sys.stdout = _forgiving(sys.stdout, sys.__stdout__, everything)
    sys.stderr = _forgiving(sys.stderr, sys.__stderr__, everything=True)  # nowhere else to say it


def say(line: str) -> None:
    """Writes a line for people on standard error, where that can be written."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
        print(line, file=sys.stderr, flush=True)


def _forgiving(stream: Any, first: Any, everything: bool) -> Any:
    if stream is None:  # the program was started with it closed
        return Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")
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
