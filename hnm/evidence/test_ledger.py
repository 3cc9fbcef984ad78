"""The test ledger: who looks at the test set often enough finds a good number by chance.

Every opening of the test labels is a line of `test_ledger.csv` at the repository's root, which git
keeps beside dvc.lock. DVC does not know the file: as a dependency it would change with each
evaluation and run the next one. A report leaves its state's entries out, so that the same state
evaluated twice gives the same page; the page does change when other states were looked at in
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
class LedgerEntry:
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


_COLUMNS = [field.name for field in fields(LedgerEntry)]


@dataclass(frozen=True)
class Looks:
    """How often the test labels were opened."""

    times: int
    states: int
    """Different sets of scores that were held against them."""


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Returns the entries in their order; none where there is no ledger.

    Raises:
        EvidenceError: it cannot be read.
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
    entries = []
    for number, row in rows:
        entry = LedgerEntry(**row)
        digests = (entry.state, entry.params)
        if not (all(map(_DIGEST.fullmatch, digests)) and all(map(is_printable, row.values()))):
            raise EvidenceError(
                f"{path}, row {number}: {quoted(','.join(row.values()))} is no opening of the test"
                f" labels{_restore(path)}"
            )
        entries.append(entry)
    return entries


def enter(path: Path, entry: LedgerEntry) -> None:
    """Appends one entry in one write; a line that others append at the same time stays whole.

    Raises:
        EvidenceError: the last line is torn.
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
        rows.writerow(astuple(entry))
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


def looks(ledger: Sequence[LedgerEntry], *, other_than: str | None = None) -> Looks:
    """Returns how often the test labels were opened, for states other than `other_than` where it is
    given.
    """
    states = [entry.state for entry in ledger if entry.state != other_than]
    return Looks(len(states), len(set(states)))
