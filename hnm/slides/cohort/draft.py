"""The draft of a manifest, from what a cohort looks like on a disk.

One slide that cannot be taken stops none of the others. What a whole cohort hangs on, such as its
sheet, is an error.
"""

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import CohortError
from hnm.files import read_bounded, whole
from hnm.names import is_printable
from hnm.rows import MOST_BYTES, text_rows
from hnm.slides.cohort.folder import LeftOut
from hnm.slides.cohort.manifest import (
    LONGEST_PATH,
    OPTIONAL,
    REQUIRED,
    ManifestRow,
    read_manifest,
)


@dataclass(frozen=True)
class DraftManifest:
    """The slides of a folder, as rows of a manifest."""

    rows: list[ManifestRow]
    """With absolute paths."""
    notes: list[str]
    """What a person should know of them."""
    left_out: LeftOut


def drafted(
    rows: Sequence[ManifestRow], notes: Sequence[str], left_out: LeftOut, nothing: str
) -> DraftManifest:
    """Returns the draft without slides that no manifest can hold.

    Raises:
        CohortError: no slide is left; the message begins with `nothing`.
    """
    writable = []
    for row in rows:
        if is_printable(row.path) and len(row.path) <= LONGEST_PATH:
            writable.append(row)
        else:
            left_out.add(
                row.path, f"its path is no UTF-8 of one line of at most {LONGEST_PATH} characters"
            )
    if not writable:
        raise CohortError("\n  ".join([nothing, *left_out.lines()]))
    labels = {row.label for row in writable}
    if len(labels) == 1:
        notes = [*notes, f"all slides have label {labels.pop()}, but a cohort needs both"]
    return DraftManifest(writable, list(notes), left_out)


def write_manifest(rows: Collection[ManifestRow], path: Path) -> None:
    """Writes the manifest, and reads it back to check it; places under its folder become relative
    to it.
    """
    folder = path.parent.absolute()
    records = [
        {
            **vars(row),
            "path": _place(row.path, folder),
            "annotation": _place(row.annotation, folder) if row.annotation else "",
        }
        for row in rows
    ]
    columns = [*REQUIRED, *(name for name in OPTIONAL if any(row[name] for row in records))]
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(records)
    read_manifest(path)


def sheet_rows(
    path: Path, columns: Sequence[str], delimiter: str = ","
) -> list[tuple[int, dict[str, str]]]:
    """Returns the rows of a table that somebody else wrote, each with its line's number.

    Raises:
        CohortError: it is no table, or has no rows, or lacks one of `columns`.
    """
    content = read_bounded(
        path, CohortError, what=str(path), cure="; name a table of text", most=MOST_BYTES
    )
    header, rows = text_rows(content, str(path), delimiter=delimiter)
    if not rows or not set(columns) <= set(header):
        raise CohortError(
            f"{path} needs rows and the columns {', '.join(columns)}; it has"
            f" {', '.join(header) if rows else 'no rows'}"
        )
    return rows


def _place(file: str, folder: Path) -> str:
    full = Path(file).absolute()
    if not is_printable(str(full)):
        raise CohortError(
            f"{str(full)!r}: this path is not UTF-8 of one line, so that no manifest can hold it;"
            " rename the file or its folders"
        )
    relative = full.relative_to(folder).as_posix() if full.is_relative_to(folder) else str(full)
    # Readers take blanks around a cell away.
    return relative if relative == relative.strip() else str(full)
