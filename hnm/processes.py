"""How the processes of a run end, and what they do with memory."""

import contextlib
import ctypes
import multiprocessing
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import wait
from types import FrameType, TracebackType
from typing import NoReturn

from hnm.errors import HnmError, error_of_machine
from hnm.output import say
from hnm.redaction import redacted

STAGE_GOES_ON = "what was finished is kept, and the same command (dvc repro) goes on"
"""What a stage that is interrupted says of itself."""
_read_seconds = 0.0
"""Set once, when a worker begins: 0 is no limit."""


def die_with_parent() -> None:
    """Ends this process when the one that started it is killed; else it would go on and write its
    outputs later.

    To Linux the parent of a worker is the server that forked it, which itself lives as long as any
    worker does; so a worker watches the process that asked for it, too.
    """
    if (asked_by := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=[asked_by.sentinel], daemon=True).start()
    if sys.platform == "linux":
        parent, pr_set_pdeathsig = os.getppid(), 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: a scheduler, `kill` or a closed terminal asks this process to end; it ends
    as by Ctrl-C.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def ending_in_a_line(
    going_on: str, *, passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Whatever ends the block early ends the process with one line on standard error; a defect
    keeps its traceback, without secrets.

    Exit codes: 1 for errors; of a signal 128 and its number, as shells have it: 130 for Ctrl-C, 143
    for SIGTERM.

    Args:
        going_on: what is said of what was finished, after an interrupt.
        passing: what is none of its business.
    """
    with _signals_as_exceptions():
        try:
            with _flushed():
                yield
        except BaseException as error:
            if isinstance(error, (SystemExit, GeneratorExit, *passing)):
                raise
            end_by(error, going_on)


def end_by(error: BaseException, going_on: str) -> NoReturn:
    """Ends this process for `error`, as `ending_in_a_line` says."""
    say(line_of(error, going_on))
    number = error.number if isinstance(error, Terminated) else signal.SIGINT
    raise SystemExit(128 + number if isinstance(error, KeyboardInterrupt) else 1) from None


def line_of(error: BaseException, going_on: str) -> str:
    """What people are told of `error`: one line, of a defect its traceback."""
    if isinstance(error, KeyboardInterrupt):
        by = signal.Signals(error.number).name if isinstance(error, Terminated) else "Ctrl-C"
        return f"interrupted ({by}); {going_on}"
    if isinstance(error, HnmError):
        return f"error: {error}"
    if (machine := error_of_machine(error)) is not None:
        return f"error: {machine}"
    return redacted("".join(traceback.format_exception(error)).rstrip())


def tell_ends(going_on: str) -> None:
    """Has `line_of` tell what ends this process or one of its threads outside of
    `ending_in_a_line`, as while libraries are imported.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        say(line_of(error, going_on))

    sys.excepthook = hook
    threading.excepthook = lambda arguments: say(
        line_of(arguments.exc_value or arguments.exc_type(), going_on)
    )


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Standard output is written whole before the block ends well, so that a disk that refuses it
    is told of while one can.
    """
    try:
        yield
    except SystemExit as end:
        if end.code:
            raise
        sys.stdout.flush()
        raise
    else:
        sys.stdout.flush()


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated`, so that files and children are cleaned up; where
    someone has them ignored (nohup) they stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) == signal.SIG_DFL
    ]
    for number in ours:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


def keep_freed_memory() -> None:
    """Has glibc keep the large blocks that are freed: giving each back to the kernel, and zeroing
    it anew, takes half of an encoder's time.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 64 * 2**20)


def limit_reads(seconds: float | None) -> None:
    """Has `one_read` end this process, a worker, after `seconds`; None is no limit."""
    global _read_seconds
    _read_seconds = seconds or 0.0


@contextlib.contextmanager
def one_read() -> Iterator[None]:
    """A read that may hang in native code, which listens to no exception: where it takes longer
    than `limit_reads` allows, SIGALRM ends this process.
    """
    if not _read_seconds:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, _read_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
