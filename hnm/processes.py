"""The processes of a run: how they begin and end, and how they use memory."""

import contextlib
import ctypes
import multiprocessing
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import wait
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn

from hnm.errors import HnmError, error_of_machine
from hnm.output import say
from hnm.redaction import redacted

if TYPE_CHECKING:
    from pebble import ProcessPool

STAGE_GOES_ON = "what was finished is kept, and the same command (dvc repro) goes on"
"""The last words of a stage that is interrupted."""
_read_seconds = 0.0
"""The time limit of one read, set when a worker begins: 0 is no limit."""


@contextlib.contextmanager
def worker_pool(
    workers: int,
    modules: Iterable[str],
    begin: Callable[..., object] | None = None,
    *arguments: object,
) -> "Iterator[ProcessPool]":
    """Yields a pool of `workers` processes, which end at once where the block fails.

    They are forked from a server process that has none of this one's threads and locks. It imports
    `modules` and this program's package, which each worker would else import anew.

    Args:
        workers: how many.
        modules: modules that the jobs need.
        begin: is called with `arguments` in each worker, before its first job.
    """
    from pebble import ProcessPool  # the command line imports this module, and starts none

    context = multiprocessing.get_context("forkserver")
    program = sys.modules["__main__"].__spec__  # of `python -m`
    packages = [program.parent] if program is not None and program.parent else []
    context.set_forkserver_preload(["hnm.fork_server", *modules, *packages])
    _start_server()
    with ProcessPool(
        max_workers=workers,
        initializer=_begin_worker,
        initargs=[begin, *arguments],
        context=context,
    ) as pool:
        try:
            yield pool
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def _start_server() -> None:
    """Starts the process that workers are forked from; it and the workers end with this process.

    It is deaf to Ctrl-C, which a terminal sends to it too.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone can set a handler
        forkserver.ensure_running()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _begin_worker(begin: Callable[..., object] | None, *arguments: object) -> None:
    die_with_parent()
    if begin is not None:
        begin(*arguments)


def die_with_parent() -> None:
    """Ends this process when the one that started it is killed.

    Else it would go on and write its outputs later. To Linux the parent of a worker is the server
    that forked it, which lives as long as any worker does; so a worker also watches the process
    that asked for it.
    """
    if (client := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=[client.sentinel], daemon=True).start()
    if sys.platform == "linux":
        parent = os.getppid()
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, by which a scheduler, `kill` or a closed terminal ends this process.

    It ends as by Ctrl-C.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def ending_in_a_line(
    going_on: str, *, passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Ends the process with one line on standard error where the block ends early.

    A defect keeps its traceback, without secrets. The exit code is 1 for errors, and 128 plus the
    number of a signal, as in shells: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        going_on: the words after an interrupt, about the work that is done.
        passing: exceptions that are let through.
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
    """Returns the line that people read about `error`; for a defect, its traceback."""
    if isinstance(error, KeyboardInterrupt):
        cause = signal.Signals(error.number).name if isinstance(error, Terminated) else "Ctrl-C"
        return f"interrupted ({cause}); {going_on}"
    expected = error if isinstance(error, HnmError) else error_of_machine(error)
    if expected is not None:
        return f"error: {expected}"
    return redacted("".join(traceback.format_exception(error)).rstrip())


def tell_ends(going_on: str) -> None:
    """Has this process and its threads end with `line_of` outside of `ending_in_a_line` too.

    They may be interrupted while libraries are imported.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        say(line_of(error, going_on))

    sys.excepthook = hook
    threading.excepthook = lambda arguments: say(
        line_of(arguments.exc_value or arguments.exc_type(), going_on)
    )


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Writes all of standard output before the block ends well.

    So a disk that refuses it is noticed while it can still be said.
    """
    try:
        yield
    except SystemExit as end:
        if not end.code:
            sys.stdout.flush()
        raise
    sys.stdout.flush()


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Has SIGTERM and SIGHUP raise `Terminated`, so that files and children are cleaned up.

    A signal that is ignored (nohup) stays so.
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
    """Has glibc keep the large blocks that are freed.

    Giving each back to the kernel, and zeroing it anew, takes half of an encoder's time.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        m_trim_threshold = -1
        m_top_pad = -2
        m_mmap_max = -4
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
    """Limits the time of a read that may hang in native code, which listens to no exception.

    Where it takes longer than `limit_reads` allows, SIGALRM ends this process.
    """
    if not _read_seconds:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, _read_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
