"""The tables that stages hand to each other: one schema each, checked at every read and every
write.

Columns stand in the order given here, rows in the order of the table's key, so that equal content
has equal bytes. A file is read within bounds: what it claims to hold is compared with its size and
its schema before memory is asked for.
"""

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.parquet
from pandera.errors import SchemaErrors

from hnm.errors import REMAKE, TableError, error_of_machine
from hnm.files import Refuse, whole
from hnm.names import ID, ID_WORDS, quoted
from hnm.rows import integer, number, text_rows

MOST_PER_BYTE = 16
"""Rows, or bytes once unpacked, for each byte of a parquet file. Tables of tiles have half a row
and 1.5 bytes at most, as keys are unique.
"""
SMALLEST = 1 << 20
"""Rows, or bytes, that any parquet file may hold."""
NAMED = 5
"""Columns that an error names at most."""
_DAMAGE = (
    pyarrow.ArrowException,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    AttributeError,
)
"""Errors of pyarrow on a damaged file, and of pandas on forged notes in it."""
_MISSING = {"float32": np.nan, "float64": np.nan, "Int64": pd.NA}
"""What an empty cell is, by dtype; numbers of other dtypes may not be missing."""
_RUN_BY_SPREADSHEETS = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How text begins that a spreadsheet takes for a formula, ASCII or full-width; or that does behind
quotes, so that nothing is lost on the way back.
"""


def safe_cell(text: str) -> str:
    """Returns `text` as a cell of a CSV file for people: a quote goes before what a spreadsheet
    would take for a formula and run. `plain_cell` takes it away.
    """
    return f"'{text}" if _RUN_BY_SPREADSHEETS.match(text) else text


def plain_cell(cell: str) -> str:
    """Returns the text that `safe_cell` made `cell` of."""
    return cell[1:] if cell.startswith("'") and _RUN_BY_SPREADSHEETS.match(cell) else cell


def write_csv(frame: pd.DataFrame, path: Path, float_format: Any = None) -> None:
    """Writes `frame` as CSV for people, each cell of text by `safe_cell`; `read_frame` gives the
    text back. `path` is of `whole`.
    """
    safe = _each_text(frame, safe_cell)
    returns = any(
        "\r" in cell
        for _, column in safe.items()
        if _is_text(column)
        for cell in column
        if isinstance(cell, str)
    )
    quoting: Any = (
        csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    )  # Python's csv puts no quotes around a carriage return by itself
    safe.to_csv(path, index=False, lineterminator="\n", float_format=float_format, quoting=quoting)


def read_frame(
    source: Path | bytes,
    kinds: Mapping[str, str],
    what: str,
    *,
    refuse: Refuse = TableError,
    cure: str = "",
    check: Callable[[list[str]], None] | None = None,
) -> pd.DataFrame:
    """Returns the columns `kinds` of a CSV file that `write_csv` wrote; each text and each number
    is what it was.

    Args:
        source: the file, or its bytes.
        kinds: the columns to take, and the dtype of each; other columns are left out.
        what: names the file in errors.
        refuse: makes the error.
        cure: ends its message.
        check: raises where the names of the columns are not what they should be.

    Returns:
        The columns in the order of `kinds`. An empty cell is a missing value; any other cell of a
        column of text is that text.
    """
    columns, rows = text_rows(source, what, refuse=refuse, cure=cure, strip=False)
    if check is not None:
        check(columns)
    if missing := [name for name in kinds if name not in columns]:
        raise refuse(
            f"{what}: column {missing[0]} is missing; its columns are {_shortened(columns)}{cure}"
        )
    series = {}
    for name, kind in kinds.items():
        cells = [row[name] for _, row in rows]
        values = [_value(cell, kind) for cell in cells]
        wrong = next((place for place, value in enumerate(values) if value is None), None)
        if wrong is not None:
            raise refuse(
                f"{what}: column {name}, row {wrong}: value {quoted(cells[wrong])}: must be of type"
                f" {kind.lower()}{cure}"
            )
        column = pd.Series(values, dtype=kind)
        series[name] = column.mask(column == "") if _is_text(column) else column
    return pd.DataFrame(series)


def read_numbers(
    path: Path, *, texts: Collection[str] = (), refuse: Refuse = TableError, cure: str = ""
) -> pd.DataFrame:
    """Returns all columns of a CSV file that hnm wrote, those named in `texts` as text and the
    others as numbers, whole where all of a column are; as `read_frame`.
    """
    columns, rows = text_rows(path, str(path), refuse=refuse, cure=cure, strip=False)
    kinds = dict.fromkeys(columns, "float64")
    for name in columns:
        if name in texts:
            kinds[name] = "str"
        elif rows and all(
            "." not in row[name] and integer(row[name]) is not None for _, row in rows
        ):
            kinds[name] = "int64"
    return read_frame(path, kinds, str(path), refuse=refuse, cure=cure)


def _value(cell: str, kind: str) -> Any:
    """Returns the text, number or truth value that a cell of a column of this dtype is; None where
    it is none.
    """
    if kind.startswith(("str", "object")):
        return plain_cell(cell)
    if kind == "bool":
        return {"true": True, "false": False}.get(cell.casefold())
    if not cell and kind in _MISSING:
        return _MISSING[kind]
    value = number(cell) if kind.startswith("float") else integer(cell)
    bounds = np.finfo(kind) if kind.startswith("float") else np.iinfo(kind.lower())
    return value if value is not None and bounds.min <= value <= bounds.max else None


def _is_text(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_string_dtype(column.dtype) or column.dtype == object


def _each_text(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    columns: Any = {
        name: (
            column.map(lambda cell: change(cell) if isinstance(cell, str) else cell).astype(
                column.dtype
            )
        )
        for name, column in frame.items()
        if _is_text(column)
    }
    return frame.assign(**columns)


def _one_of(*values: str | int) -> pa.Check:
    return pa.Check.isin(list(values), error=f"must be one of {', '.join(map(str, values))}")


def _all_of(pattern: str, wanted: str) -> pa.Check:
    """Returns a check that the whole text matches, a line feed at its end included, which pandera's
    `str_matches` and `$` would pass over.
    """
    return pa.Check(
        lambda column: column.str.fullmatch(pattern, na=False), error=f"must be {wanted}"
    )


SPLITS = ("train", "validation", "test")
_at_least_0 = pa.Check.ge(0, error="must be at least 0")
_at_least_1 = pa.Check.ge(1, error="must be at least 1")
_positive = pa.Check.gt(0, error="must be above 0")
_share = pa.Check.in_range(0, 1, error="must lie in [0, 1]")
_text = pa.Column(str)
_count = pa.Column("int64", _at_least_0)
_pixels = pa.Column("int64", _positive)
_number_or_none = pa.Column("Int64", _at_least_0, nullable=True)
_share_of_a_role = pa.Column("float64", _share)
_score = pa.Column("float32", _share)
_logit = pa.Column("float32")
_label = pa.Column("int64", _one_of(0, 1))
_role = pa.Column(str, _one_of("positive", "hard_negative"))
_SLIDE = {"slide_id": pa.Column(str, _all_of(ID, ID_WORDS))}
_TILE = {
    **_SLIDE,
    "tile": pa.Column("int32", _at_least_0),  # its row in the slide's pack and features
    "x": _count,  # level-0 pixels of the tile's corner
    "y": _count,
    "side": _pixels,  # level-0 pixels of the tile's side
}


@dataclass(frozen=True)
class Table:
    """A named schema with the key that orders its rows and is unique."""

    name: str
    key: tuple[str, ...]
    columns: dict[str, pa.Column]

    def check(self, frame: pd.DataFrame, where: str) -> pd.DataFrame:
        """Returns `frame` with this table's columns, sorted by its key; `TableError` names `where`,
        column, row and value.
        """
        self._check_columns(list(frame.columns), where)
        schema = pa.DataFrameSchema(self.columns, strict=True, unique=list(self.key))
        try:
            checked = schema.validate(frame[list(self.columns)], lazy=True)
        except SchemaErrors as error:
            raise TableError(f"{where}: {_sentence(error.failure_cases, self.key)}") from None
        return checked.sort_values(list(self.key), kind="stable", ignore_index=True)

    def read(self, path: Path) -> pd.DataFrame:
        """Returns the checked table at `path` (.parquet or .csv), which may come from anybody;
        whatever is wrong with it is one `TableError`.
        """
        if not path.exists():
            raise TableError(
                f"{path} does not exist, but a {self.name} table is wanted; run the stage that"
                " makes it (dvc repro)"
            )
        if not path.is_file():
            raise TableError(
                f"{path} is no regular file, but a {self.name} table is wanted; move it away and"
                " run the stage that makes it (dvc repro)"
            )
        return self.check(
            self._read_csv(path) if path.suffix == ".csv" else self._read_parquet(path), str(path)
        )

    def write(self, frame: pd.DataFrame, path: Path) -> None:
        """Writes `frame`, checked and sorted, to `path` (.parquet or .csv), whole or not at all; in
        CSV text is made safe for spreadsheets by `safe_cell`.
        """
        checked = self.check(frame, str(path))
        with whole(path) as temporary:
            if path.suffix == ".csv":
                write_csv(checked, temporary)
            else:
                checked.to_parquet(temporary, index=False)

    def _check_columns(self, names: Sequence[str], where: str) -> None:
        missing = [column for column in self.columns if column not in names]
        extra = [str(column) for column in names if column not in self.columns]
        twice = [column for column in self.columns if list(names).count(column) > 1]
        faults = [
            f"{kind} columns {_shortened(columns)}"
            for kind, columns in (("missing", missing), ("unknown", extra), ("doubled", twice))
            if columns
        ]
        if faults:
            raise TableError(f"{where} is no {self.name} table: {'; '.join(faults)}")

    def _read_csv(self, path: Path) -> pd.DataFrame:
        kinds = {name: str(column.dtype) for name, column in self.columns.items()}
        return read_frame(
            path, kinds, str(path), check=lambda names: self._check_columns(names, str(path))
        )

    def _read_parquet(self, path: Path) -> pd.DataFrame:
        cure = f"; {REMAKE}; of another project, bring it anew from where it was made"
        try:
            with (
                path.open("rb") as stream,
                pyarrow.parquet.ParquetFile(
                    stream, thrift_string_size_limit=10 << 20, thrift_container_size_limit=1 << 20
                ) as file,
            ):
                fault = self._fault(file, path, path.stat().st_size)
                if fault is None:
                    frame: pd.DataFrame = file.read(use_threads=False).to_pandas()
                    return frame
        except MemoryError:
            fault = "it asks for more memory than there is"
        except _DAMAGE as error:
            if isinstance(error, OSError) and error_of_machine(error) is not None:
                raise
            fault = next(iter(str(error).splitlines()), type(error).__name__)
        raise TableError(f"{path} is no parquet table that can be read ({fault}){cure}")

    def _fault(self, file: pyarrow.parquet.ParquetFile, path: Path, size: int) -> str | None:
        """Returns what is wrong with a parquet file of `size` bytes by what it says of itself,
        before anything of it is unpacked; None where nothing is.
        """
        schema = file.schema_arrow
        most = max(SMALLEST, MOST_PER_BYTE * size)
        self._check_columns(schema.names[: 2 * len(self.columns)], str(path))
        if wrong := [field.name for field in schema if not _is_plain(field.type)]:
            return (
                f"its columns {_shortened(wrong)} hold no plain text or numbers, but"
                f" {str(schema.field(wrong[0]).type)[:60]}"
            )
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        unpacked = sum(
            abs(group.total_byte_size) for group in groups
        )  # pyarrow ends the process where it describes a forged column
        rows = file.metadata.num_rows
        if not 0 <= rows == sum(group.num_rows for group in groups):
            return "its numbers of rows contradict each other"
        if rows > most or unpacked > most:
            return (
                f"its {size} bytes claim to hold {rows} rows of {unpacked} bytes, more than"
                f" {MOST_PER_BYTE} for each byte"
            )
        return None

    def frame(self, columns: Mapping[str, Any]) -> pd.DataFrame:
        """Returns rows of this table from a column each; one value is that of all rows. They are
        checked when they are written.
        """
        return pd.DataFrame(columns)

    def empty(self) -> pd.DataFrame:
        """Returns this table without rows."""
        return pd.DataFrame(
            {name: pd.Series(dtype=str(column.dtype)) for name, column in self.columns.items()}
        )


def _is_plain(kind: pyarrow.DataType) -> bool:
    """Returns whether a column of parquet holds text, numbers, or nothing at all."""
    types = pyarrow.types
    return any(
        test(kind)
        for test in (
            types.is_string,
            types.is_large_string,
            types.is_integer,
            types.is_floating,
            types.is_boolean,
            types.is_null,
        )
    )


def _shortened(names: Sequence[str]) -> str:
    """Returns the first `names` as a list, and how many more there are."""
    short = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:NAMED]]
    return f"{short}" + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _sentence(failures: pd.DataFrame, key: tuple[str, ...]) -> str:
    """Returns the first of pandera's failure cases as a sentence."""
    first = failures.iloc[0]
    value = first["failure_case"]
    if isinstance(value, np.generic):
        value = value.item()
    row = "" if pd.isna(first["index"]) else f", row {int(first['index'])}"
    wanted = {
        "not_nullable": "must not be empty",
        "multiple_fields_uniqueness": f"must be unique ({', '.join(key)})",
    }.get(first["check"], first["check"])
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return (
        f"column {first['column']}{row}: value {value!r}:"
        f" {wanted.replace('dtype', 'must be of type')}{more}"
    )


SLIDES = Table(
    "slides",
    ("slide_id",),
    {
        **_SLIDE,
        "path": _text,  # as in the manifest: relative ones count from its folder
        "patient_id": _text,
        "split": pa.Column(str, _one_of(*SPLITS)),
        "vendor": _text,
        "mpp_x": pa.Column("float64", _positive),
        "mpp_y": pa.Column("float64", _positive),
        "width": _pixels,  # of level 0, as all that follow
        "height": _pixels,
        # the scan, from whose corner QuPath counts; all of level 0 where the file states no bounds
        "bounds_x": _count,
        "bounds_y": _count,
        "bounds_width": _pixels,
        "bounds_height": _pixels,
        # cohort.origin: the corner that drawings count from which do not say it themselves
        "origin": pa.Column(str, _one_of("auto", "level_0", "bounds")),
        "fingerprint": _text,  # of the file: size, header, OpenSlide's quickhash
        "mask": _text,  # a tissue mask from elsewhere, as in the manifest; "" for none
        "mask_digest": _text,
    },
)
"""The checked cohort. It holds no labels: those are one file a split."""

PATIENTS = Table("patients", ("slide_id",), {**_SLIDE, "patient_id": _text})
"""The patient of each slide. Heads depend on this table and not on `SLIDES`, so a changed
fingerprint does not retrain them.
"""

LABELS = Table("labels", ("slide_id",), {**_SLIDE, "label": _label})

QUARANTINE = Table(
    "quarantine",
    ("slide_id",),
    {
        **_SLIDE,
        "step": pa.Column(str, _one_of("open", "mpp", "tissue", "tiles")),
        "reason": _text,
    },
)
"""Slides that cannot be used, the step that they failed, and why."""

TILES = Table("tiles", ("slide_id", "tile"), {**_TILE, "tissue": pa.Column("float32", _share)})

PACKS = Table(
    "packs",
    ("slide_id",),
    {
        **_SLIDE,
        "bytes": pa.Column("int64", _positive),
        "sha256": pa.Column(str, _all_of("[0-9a-f]{64}", "64 hexadecimal digits")),
    },
)
"""The packs of a cohort, each with its size and the digest of its bytes, so that no later stage has
to hash them.
"""

TILE_SCORES = Table(
    "tile scores",
    ("slide_id", "tile"),
    {**_TILE, "logit": _logit, "score": _score, "attention": _score},
)

SLIDE_SCORES = Table("slide scores", ("slide_id",), {**_SLIDE, "logit": _logit, "score": _score})

VETOES = Table(
    "vetoes",
    ("slide_id", "tile", "x", "y"),
    {
        **_SLIDE,
        "tile": _number_or_none,  # its number, or else:
        "x": _number_or_none,  # a point in it, in level-0 pixels
        "y": _number_or_none,
        "reason": _text,
    },
)
"""Tiles that a person does not want mined."""

MINED = Table(
    "mined tiles",
    ("role", "rank"),
    {
        "role": _role,
        "rank": pa.Column("int32", _at_least_1),  # 1 is the best-scoring of its role
        **_TILE,
        "score": _score,
        "logit": _logit,
        "round": pa.Column("int32", _at_least_1),
        "policy": pa.Column(str, _one_of("hard", "semi_hard", "mixed", "random", "all")),
        # digest of the scores that were mined
        "scorer": pa.Column(str, _all_of("[0-9a-f]{16}", "16 hexadecimal digits")),
    },
)

PASSED_OVER = Table(
    "passed-over tiles",
    ("role", "slide_id", "tile"),
    {
        "role": _role,
        **_TILE,
        "score": _score,
        "reason": pa.Column(
            str, _one_of("pen", "blur", "fold", "near_duplicate", "like_hard_negative")
        ),
    },
)
"""Tiles that would have been mined, had a guard not refused them."""

MINED_SLIDES = Table(
    "mined slides",
    ("slide_id",),
    {
        **_SLIDE,
        "patient_id": _text,
        "label": _label,
        "candidates": _count,  # its tiles that its role could have mined
        "mined": _count,
        "share": _share_of_a_role,  # of all mined tiles of its role
        "patient_share": _share_of_a_role,  # the same of all slides of its patient together
        # its tiles among the best-scoring of the negative slides; 0 for a positive slide
        "hardest": _count,
        "expected": pa.Column("float64", _at_least_0),  # such tiles, were they spread evenly
        # of so many such tiles or more, were they spread by chance
        "chance": _share_of_a_role,
        "suspect": pa.Column("bool"),
    },
)
"""The train slides, and what each supplies to a mined set."""
