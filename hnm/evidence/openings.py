"""The ledger of test openings: who looks at the test set often enough finds a good number by chance.

Every opening of the test labels is a line of `test_ledger.csv` at the repository's root, which git keeps beside
dvc.lock. DVC does not know the file: as a dependency it would change with each evaluation and run the next one. What
a report says of it leaves its own state out, so that the same state evaluated twice gives the same page; the page does
change when other states were looked at in between, which is the point of it.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hnm.errors import EvidenceError

LEDGER = "test_ledger.csv"


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


@dataclass(frozen=True)
class Looks:
    """How often the test labels were opened."""

    openings: int
    states: int
    """Different sets of scores that were held against them."""


def read_openings(path: Path) -> list[Opening]:
    """The openings so far, in their order; none where there is no ledger. `EvidenceError` where it cannot be read."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        if rows.fieldnames != [field.name for field in fields(Opening)]:
            raise EvidenceError(f"{path} is no ledger of test openings (columns {rows.fieldnames}); restore it by git checkout {path.name}")
        try:
            return [Opening(**row) for row in rows]
        except TypeError:
            raise EvidenceError(f"{path}, row {rows.line_num}: has too many cells; restore it by git checkout {path.name}") from None


def enter_opening(path: Path, opening: Opening) -> None:
    """Appends one opening; a line that others append at the same time is kept."""
    with path.open("a", newline="", encoding="utf-8") as stream:
        rows = csv.DictWriter(stream, [field.name for field in fields(Opening)], lineterminator="\n")
        if not stream.tell():
            rows.writeheader()
        rows.writerow(asdict(opening))


def looks(openings: Sequence[Opening], *, other_than: str | None = None) -> Looks:
    """How often the test labels were opened; for other states than `other_than` where it is named."""
    counted = [opening for opening in openings if opening.state != other_than]
    return Looks(len(counted), len({opening.state for opening in counted}))
