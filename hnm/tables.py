"""The tables that stages hand to each other: one schema each, checked at every read and every write.

Columns stand in the order given here, rows in the order of the table's key, so that equal content has equal bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from hnm.errors import TableError
from hnm.files import whole
from hnm.params import ID


def _one_of(*values: str | int) -> pa.Check:
    return pa.Check.isin(list(values), error=f"must be one of {', '.join(map(str, values))}")


_slide_id = pa.Column(str, pa.Check.str_matches(ID, error="must match [A-Za-z0-9][A-Za-z0-9._-]*"))
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
        missing = [column for column in self.columns if column not in frame.columns]
        extra = [str(column) for column in frame.columns if column not in self.columns]
        if missing or extra:
            raise TableError(
                f"{where} is no {self.name} table: "
                + "; ".join(part for part in (f"missing columns {missing}" if missing else "", f"unknown columns {extra}" if extra else "") if part)
            )
        schema = pa.DataFrameSchema(self.columns, strict=True, unique=list(self.key))
        try:
            checked = schema.validate(frame[list(self.columns)], lazy=True)
        except SchemaErrors as error:
            raise TableError(f"{where}: {_sentence(error.failure_cases, self.key)}") from None
        return checked.sort_values(list(self.key), kind="stable", ignore_index=True)

    def read(self, path: Path) -> pd.DataFrame:
        """The checked table at `path` (.parquet or .csv)."""
        if not path.is_file():
            raise TableError(f"{path} does not exist, but a {self.name} table is wanted; run the stage that makes it (dvc repro)")
        if path.suffix == ".csv":
            kinds = {name: str(column.dtype) for name, column in self.columns.items()}
            try:
                frame = pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])
            except UnicodeDecodeError as error:
                raise TableError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
            except (TypeError, ValueError) as error:
                raise TableError(f"{path}: {_wrong_cell(path, kinds) or str(error).strip()}") from None
            return self.check(frame, str(path))
        return self.check(pd.read_parquet(path), str(path))

    def write(self, frame: pd.DataFrame, path: Path) -> None:
        """`frame`, checked and sorted, to `path` (.parquet or .csv), whole or not at all."""
        checked = self.check(frame, str(path))
        with whole(path) as temporary:
            if path.suffix == ".csv":
                checked.to_csv(temporary, index=False, lineterminator="\n")
            else:
                checked.to_parquet(temporary, index=False)

    def empty(self) -> pd.DataFrame:
        """This table without rows."""
        return pd.DataFrame({name: pd.Series(dtype=str(column.dtype)) for name, column in self.columns.items()})


def _wrong_cell(path: Path, kinds: Mapping[str, str]) -> str | None:
    """The first cell of a CSV file that is not of its column's kind, as a sentence; None where the file is no CSV or its cells are fine."""
    try:
        text = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
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
        "scorer": pa.Column(str, pa.Check.str_matches(r"^[0-9a-f]{16}$", error="must be 16 hexadecimal digits")),  # of the scores that were mined
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
