"""Files that this process must not open: while a study runs, the truth of the test split.

The seal is a guard against mistakes, not against intent. It sees what Python's own `open` and
`os.open` open, and with them whatever is built on those: pathlib, `csv`, `json`, pandas where it
reads text, and every reader of this project. It tells files by inode, so that a link of either kind
is the same file. It cannot hold

- libraries that open a path by themselves, in C: pyarrow, h5py, OpenSlide, SQLite;
- child processes, unless they were forked inside the block without a new program;
- a copy of the bytes elsewhere, such as DVC's cache where files are copied there and not linked;
- a path that `os.open` counts from `dir_fd`, and a file that was open before.

What keeps the truth out of studies is that no step of the loop is given its path; the seal tells
when that is no longer so.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnm.errors import StudyError


@dataclass(frozen=True, eq=False)
class _Seal:
    """What one block has closed."""

    paths: frozenset[str]
    """The real paths of what is closed; also of files that are made there later."""
    inodes: frozenset[tuple[int, int]]
    """Device and inode of each file that was there."""


_seals: tuple[_Seal, ...] = ()
"""Of all blocks that run now, in every thread; replaced as a whole, so that a hook never sees it
half changed.
"""
_changing = threading.Lock()
_hooks: list[str] = []
"""An audit hook stays for the life of the process: it is added once."""


@contextlib.contextmanager
def sealed(paths: Sequence[Path]) -> Iterator[None]:
    """Inside the block, whoever opens one of `paths`, or a file below it, gets a `StudyError`; in
    every thread, by any link.

    Blocks may lie in each other or overlap in several threads: what one has closed opens when no
    block closes it any more. The docstring of the module says what a seal cannot hold.
    """
    global _seals
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    seal = _Seal(
        frozenset(os.path.realpath(path) for path in paths),
        frozenset(_inode(file) for file in files),
    )
    with _changing:
        if not _hooks:
            sys.addaudithook(_refuse)
            _hooks.append("open")
        _seals = (*_seals, seal)
    try:
        yield
    finally:
        with _changing:
            _seals = tuple(other for other in _seals if other is not seal)


def _inode(file: Path | str | bytes | int) -> tuple[int, int]:
    status = os.stat(file)  # noqa: PTH116 - the number of an open file is no path
    return status.st_dev, status.st_ino


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _seals:
        return
    seals, file = _seals, arguments[0]
    if isinstance(file, os.PathLike):
        file = os.fspath(file)
    if not isinstance(file, str | bytes | int):
        return
    with contextlib.suppress(OSError, ValueError):  # no such file, which `open` itself says
        if any(_inode(file) in seal.inodes for seal in seals):
            raise _error(file)
    if not isinstance(file, int):
        path = os.path.realpath(os.fsdecode(file))
        if any(
            path == closed or path.startswith(closed + os.sep)
            for seal in seals
            for closed in seal.paths
        ):
            raise _error(path)


def _error(file: str | bytes | int) -> StudyError:
    name = f"the open file {file}" if isinstance(file, int) else os.path.realpath(os.fsdecode(file))
    return StudyError(
        f"{name} holds the truth of the test split, which a study must not see; only the stage"
        " evaluate reads it"
    )
