"""Storage that fails for a moment: what counts as that, and how often a slide is tried again before it goes to quarantine.

A slide is tried as a whole: were a region that storage did not give called damaged, a passing fault would make a hole
in a result that is kept.
"""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from hnm.errors import SlideError

Job = TypeVar("Job")
Result = TypeVar("Result")

PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENODEV}
    | {errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EAGAIN}
)
"""Errors of an operating system that a mount which goes and comes back gives."""
PAUSES = (1.0, 4.0, 16.0)
"""Seconds before the second try, the third, and the last."""


class StorageError(SlideError):
    """The storage of a slide failed; it may come back."""


def may_pass(error: OSError) -> bool:
    """Whether the same request may succeed later."""
    return error.errno in PASSING


def patiently(function: Callable[[Job], Result], job: Job) -> Result:
    """`function(job)`, tried again after each of `PAUSES` while storage fails; the last failure is a `StorageError`."""
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
        raise StorageError(f"{error}; {tries}", step=error.step) from None
    except OSError as error:
        if not may_pass(error):
            raise
        raise StorageError(f"its storage failed: {error.strerror}; {tries}") from None
