"""The one reader of text tables: manifests, sample sheets, labels, ledgers, histories and every CSV
file that hnm writes.

A cell is the text that stands there. `NA`, `null`, `nan`, `None`, `007`, `1e5` and `True` mean
nothing to this reader, so that a patient of any name stays one patient. A caller that wants a
number asks for one by `integer` or `number`.
"""

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

from hnm.errors import CohortError
from hnm.files import Refuse, read_bounded
from hnm.names import quoted

MOST_BYTES = 256 << 20
MOST_ROWS = 1_000_000
UNKNOWN_WORDS = frozenset(
    {
        "",
        "-",
        "--",
        ".",
        "?",
        "#n/a",
        "<na>",
        "n.a.",
        "n/a",
        "na",
        "nan",
        "nat",
        "nil",
        "none",
        "null",
    }
    | {"missing", "not available", "not reported", "unbekannt", "undefined", "unknown"}
)
"""What people and programs (R, pandas, spreadsheets, the GDC) write where they do not know, in
small letters.
"""
_INTEGER = re.compile(r"([+-]?\d{1,19})(\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SAVE = "; save it as CSV in UTF-8"


def text_lines(
    source: Path | bytes,
    what: str,
    *,
    refuse: Refuse = CohortError,
    delimiter: str = ",",
    cure: str = "",
) -> Iterator[tuple[int, list[str]]]:
    """Yields the lines of a CSV or TSV file that are not empty, each with its number; lines may end
    as on any system.

    Args:
        source: the file, or its bytes.
        what: names it in errors.
        refuse: makes the error.
        delimiter: what stands between cells.
        cure: ends the message, in place of what the reader itself advises.

    Raises:
        HnmError: of `refuse`; it cannot be read, is not UTF-8, or no CSV; the message names the
        line.
    """
    content = (
        source
        if isinstance(source, bytes)
        else read_bounded(source, refuse, what=what, cure=cure, most=MOST_BYTES)
    )
    text = _decoded(content, what, refuse, cure)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for count, cells in enumerate((cells for cells in lines if cells), 1):
            if count > MOST_ROWS:
                raise refuse(
                    f"{what} has more than the {MOST_ROWS} rows that are read; split the cohort"
                )
            yield lines.line_num, cells
    except csv.Error as error:
        raise refuse(
            f"{what} is not CSV in UTF-8: line {lines.line_num}: {error}; a quote may be"
            f" open{cure or _SAVE}"
        ) from None


def text_rows(
    source: Path | bytes,
    what: str,
    *,
    refuse: Refuse = CohortError,
    delimiter: str = ",",
    cure: str = "",
    strip: bool = True,
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Returns the columns of a table, and its rows by column, each with its line's number;
    arguments and errors as of `text_lines`.

    Where `strip` is true, blanks around cells and names are taken away, as people leave them.
    """
    lines = text_lines(source, what, refuse=refuse, delimiter=delimiter, cure=cure)
    _, first = next(lines, (0, []))
    columns = [name.strip() for name in first] if strip else first
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise refuse(
            f"{what}: a column stands there twice: {quoted(twice)}{cure or '; remove one'}"
        )
    rows = []
    for number, cells in lines:
        if len(cells) != len(columns):
            much = "more" if len(cells) > len(columns) else "fewer"
            counts = f"({len(cells)}, not {len(columns)})"
            advice = cure or f"; quote text with {delimiter!r}"
            raise refuse(f"{what}, row {number}: has {much} cells than the header {counts}{advice}")
        texts = (cell.strip() for cell in cells) if strip else cells
        rows.append((number, dict(zip(columns, texts, strict=True))))
    return columns, rows


def is_unknown(text: str) -> bool:
    """Returns whether `text` says that something is not known: it is empty, or one of
    `UNKNOWN_WORDS`, whatever its case.
    """
    return text.strip().casefold() in UNKNOWN_WORDS


def integer(text: str) -> int | None:
    """Returns the whole number of 64 bits that `text` is, `12.0` too, as programs write counts that
    may be missing; None where it is none.
    """
    match = _INTEGER.fullmatch(text)
    value = int(match[1]) if match else None
    return value if value is not None and -(2**63) <= value < 2**63 else None


def number(text: str) -> float | None:
    """Returns the finite number that `text` is, to the last bit; None where it is none."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def _decoded(content: bytes, what: str, refuse: Refuse, cure: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise refuse(f"{what} is UTF-16, not UTF-8{cure or _SAVE}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"{what} is not CSV in UTF-8: {error}{cure or _SAVE}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise refuse(
            f"{what} is not CSV in UTF-8: line {line} holds a null character{cure or _SAVE}"
        )
    return text
