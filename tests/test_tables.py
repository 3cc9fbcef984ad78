"""Tables: checked at every read and write; the error names file, column, row and value."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm import tables
from hnm.errors import TableError
from hnm.prediction.files import PREDICTIONS
from hnm.tables import LABELS, QUARANTINE, SLIDE_SCORES, TILES, VETOES, Table, plain_cell, safe_cell


def scores(**changes: object) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "slide_id": ["b", "a"],
            "logit": np.array([0.5, -1.0], np.float32),
            "score": np.array([0.62, 0.27], np.float32),
        }
    )
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
        (
            scores(score=np.array([0.5, 1.5], np.float32)),
            r"s\.parquet: column score, row 1: value 1\.5: must lie in \[0, 1\]",
        ),
        (
            scores(logit=np.array([np.nan, 0.0], np.float32)),
            r"column logit, row 0: value nan: must not be empty",
        ),
        (
            scores(slide_id=["a", "a"]),
            r"column slide_id, row 0: value 'a': must be unique \(slide_id\)",
        ),
        (scores(slide_id=["a", "x; touch f"]), r"row 1: value 'x; touch f': must be letters"),
        (scores(logit=[1, 2]), r"column logit: value 'int64': must be of type\('float32'\)"),
        (scores(extra=1), r"is no slide scores table: unknown columns \['extra'\]"),
        (scores().drop(columns="score"), r"is no slide scores table: missing columns \['score'\]"),
    ],
)
def test_what_does_not_fit_is_named_and_not_written(
    tmp_path: Path, frame: pd.DataFrame, message: str
) -> None:
    with pytest.raises(TableError, match=message):
        SLIDE_SCORES.write(frame, tmp_path / "s.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_label_in_a_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("slide_id,label\na,1\nb,2\n")
    with pytest.raises(
        TableError, match=r"train\.csv: column label, row 1: value 2: must be one of 0, 1"
    ):
        LABELS.read(tmp_path / "train.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"slide_id,tile,x,y,reason\na,1,,,fold\na,12.5,,,pen\n",
            r"vetoes\.csv: column tile, row 1: value '12\.5': must be of type int64",
        ),
        (
            b"slide_id,tile,x,y,reason\na,,left,7,pen\n",
            r"vetoes\.csv: column x, row 0: value 'left': must be of type int64",
        ),
        (
            "slide_id,tile,x,y,reason\na,1,,,gefärbt\n".encode("latin-1"),
            r"vetoes\.csv is not CSV in UTF-8: 'utf-8' codec .*; save it as CSV in UTF-8",
        ),
        (
            b"",
            (
                r"vetoes\.csv is no vetoes table: missing columns \['slide_id', 'tile', 'x', 'y',"
                r" 'reason'\]"
            ),
        ),
        (
            b"slide_id,tile,x,y,reason\na,99999999999999999999,,,pen\n",
            r"vetoes\.csv: column tile, row 0: value '9+': must be of type int64",
        ),
        (
            b"slide_id,tile,x,y,reason\na,1_0,,,pen\n",
            r"column tile, row 0: value '1_0': must be of type int64",
        ),
        (
            b"slide_id,tile,x,y,reason\na,1e5,,,pen\n",
            r"column tile, row 0: value '1e5': must be of type int64",
        ),
        (
            b"slide_id,tile,x,y,reason\na,NA,,,pen\n",
            r"column tile, row 0: value 'NA': must be of type int64",
        ),
        (
            b"slide_id,tile,x,y,reason\na,1,,,p\0n\n",
            r"vetoes\.csv is not CSV in UTF-8: line 2 holds a null character; save it",
        ),
        (
            b'slide_id,tile,x,y,reason\na,1,,,"pen\nb,2,,,fold\n',
            r"vetoes\.csv is not CSV in UTF-8: line 3: unexpected end of data; a quote may be open",
        ),
        (
            b"slide_id,tile,x,y,reason\na,1,,," + b"n" * 200_000 + b"\n",
            r"vetoes\.csv is not CSV in UTF-8: line 2: field larger than field limit \(131072\)",
        ),
        (
            b"slide_id,tile,x,y,reason\n7,a,1,,,pen\n",
            (
                r"vetoes\.csv, row 2: has more cells than the header \(6, not 5\); quote text with"
                r" \',\'"
            ),
        ),
        (
            b"slide_id,tile,x,y,reason\na,1\n",
            r"vetoes\.csv, row 2: has fewer cells than the header \(2, not 5\)",
        ),
        (
            b"slide_id,tile,x,y,reason,reason\na,1,,,pen,b\n",
            r"vetoes\.csv: a column stands there twice: 'reason'; remove one",
        ),
        (b"," * 100_000 + b"\n", r"vetoes\.csv: a column stands there twice: \'\'; remove one"),
        (
            "slide_id,tile,x,y,reason\na,1,,,pen\n".encode("utf-16"),
            r"vetoes\.csv is UTF-16, not UTF-8; save it as CSV in UTF-8",
        ),
    ],
)
def test_a_cell_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vetoes.csv").write_bytes(content)
    with pytest.raises(TableError, match=message):
        VETOES.read(tmp_path / "vetoes.csv")


def test_a_missing_table_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(
        TableError, match=r"train\.csv does not exist, but a labels table is wanted; run the stage"
    ):
        LABELS.read(tmp_path / "train.csv")


def test_a_key_of_two_columns_is_unique_together() -> None:
    frame = TILES.empty()
    rows = pd.DataFrame(
        {
            "slide_id": ["a", "a"],
            "tile": [1, 1],
            "x": [0, 5],
            "y": [0, 0],
            "side": [96, 96],
            "tissue": [1.0, 1.0],
        }
    ).astype(frame.dtypes.to_dict())
    with pytest.raises(
        TableError,
        match=r"tiles\.parquet: column \w+, row 0: value .*: must be unique \(slide_id, tile\)",
    ):
        TILES.check(rows, "tiles.parquet")
    assert len(TILES.check(rows.assign(tile=np.array([1, 0], np.int32)), "tiles.parquet")) == 2


EVERY_TABLE = [*(table for table in vars(tables).values() if isinstance(table, Table)), PREDICTIONS]
TEXTS = {
    "role": "positive",
    "policy": "hard",
    "reason": "pen",
    "scorer": "0123456789abcdef",
    "split": "train",
    "step": "open",
    "origin": "auto",
    "sha256": 64 * "a",
}


def one_row(table: Table) -> pd.DataFrame:
    """A row that the table's reader takes."""
    row: dict[str, object] = {}
    for name, column in table.columns.items():
        kind = str(column.dtype).lower()
        row[name] = (
            [TEXTS.get(name, "a")]
            if "str" in kind
            else np.ones(1, kind if kind != "boolean" else "bool")
        )
    return pd.DataFrame(row)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("table", EVERY_TABLE, ids=lambda table: table.name)
def test_every_reader_takes_ids_and_digests_whole(
    tmp_path: Path, table: Table, suffix: str
) -> None:
    """A line feed at the end, which `$` passes over, is none of an id; nor is anything else that a
    file's name may not have.
    """
    path = tmp_path / f"table{suffix}"
    table.write(one_row(table), path)
    assert len(table.read(path)) == 1
    for column in {"slide_id", "scorer"} & set(table.columns):
        for wrong in (f"{one_row(table)[column][0]}\n", f"\n{one_row(table)[column][0]}", ""):
            frame = one_row(table).assign(**{column: [wrong]})
            (
                frame.to_csv(path, index=False)
                if suffix == ".csv"
                else frame.to_parquet(path, index=False)
            )
            with pytest.raises(TableError, match=rf"table{suffix}: column {column}, row 0"):
                table.read(path)


def test_a_slide_id_ends_where_its_line_ends() -> None:
    with pytest.raises(TableError, match=r"column slide_id, row 0: value 'a\\n': must be letters"):
        LABELS.check(pd.DataFrame({"slide_id": ["a\n"], "label": [1]}), "labels")


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1dcmd|' /C calc'!A0",
        "'=1",
        "''@x",
    ],
)
def test_a_formula_is_text_in_a_spreadsheet_and_itself_when_it_is_read_back(
    tmp_path: Path, text: str
) -> None:
    assert safe_cell(text) == "'" + text and plain_cell(safe_cell(text)) == text
    QUARANTINE.write(
        pd.DataFrame({"slide_id": ["a"], "step": ["open"], "reason": [text]}), tmp_path / "q.csv"
    )
    cells = [
        line.split(",")[2].lstrip('"')
        for line in (tmp_path / "q.csv").read_bytes().decode().split("\n")
        if line.count(",") == 2
    ]
    assert [cell[:1] for cell in cells] == ["r", "'"]
    assert QUARANTINE.read(tmp_path / "q.csv")["reason"].tolist() == [text]


def test_numbers_below_0_stay_numbers(tmp_path: Path) -> None:
    SLIDE_SCORES.write(scores(), tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().splitlines()[1].startswith("a,-1.0,")


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    | st.text("'=+-@,\"\r\n\t ;")
)
def test_any_text_comes_back_from_csv(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    assert plain_cell(safe_cell(text)) == text
    if text:  # an empty cell is none, and a reason is needed
        path = tmp_path_factory.getbasetemp() / "any.csv"
        QUARANTINE.write(
            pd.DataFrame({"slide_id": ["a"], "step": ["open"], "reason": [text]}), path
        )
        assert QUARANTINE.read(path)["reason"].tolist() == [text]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    "word", ["NA", "null", "nan", "None", "NaN", "#N/A", "1e5", "0012", "True"]
)
def test_words_that_look_like_nothing_or_like_numbers_stay_words(
    tmp_path: Path, suffix: str, word: str
) -> None:
    frame = pd.DataFrame(
        {"slide_id": [word.strip("#").replace("/", "")], "step": ["open"], "reason": [word]}
    )
    QUARANTINE.write(frame, tmp_path / f"q{suffix}")
    assert QUARANTINE.read(tmp_path / f"q{suffix}").values.tolist() == frame.values.tolist()


def test_a_table_is_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.parquet")
    for name in ("folder.csv", "pipe.parquet"):
        with pytest.raises(
            TableError,
            match=rf"{name} is no regular file, but a labels table is wanted; move it away",
        ):
            LABELS.read(tmp_path / name)


def test_a_csv_of_the_largest_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "l.csv").open("wb") as stream:
        stream.truncate((256 << 20) + 1)  # one line without an end, of which the disk holds nothing
    with pytest.raises(
        TableError, match=r"l\.csv has 268435457 bytes, more than the 268435456 that are read"
    ):
        LABELS.read(tmp_path / "l.csv")


LABELLED = pa.table({"slide_id": ["a", "b"], "label": [1, 0]})


def parquet(path: Path, table: pa.Table, **options: object) -> Path:
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            r"is no parquet table that can be read \(.*\); give `hnm verify --remove`",
        ),
        (
            lambda path: path.write_bytes(b""),
            r"is no parquet table that can be read \(.*\); give `hnm verify --remove`",
        ),
        (
            lambda path: path.write_text("slide_id,label\n"),
            r"is no parquet table that can be read \(.*\); give `hnm verify --remove`",
        ),
        (
            lambda path: parquet(path, LABELLED.append_column("more", [[1, 2]])),
            r"is no labels table: unknown columns \['more'\]",
        ),
        (
            lambda path: parquet(path, pa.table([[1], [2]], names=["label", "label"])),
            r"is no labels table: missing columns \['slide_id'\]",
        ),
        (
            lambda path: parquet(path, pa.table({"slide_id": ["a"], "label": pa.array([[[[1]]]])})),
            r"its columns \['label'\] hold no plain text or numbers, but list<",
        ),
        (
            lambda path: parquet(path, pa.table({"slide_id": [b"a"], "label": [1]})),
            r"its columns \['slide_id'\] hold no plain text or numbers, but binary",
        ),
        (
            lambda path: parquet(path, pa.table({"slide_id": ["a"], "label": ["1"]})),
            r"column label, row 0: value '1': must be one of 0, 1",
        ),
        (
            lambda path: parquet(
                path,
                pa.table(
                    {
                        "slide_id": pa.array(["a"] * 2_000_000),
                        "label": np.zeros(2_000_000, np.int64),
                    }
                ),
            ),
            r"claim to hold 2000000 rows of \d+ bytes, more than 16 for each byte",
        ),
        (
            lambda path: parquet(
                path, pa.table({"slide_id": ["a" * 30_000_000], "label": [1]}), compression="zstd"
            ),
            r"claim to hold 1 rows of \d{8} bytes, more than 16 for each byte",
        ),
    ],
)
def test_a_parquet_that_is_torn_foreign_or_a_bomb_is_one_error(
    tmp_path: Path, change, message: str
) -> None:
    path = parquet(tmp_path / "labels.parquet", LABELLED)
    assert LABELS.read(path)["label"].tolist() == [1, 0]
    change(path)
    with pytest.raises(
        TableError,
        match=rf"labels\.parquet[:]? .*{message}" if not message.startswith("column") else message,
    ):
        LABELS.read(path)


def test_a_parquet_with_any_wrong_bytes_is_read_or_is_one_error(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "slide_id": [f"s{n % 5}" for n in range(50)],
            "tile": range(50),
            "x": range(50),
            "y": 0,
            "side": 96,
            "tissue": 1.0,
        }
    )
    TILES.write(rows.astype(TILES.empty().dtypes.to_dict()), tmp_path / "t.parquet")
    content, draw, refused = (tmp_path / "t.parquet").read_bytes(), random.Random(0), 0
    for _ in range(150):
        wrong = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            wrong[draw.randrange(len(wrong))] = draw.choice((0, 255, 128, draw.randrange(256)))
        (tmp_path / "w.parquet").write_bytes(wrong)
        try:
            TILES.read(tmp_path / "w.parquet")
        except TableError as error:
            assert "w.parquet" in str(error)
            refused += 1
    assert refused > 50


EVERY_BYTE = """
import sys
from pathlib import Path
from hnm.errors import TableError
from hnm.tables import LABELS
path, refused = Path(sys.argv[1]), 0
content = path.read_bytes()
for place in range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content)):
    for byte in {0, content[place] ^ 2} - {content[place]}:
        path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
        try:
            LABELS.read(path)
        except TableError as error:
            assert str(error).isprintable(), error
            refused += 1
print(refused)
"""


def test_no_wrong_byte_in_a_parquet_s_description_ends_the_process_or_reaches_a_terminal(
    tmp_path: Path,
) -> None:
    path = parquet(
        tmp_path / "labels.parquet", LABELLED.append_column("more", [[1, 2]]).drop_columns("more")
    )
    done = subprocess.run(
        [sys.executable, "-c", EVERY_BYTE, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr[-500:]) == (0, "") and int(done.stdout) > 100
