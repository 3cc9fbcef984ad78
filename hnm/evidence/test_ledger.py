"""The ledger of test openings: who looks at the test set often enough finds a good number by
chance.

Every opening of the test labels is a line of `test_ledger.csv` at the repository's root, which git
keeps beside dvc.lock. DVC does not know the file: as a dependency it would change with each
evaluation and run the next one. What a report says of it leaves its own state out, so that the same
state evaluated twice gives the same page; the page does change when other states were looked at in
between, which is the point of it.
"""

import csv
import errno
import io
import os
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from hnm.errors import EvidenceError
from hnm.failpoints import failpoint
from hnm.names import is_printable, quoted
from hnm.rows import text_rows

LEDGER = "test_ledger.csv"
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Opening:
    """One opening of the test labels."""

    state: str
    """Digest of the scores that were held against them."""
    params: str
    """Digest of params.yaml."""
    commit: str
    """Git commit of the code; "" outside of git."""
    dirty: str
    """`true` where tracked files differed from it."""
    by: str
    """`evaluate` or `cv`."""


_COLUMNS = [field.name for field in fields(Opening)]


@dataclass(frozen=True)
class Looks:
    """How often the test labels were opened."""

    openings: int
    states: int
    """Different sets of scores that were held against them."""


def read_openings(path: Path) -> list[Opening]:
    """The openings so far, in their order; none where there is no ledger. `EvidenceError` where it
    cannot be read.
    """
    if not path.exists():
        return []
    _check_end(path)
    columns, rows = text_rows(
        path, str(path), refuse=EvidenceError, cure=_restore(path), strip=False
    )
    if not columns:
        return []
    if columns != _COLUMNS:
        raise EvidenceError(
            f"{path} is no ledger of test openings (columns {columns}){_restore(path)}"
        )
    openings = []
    for number, row in rows:
        opening = Opening(**row)
        if not (
            _DIGEST.fullmatch(opening.state)
            and _DIGEST.fullmatch(opening.params)
            and all(map(is_printable, row.values()))
        ):
            raise EvidenceError(
                f"{path}, row {number}: {quoted(','.join(row.values()))} is no opening of the test"
                f" labels{_restore(path)}"
            )
        openings.append(opening)
    return openings


def enter_opening(path: Path, opening: Opening) -> None:
    """Appends one opening in one write; a line that others append at the same time is kept.
    `EvidenceError` where the last line is torn.
    """
    _check_end(path)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    handle = os.open(
        path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666
    )
    try:
        if not os.fstat(handle).st_size:
            rows.writerow(_COLUMNS)
        rows.writerow(astuple(opening))
        failpoint("ledger.appending", path)
        line = text.getvalue().encode()
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_end(path: Path) -> None:
    """Raises `EvidenceError` where the last line has no end: a kill or a full disk tore it, and the
    next line would go on behind it.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise EvidenceError(f"{path} is no regular file{_restore(path)}")
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        if size and stream.read() != b"\n":
            raise EvidenceError(
                f"{path}: its last line is torn{_restore(path)}, or end the line if you know what"
                " it should be"
            )


def _restore(path: Path) -> str:
    return f"; restore it by git checkout {path.name}"


def looks(openings: Sequence[Opening], *, other_than: str | None = None) -> Looks:
    """How often the test labels were opened; for other states than `other_than` where it is
    named.
    """
    counted = [opening for opening in openings if opening.state != other_than]
    return Looks(len(counted), len({opening.state for opening in counted}))
