"""Points at which a test makes a run fail: off unless the environment variable HNM_FAILPOINT names
one.

`HNM_FAILPOINT=whole.renaming=kill` kills the process the first time that it reaches the point
`whole.renaming`; `whole.renaming:*.h5=ENOSPC@3` raises that error of the operating system the third
time that it reaches it with a file of that name. An error is raised again at each later time, as a
full disk stays full; several points are separated by commas.
"""

import errno
import os
import signal
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

VARIABLE = "HNM_FAILPOINT"
LOG = "HNM_FAILPOINT_LOG"
"""The environment variable that names a file, which gets a line for each point that is reached: its
name and the file's.
"""
_reached: Counter[str] = Counter()


def failpoint(name: str, path: Path | None = None) -> None:
    """Does here what HNM_FAILPOINT asks for at the point `name`; nothing by default.

    Args:
        name: of the point, as `whole.renaming`.
        path: the file that is worked on; a rule may name it by a pattern.
    """
    if log := os.environ.get(LOG):
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(f"{name}\t{path.name if path else ''}\n")
    if not (rules := os.environ.get(VARIABLE)):
        return
    for rule in rules.split(","):
        place, _, action = rule.strip().partition("=")
        point, _, pattern = place.partition(":")
        if point != name or (pattern and (path is None or not fnmatch(path.name, pattern))):
            continue
        action, _, count = action.partition("@")
        _reached[rule] += 1
        if _reached[rule] < int(count or 1):
            continue
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, action)
        raise OSError(code, os.strerror(code), None if path is None else str(path))
