"""The tables that stages hand to each other: one schema each, checked at every read and every write.

Columns stand in the order given here, rows in the order of the table's key, so that equal content has equal bytes.
A file is read within bounds: what it claims to hold is compared with its size and its schema before memory is asked for.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
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
from hnm.files import read_bounded, whole
from hnm.names import ID, ID_WORDS

MOST_CSV_BYTES = 256 << 20
MOST_CELL = 1 << 17
"""Characters of one cell of a CSV file."""
MOST_PER_BYTE = 16
"""Rows, or bytes once unpacked, for each byte of a parquet file. Tables of tiles have half a row and 1.5 bytes at most, as keys are unique."""
SMALLEST = 1 << 20
"""Rows, or bytes, that any parquet file may hold."""
NAMED = 5
"""Columns that an error names at most."""
_RUN_BY_SPREADSHEETS = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How text begins that a spreadsheet takes for a formula, ASCII or full-width; or that does behind quotes, so that nothing is lost on the way back."""


def safe_cell(text: str) -> str:
    """`text` as a cell of a CSV file for people: a quote goes before what a spreadsheet would take for a formula and run. `plain_cell` takes it away."""
    return f"'{text}" if _RUN_BY_SPREADSHEETS.match(text) else text


def plain_cell(cell: str) -> str:
    """The text that `safe_cell` made `cell` of."""
    return cell[1:] if cell.startswith("'") and _RUN_BY_SPREADSHEETS.match(cell) else cell


def write_csv(frame: pd.DataFrame, path: Path, float_format: Any = None) -> None:
    """Writes `frame` as CSV for people, each cell of text by `safe_cell`; `plain_cells` gives the text back. `path` is of `whole`."""
    safe = _each_text(frame, safe_cell)
    returns = any("\r" in cell for _, column in safe.items() if _is_text(column) for cell in column if isinstance(cell, str))
    quoting: Any = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL  # Python's csv puts no quotes around a carriage return by itself
    safe.to_csv(path, index=False, lineterminator="\n", float_format=float_format, quoting=quoting)


def plain_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame that `write_csv` wrote, from what was read."""
    return _each_text(frame, plain_cell)


def _is_text(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_string_dtype(column.dtype) or column.dtype == object


def _each_text(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    columns: Any = {
        name: column.map(lambda cell: change(cell) if isinstance(cell, str) else cell).astype(column.dtype)
        for name, column in frame.items()
        if _is_text(column)
    }
    return frame.assign(**columns)


def _one_of(*values: str | int) -> pa.Check:
    return pa.Check.isin(list(values), error=f"must be one of {', '.join(map(str, values))}")


def _all_of(pattern: str, wanted: str) -> pa.Check:
    """That the whole text matches, a line feed at its end included, which pandera's `str_matches` and `$` would pass over."""
    return pa.Check(lambda column: column.str.fullmatch(pattern, na=False), error=f"must be {wanted}")


_slide_id = pa.Column(str, _all_of(ID, ID_WORDS))
_at_least_0 = pa.Check.ge(0, error="must be at least 0")
_positive = pa.Check.gt(0, error="must be above 0")
_share = pa.Check.in_range(0, 1, error="must lie in [0, 1]")
_tile = pa.Column("int32", _at_least_0)
_corner = pa.Column("int64", _at_least_0)
_score = pa.Column("float32", _share)
_logit = pa.Column("float32")


@dataclass(frozen=True)
class Table:
    """A named schema with the key that orders its rows and is unique."""

    name: str
    key: tuple[str, ...]
    columns: dict[str, pa.Column]

    def check(self, frame: pd.DataFrame, where: str) -> pd.DataFrame:
        """`frame` with this table's columns, sorted by its key; `TableError` names `where`, column, row and value."""
        self._check_columns(list(frame.columns), where)
        schema = pa.DataFrameSchema(self.columns, strict=True, unique=list(self.key))
        try:
            checked = schema.validate(frame[list(self.columns)], lazy=True)
        except SchemaErrors as error:
            raise TableError(f"{where}: {_sentence(error.failure_cases, self.key)}") from None
        return checked.sort_values(list(self.key), kind="stable", ignore_index=True)

    def read(self, path: Path) -> pd.DataFrame:
        """The checked table at `path` (.parquet or .csv), which may come from anybody; whatever is wrong with it is one `TableError`."""
        if not path.exists():
            raise TableError(f"{path} does not exist, but a {self.name} table is wanted; run the stage that makes it (dvc repro)")
        if not path.is_file():
            raise TableError(f"{path} is no regular file, but a {self.name} table is wanted; move it away and run the stage that makes it (dvc repro)")
        return self.check(self._read_csv(path) if path.suffix == ".csv" else self._read_parquet(path), str(path))

    def write(self, frame: pd.DataFrame, path: Path) -> None:
        """`frame`, checked and sorted, to `path` (.parquet or .csv), whole or not at all; in CSV text is made safe for spreadsheets by `safe_cell`."""
        checked = self.check(frame, str(path))
        with whole(path) as temporary:
            if path.suffix == ".csv":
                write_csv(checked, temporary)
            else:
                checked.to_parquet(temporary, index=False)

    def _check_columns(self, names: Sequence[str], where: str) -> None:
        missing = [column for column in self.columns if column not in names]
        extra = [str(column) for column in names if column not in self.columns]
        twice = [str(column) for column in self.columns if list(names).count(column) > 1] if len(names) > len(self.columns) else []
        parts = (("missing", missing), ("unknown", extra), ("doubled", twice))
        if said := "; ".join(f"{kind} columns {_shortened(columns)}" for kind, columns in parts if columns):
            raise TableError(f"{where} is no {self.name} table: {said}")

    def _read_csv(self, path: Path) -> pd.DataFrame:
        content = read_bounded(path, TableError, what=str(path), most=MOST_CSV_BYTES)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise TableError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
        self._check_lines(text, path)
        kinds = {name: str(column.dtype) for name, column in self.columns.items()}
        try:
            frame = pd.read_csv(io.StringIO(text), dtype=kinds, keep_default_na=False, na_values=[""])
        except (TypeError, ValueError, OverflowError) as error:
            raise TableError(f"{path}: {_wrong_cell(text, kinds) or str(error).strip()}") from None
        return plain_cells(frame)

    def _check_lines(self, text: str, path: Path) -> None:
        """Raises `TableError` where `text` is no CSV of this table's columns: what pandas would mend in silence, or ask too much memory for."""
        if "\0" in text:
            raise TableError(f"{path} holds a null character; save it as plain CSV in UTF-8")
        before = csv.field_size_limit(MOST_CELL)
        try:
            lines = csv.reader(io.StringIO(text, newline=""), strict=True)
            header = next((line for line in lines if line), None)
            if header is None:
                raise TableError(f"{path}: it is empty, without even the names of columns; a {self.name} table has {', '.join(self.columns)}")
            self._check_columns(header, str(path))
            for line in lines:
                if line and len(line) != len(header):
                    raise TableError(f"{path}: line {lines.line_num} has {len(line)} cells, not {len(header)}; put text with commas into double quotes")
        except csv.Error as error:
            raise TableError(f"{path}: line {lines.line_num} is not CSV ({error}); a quote may be open, or a cell longer than {MOST_CELL} characters") from None
        finally:
            csv.field_size_limit(before)

    def _read_parquet(self, path: Path) -> pd.DataFrame:
        cure = f"; {REMAKE}; of another project, bring it anew from where it was made"
        try:
            with path.open("rb") as stream, pyarrow.parquet.ParquetFile(stream, thrift_string_size_limit=10 << 20, thrift_container_size_limit=1 << 20) as file:
                fault = self._fault(file, path, path.stat().st_size)
                table = None if fault else file.read(use_threads=False)
        except MemoryError:
            fault, table = "it asks for more memory than there is", None
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            if isinstance(error, OSError) and error_of_machine(error) is not None:
                raise
            lines = str(error).splitlines()
            fault, table = lines[0] if lines else type(error).__name__, None
        if table is None:
            raise TableError(f"{path} is no parquet table that can be read ({fault}){cure}")
        try:
            frame: pd.DataFrame = table.to_pandas()
        except (pyarrow.ArrowException, ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:  # pandas' notes in the file may be forged
            raise TableError(f"{path} is no parquet table that can be read ({type(error).__name__}: {error}){cure}") from None
        return frame

    def _fault(self, file: pyarrow.parquet.ParquetFile, path: Path, size: int) -> str | None:
        """What is wrong with a parquet file of `size` bytes by what it says of itself, before anything of it is unpacked; None where nothing is."""
        schema, most = file.schema_arrow, max(SMALLEST, MOST_PER_BYTE * size)
        self._check_columns(schema.names[: 2 * len(self.columns)], str(path))
        if wrong := [field.name for field in schema if not _is_plain(field.type)]:
            return f"its columns {_shortened(wrong)} hold no plain text or numbers, but {str(schema.field(wrong[0]).type)[:60]}"
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        unpacked = sum(abs(group.total_byte_size) for group in groups)  # pyarrow ends the process where it describes a forged column
        rows = file.metadata.num_rows
        if not 0 <= rows == sum(group.num_rows for group in groups):
            return "its numbers of rows contradict each other"
        if rows > most or unpacked > most:
            return f"its {size} bytes claim to hold {rows} rows of {unpacked} bytes, more than {MOST_PER_BYTE} for each byte"
        return None

    def empty(self) -> pd.DataFrame:
        """This table without rows."""
        return pd.DataFrame({name: pd.Series(dtype=str(column.dtype)) for name, column in self.columns.items()})


def _is_plain(kind: pyarrow.DataType) -> bool:
    """Whether a column of parquet holds text, numbers, or nothing at all."""
    tests = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_integer, pyarrow.types.is_floating)
    return any(test(kind) for test in (*tests, pyarrow.types.is_boolean, pyarrow.types.is_null))


def _shortened(names: Sequence[str]) -> str:
    """The first `names` as a list, and how many more there are."""
    short = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:NAMED]]
    return f"{short}" + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _wrong_cell(content: str, kinds: Mapping[str, str]) -> str | None:
    """The first cell of a CSV file that is not of its column's kind, as a sentence; None where the file is no CSV or its cells are fine."""
    try:
        text = pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False, na_values=[""])
    except ValueError:
        return None
    for name in (name for name, kind in kinds.items() if name in text and kind.lower().startswith(("int", "float"))):
        numbers = pd.to_numeric(text[name], errors="coerce")
        wrong = text[name].notna() & numbers.isna()
        if kinds[name].lower().startswith("int"):
            wrong |= numbers % 1 > 0
        if kinds[name].startswith("int"):  # pandas' Int64 may be empty, int64 not
            wrong |= text[name].isna()
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            return f"column {name}, row {row}: value {text[name][row]!r}: must be of type {kinds[name].lower()}"
    return None


def _sentence(failures: pd.DataFrame, key: tuple[str, ...]) -> str:
    """The first of pandera's failure cases as a sentence."""
    first = failures.iloc[0]
    value = first["failure_case"].item() if isinstance(first["failure_case"], np.generic) else first["failure_case"]
    row = "" if pd.isna(first["index"]) else f", row {int(first['index'])}"
    wanted = {"not_nullable": "must not be empty", "multiple_fields_uniqueness": f"must be unique ({', '.join(key)})"}.get(first["check"], first["check"])
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"column {first['column']}{row}: value {value!r}: {wanted.replace('dtype', 'must be of type')}{more}"


SLIDES = Table(
    "slides",
    ("slide_id",),
    {
        "slide_id": _slide_id,
        "path": pa.Column(str),  # as in the manifest: relative ones count from its folder
        "patient_id": pa.Column(str),
        "split": pa.Column(str, _one_of("train", "validation", "test")),
        "vendor": pa.Column(str),
        "mpp_x": pa.Column("float64", _positive),
        "mpp_y": pa.Column("float64", _positive),
        "width": pa.Column("int64", _positive),  # level-0 pixels
        "height": pa.Column("int64", _positive),
        "fingerprint": pa.Column(str),  # of the file: size, header, OpenSlide's quickhash
        "mask": pa.Column(str),  # a tissue mask from elsewhere, as in the manifest; "" for none
        "mask_digest": pa.Column(str),
    },
)
"""The checked cohort. No labels: those are one file a split."""

PATIENTS = Table("patients", ("slide_id",), {"slide_id": _slide_id, "patient_id": pa.Column(str)})
"""Whose each slide is: what of `SLIDES` a head needs, so that another fingerprint trains none anew."""

LABELS = Table("labels", ("slide_id",), {"slide_id": _slide_id, "label": pa.Column("int64", _one_of(0, 1))})

QUARANTINE = Table(
    "quarantine",
    ("slide_id",),
    {"slide_id": _slide_id, "step": pa.Column(str, _one_of("open", "mpp", "tissue", "tiles")), "reason": pa.Column(str)},
)
"""Slides that cannot be used, the step that they failed, and why."""

TILES = Table(
    "tiles",
    ("slide_id", "tile"),
    {
        "slide_id": _slide_id,
        "tile": _tile,  # its row in the slide's pack and features
        "x": _corner,  # level-0 pixels of the tile's corner
        "y": _corner,
        "side": pa.Column("int64", _positive),  # level-0 pixels of the tile's side
        "tissue": pa.Column("float32", _share),
    },
)

TILE_SCORES = Table(
    "tile scores",
    ("slide_id", "tile"),
    {
        "slide_id": _slide_id,
        "tile": _tile,
        "x": _corner,
        "y": _corner,
        "side": pa.Column("int64", _positive),
        "logit": _logit,
        "score": _score,
        "attention": pa.Column("float32", _share),
    },
)

SLIDE_SCORES = Table("slide scores", ("slide_id",), {"slide_id": _slide_id, "logit": _logit, "score": _score})

VETOES = Table(
    "vetoes",
    ("slide_id", "tile", "x", "y"),
    {
        "slide_id": _slide_id,
        "tile": pa.Column("Int64", _at_least_0, nullable=True),  # its number, or else:
        "x": pa.Column("Int64", _at_least_0, nullable=True),  # a point in it, in level-0 pixels
        "y": pa.Column("Int64", _at_least_0, nullable=True),
        "reason": pa.Column(str),
    },
)
"""Tiles that a person does not want mined."""

MINED = Table(
    "mined tiles",
    ("role", "rank"),
    {
        "role": pa.Column(str, _one_of("positive", "hard_negative")),
        "rank": pa.Column("int32", pa.Check.ge(1, error="must be at least 1")),  # 1 is the best-scoring of its role
        "slide_id": _slide_id,
        "tile": _tile,
        "x": _corner,
        "y": _corner,
        "side": pa.Column("int64", _positive),
        "score": _score,
        "logit": _logit,
        "round": pa.Column("int32", pa.Check.ge(1, error="must be at least 1")),
        "policy": pa.Column(str, _one_of("hard", "semi_hard", "mixed", "random", "all")),
        "scorer": pa.Column(str, _all_of("[0-9a-f]{16}", "16 hexadecimal digits")),  # of the scores that were mined
    },
)

PASSED_OVER = Table(
    "passed-over tiles",
    ("role", "slide_id", "tile"),
    {
        "role": MINED.columns["role"],
        "slide_id": _slide_id,
        "tile": _tile,
        "x": _corner,
        "y": _corner,
        "side": pa.Column("int64", _positive),
        "score": _score,
        "reason": pa.Column(str, _one_of("pen", "blur", "fold", "near_duplicate", "like_hard_negative")),
    },
)
"""Tiles that would have been mined, had a guard not refused them."""

MINED_SLIDES = Table(
    "mined slides",
    ("slide_id",),
    {
        "slide_id": _slide_id,
        "patient_id": pa.Column(str),
        "label": pa.Column("int64", _one_of(0, 1)),
        "candidates": pa.Column("int64", _at_least_0),  # its tiles that its role could have mined
        "mined": pa.Column("int64", _at_least_0),
        "share": pa.Column("float64", _share),  # of all tiles of its role
        "patient_share": pa.Column("float64", _share),  # of all tiles of its role, what the slides of its patient supply together
        "hardest": pa.Column("int64", _at_least_0),  # its tiles among the best-scoring of the negative slides; 0 for a positive slide
        "expected": pa.Column("float64", _at_least_0),  # such tiles, were they spread evenly
        "chance": pa.Column("float64", _share),  # of so many or more, were they spread by chance
        "suspect": pa.Column("bool"),
    },
)
"""The train slides, and what each supplies to a mined set."""
