"""The process that workers are forked from imports this module, and nothing else does.

A worker may begin when its pool has already ended. The pool's semaphores are gone then, and
multiprocessing would print a traceback, though nothing is lost. Such a worker ends without a word.
"""

import sys
import traceback
from types import TracebackType


def _without_late_workers(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace)]
    is_late = isinstance(error, OSError | EOFError) and modules[-1].startswith("multiprocessing.")
    if not is_late:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _without_late_workers
