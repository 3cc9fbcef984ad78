"""Tables of text that a person wrote: manifests, sample sheets and lists of labels, read in one way and within bounds."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from hnm.errors import CohortError
from hnm.files import read_bounded
from hnm.names import quoted

MOST_BYTES = 256 << 20
MOST_ROWS = 1_000_000
_SAVE = "save it as CSV in UTF-8"


def text_lines(path: Path, what: str, *, delimiter: str = ",", cure: str = "") -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV or TSV file that are not empty, each with its number; lines may end as on any system.

    Args:
        path: of the file.
        what: names it in errors.
        delimiter: what stands between cells.
        cure: ends the message where the file cannot be read at all.

    Raises:
        CohortError: it cannot be read, is not UTF-8, or no CSV; the message names the line.
    """
    content = read_bounded(path, CohortError, what=what, cure=cure, most=MOST_BYTES)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CohortError(f"{what} is UTF-16, not UTF-8; {_SAVE}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CohortError(f"{what} is not CSV in UTF-8: {error}; {_SAVE}") from None
    if "\0" in text:
        raise CohortError(f"{what} is not CSV in UTF-8: line {text.count(chr(10), 0, text.index(chr(0))) + 1} holds a null character; {_SAVE}")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for count, cells in enumerate((cells for cells in lines if cells), 1):
            if count > MOST_ROWS:
                raise CohortError(f"{what} has more than the {MOST_ROWS} rows that are read; split the cohort")
            yield lines.line_num, cells
    except csv.Error as error:
        raise CohortError(f"{what} is not CSV in UTF-8: line {lines.line_num}: {error}; a quote may be open: {_SAVE}") from None


def text_rows(path: Path, what: str, *, delimiter: str = ",", cure: str = "") -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a table, and its rows by column, each with its line's number and without blanks around cells; errors as of `text_lines`."""
    lines = text_lines(path, what, delimiter=delimiter, cure=cure)
    _, first = next(lines, (0, []))
    columns = [column.strip() for column in first]
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise CohortError(f"{what}: a column stands there twice: {quoted(twice)}; remove one")
    rows = []
    for number, cells in lines:
        if len(cells) != len(columns):
            much = "more" if len(cells) > len(columns) else "fewer"
            raise CohortError(f"{what}, row {number}: has {much} cells than the header ({len(cells)}, not {len(columns)}); quote text with {delimiter!r}")
        rows.append((number, dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    return columns, rows
