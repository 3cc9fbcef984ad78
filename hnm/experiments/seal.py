"""Files that this process must not open: while a study runs, the truth of the test split."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hnm.errors import StudyError

_SEALED: set[str] = set()
_HOOKS: list[str] = []
"""An audit hook stays for the life of the process: it is added once."""


@contextlib.contextmanager
def sealed(paths: Sequence[Path]) -> Iterator[None]:
    """Inside the block, whoever opens one of `paths`, or a file below it, gets a `StudyError`; in every thread, by any link."""
    if not _HOOKS:
        sys.addaudithook(_refuse)
        _HOOKS.append("open")
    own = {os.path.realpath(path) for path in paths} - _SEALED
    _SEALED.update(own)
    try:
        yield
    finally:
        _SEALED.difference_update(own)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _SEALED or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if any(path == closed or path.startswith(closed + os.sep) for closed in _SEALED):
        raise StudyError(f"{path} holds the truth of the test split, which a study must not see; only the stage evaluate reads it")
