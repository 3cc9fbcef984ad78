"""Imported by the process that workers are forked from, and by nothing else: a worker that begins
when its pool has ended already ends without a word.

The pool's semaphores are gone then, which multiprocessing would print as a traceback, though
nothing is lost.
"""

import sys
from types import TracebackType


def _without_late_beginners(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    if not (isinstance(error, OSError | EOFError) and place.startswith("multiprocessing.")):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _without_late_beginners
