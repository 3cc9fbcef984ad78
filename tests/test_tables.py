"""Tables: checked at every read and write; the error names file, column, row and value."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hnm.errors import TableError
from hnm.tables import LABELS, SLIDE_SCORES, TILES, VETOES


def scores(**changes: object) -> pd.DataFrame:
    frame = pd.DataFrame({"slide_id": ["b", "a"], "logit": np.array([0.5, -1.0], np.float32), "score": np.array([0.62, 0.27], np.float32)})
    return frame.assign(**changes)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_comes_back_sorted_by_its_key(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    SLIDE_SCORES.write(scores(), path)
    again = SLIDE_SCORES.read(path)
    assert again["slide_id"].tolist() == ["a", "b"] and again["logit"].tolist() == [-1.0, 0.5]
    SLIDE_SCORES.write(scores().iloc[::-1], tmp_path / f"other{suffix}")
    assert path.read_bytes() == (tmp_path / f"other{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (scores(score=np.array([0.5, 1.5], np.float32)), r"s\.parquet: column score, row 1: value 1\.5: must lie in \[0, 1\]"),
        (scores(logit=np.array([np.nan, 0.0], np.float32)), r"column logit, row 0: value nan: must not be empty"),
        (scores(slide_id=["a", "a"]), r"column slide_id, row 0: value 'a': must be unique \(slide_id\)"),
        (scores(slide_id=["a", "x; touch f"]), r"row 1: value 'x; touch f': must match"),
        (scores(logit=[1, 2]), r"column logit: value 'int64': must be of type\('float32'\)"),
        (scores(extra=1), r"is no slide scores table: unknown columns \['extra'\]"),
        (scores().drop(columns="score"), r"is no slide scores table: missing columns \['score'\]"),
    ],
)
def test_what_does_not_fit_is_named_and_not_written(tmp_path: Path, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(TableError, match=message):
        SLIDE_SCORES.write(frame, tmp_path / "s.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_label_in_a_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("slide_id,label\na,1\nb,2\n")
    with pytest.raises(TableError, match=r"train\.csv: column label, row 1: value 2: must be one of 0, 1"):
        LABELS.read(tmp_path / "train.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"slide_id,tile,x,y,reason\na,1,,,fold\na,12.5,,,pen\n", r"vetoes\.csv: column tile, row 1: value '12\.5': must be of type int64"),
        (b"slide_id,tile,x,y,reason\na,,left,7,pen\n", r"vetoes\.csv: column x, row 0: value 'left': must be of type int64"),
        ("slide_id,tile,x,y,reason\na,1,,,gefärbt\n".encode("latin-1"), r"vetoes\.csv is not UTF-8 \(.*\); save it as UTF-8"),
        (b"", r"vetoes\.csv: No columns to parse from file"),
    ],
)
def test_a_cell_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vetoes.csv").write_bytes(content)
    with pytest.raises(TableError, match=message):
        VETOES.read(tmp_path / "vetoes.csv")


def test_a_missing_table_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"train\.csv does not exist, but a labels table is wanted; run the stage"):
        LABELS.read(tmp_path / "train.csv")


def test_a_key_of_two_columns_is_unique_together() -> None:
    frame = TILES.empty()
    rows = pd.DataFrame({"slide_id": ["a", "a"], "tile": [1, 1], "x": [0, 5], "y": [0, 0], "side": [96, 96], "tissue": [1.0, 1.0]}).astype(
        frame.dtypes.to_dict()
    )
    with pytest.raises(TableError, match=r"tiles\.parquet: column \w+, row 0: value .*: must be unique \(slide_id, tile\)"):
        TILES.check(rows, "tiles.parquet")
    assert len(TILES.check(rows.assign(tile=np.array([1, 0], np.int32)), "tiles.parquet")) == 2
