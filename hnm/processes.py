"""How the processes of a run end, and what they do with memory."""

import contextlib
import ctypes
import os
import platform
import signal
import sys
from collections.abc import Iterator

_read_seconds = 0.0
"""Set once, when a worker begins: 0 is no limit."""


def die_with_parent() -> None:
    """Ends this process when the one that started it is killed; else it would go on and write its outputs later."""
    if sys.platform == "linux":
        parent, pr_set_pdeathsig = os.getppid(), 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)


def keep_freed_memory() -> None:
    """Has glibc keep the large blocks that are freed: giving each back to the kernel, and zeroing it anew, takes half of an encoder's time."""
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
    """A read that may hang in native code, which listens to no exception: where it takes longer than `limit_reads` allows, SIGALRM ends this process."""
    if not _read_seconds:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, _read_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
