"""The one reader of text tables."""

import ast
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.errors import CohortError, EvidenceError
from hnm.evidence.numbers.comparison import compare_pair
from hnm.evidence.numbers.intervals import Resampling
from hnm.evidence.numbers.pooling import OUT_OF_FOLD, read_predictions, write_predictions
from hnm.history.states import _test_slides
from hnm.learning.history import read_history, write_history
from hnm.rows import integer, is_unknown, number, text_rows
from hnm.slides.cohort.manifest import read_manifest
from hnm.tables import LABELS, PATIENTS, read_frame, write_csv

WORDS = [
    "NA",
    "null",
    "nan",
    "None",
    "N.A.",
    "007",
    "1e5",
    "True",
    "0x10",
    "inf",
    "1_0",
    "NaN",
    "-1".lstrip("-"),
    "unknown",
]
READERS = {
    "read_csv",
    "read_table",
    "read_fwf",
    "read_excel",
    "loadtxt",
    "genfromtxt",
    "DictReader",
}


def test_nothing_else_reads_text_tables() -> None:
    """Every call of another reader, by its name, in the package, the stages and the benchmarks."""
    root = Path(__file__).parent.parent
    calls = []
    for folder in ("hnm", "pipelines", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = (
                    node.attr
                    if isinstance(node, ast.Attribute)
                    else node.id
                    if isinstance(node, ast.Name)
                    else ""
                )
                of_csv = (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and (node.value.id, name) == ("csv", "reader")
                )
                if name in READERS or of_csv:
                    calls.append((path.relative_to(root).as_posix(), name))
    assert calls == [("hnm/rows.py", "reader")]


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"])),
            min_size=2,
            max_size=2,
        )
    )
)
def test_every_cell_is_the_text_that_stands_there(rows: list[list[str]]) -> None:
    quote = chr(34)
    lines = [
        ",".join(quote + cell.replace(quote, quote * 2) + quote for cell in row)
        for row in [["a", "b"], *rows]
    ]
    _, read = text_rows("\n".join(lines).encode(), "t", strip=False)
    assert [list(row.values()) for _, row in read] == rows


def test_numbers_are_numbers_or_nothing() -> None:
    assert [number(text) for text in ("0.1", "-2", "+.5", "1e-3", "5.")] == [
        0.1,
        -2.0,
        0.5,
        0.001,
        5.0,
    ]
    assert [
        number(text)
        for text in ("", "nan", "inf", "1e999", "1_0", "0x1", "1,5", "NA", " 1", "\u0661")
    ] == [None] * 10
    assert [integer(text) for text in ("7", "-7", "007", "12.0", str(2**63 - 1))] == [
        7,
        -7,
        7,
        12,
        2**63 - 1,
    ]
    assert [
        integer(text) for text in ("", "1.5", "1e5", "True", str(2**63), "9" * 5000, "\u0661")
    ] == [None] * 7


@pytest.mark.parametrize("word", WORDS)
def test_ids_come_back_from_every_table(tmp_path: Path, word: str) -> None:
    PATIENTS.write(
        pd.DataFrame({"slide_id": [word, "z"], "patient_id": [word, word]}), tmp_path / "p.csv"
    )
    PATIENTS.write(
        pd.DataFrame({"slide_id": [word, "z"], "patient_id": [word, word]}), tmp_path / "p.parquet"
    )
    for name in ("p.csv", "p.parquet"):
        assert sorted(PATIENTS.read(tmp_path / name).values.tolist()) == sorted(
            [[word, word], ["z", word]]
        )
    LABELS.write(pd.DataFrame({"slide_id": [word], "label": [1]}), tmp_path / "l.csv")
    assert LABELS.read(tmp_path / "l.csv").values.tolist() == [[word, 1]]
    row = dict.fromkeys(OUT_OF_FOLD, 1) | {
        "slide_id": word,
        "patient_id": word,
        "first_score": 0.1,
        "score": 0.7,
        "threshold": 0.1 + 0.2,
    }
    frame = pd.DataFrame([row]).astype(
        {name: kind for name, kind in OUT_OF_FOLD.items() if kind != "str"}
    )
    write_predictions(frame, tmp_path / "cv.csv")
    back = read_predictions(tmp_path / "cv.csv")
    assert back[["slide_id", "patient_id"]].values.tolist() == [[word, word]]
    assert back["score"].tolist() == frame["score"].tolist() and back["score"].dtype == "float32"
    write_csv(frame[["slide_id", "patient_id", "label", "score", "called"]], tmp_path / "t.csv")
    assert _test_slides((tmp_path / "t.csv").read_bytes(), "now")[
        ["slide_id", "patient_id"]
    ].values.tolist() == [[word, word]]


@pytest.mark.parametrize("word", ["NA", "null", "nan", "None", "007"])
def test_a_patient_of_any_name_is_drawn_by_the_bootstrap(word: str) -> None:
    """Six slides of the patient called so: another name gives the same interval, and its slides are
    not dropped.
    """

    def interval(name: str) -> tuple[float | None, float | None]:
        rows = [(f"s{i}", name if i < 6 else f"P{i}", i % 2, 0.1 + 0.05 * i, 1) for i in range(12)]
        text = "slide_id,patient_id,label,score,called\n" + "".join(
            ",".join(map(str, row)) + "\n" for row in rows
        )
        before = _test_slides(text.encode(), "before")
        assert before["patient_id"].tolist() == [row[1] for row in rows]
        gain = compare_pair(
            before, before.assign(score=before["score"][::-1].to_numpy()), Resampling(500, 0.95, 0)
        ).gain
        return gain.low, gain.high

    assert interval(word) == interval("Anna")
    assert interval(word) == (-1.0, pytest.approx(1 / 3))


def manifest(folder: Path, patients: list[str]) -> Path:
    rows = "".join(
        f"s{number},s{number}.svs,{number % 2},{patient}\n"
        for number, patient in enumerate(patients)
    )
    (folder / "slides.csv").write_text("slide_id,path,label,patient_id\n" + rows)
    return folder / "slides.csv"


@pytest.mark.parametrize(
    "words",
    [
        ("NA", "NA"),
        ("null", "null"),
        ("nan", "NaN"),
        ("None", "NONE"),
        ("unknown", "Unknown"),
        ("na", "NA"),
        ("N.A.", "N.A."),
    ],
)
def test_unknown_patients_are_not_one_patient(tmp_path: Path, words: tuple[str, str]) -> None:
    message = (
        rf"2 slides have patient_id='{words[0].lower()}' \(rows 2, 4\), which would make one"
        r" patient of all unknown ones; leave the cell empty"
    )
    with pytest.raises(CohortError, match=message):
        read_manifest(manifest(tmp_path, [words[0], "P1", words[1]]))


@pytest.mark.parametrize("word", ["N/A", "-", "?", "<NA>", "#N/A", "not available"])
def test_a_word_for_unknown_that_is_no_id_is_said_to_be_one(tmp_path: Path, word: str) -> None:
    with pytest.raises(
        CohortError,
        match=(
            r"row 2 \(slide_id=s0\): patient_id='.*' says that the patient is unknown; leave the"
            r" cell empty"
        ),
    ):
        read_manifest(manifest(tmp_path, [word, "P1"]))


def test_an_empty_cell_is_a_patient_of_its_own_and_so_is_one_slide_of_a_patient_called_na(
    tmp_path: Path,
) -> None:
    entries = read_manifest(manifest(tmp_path, ["", "", "NA", "P1", "P1"]))
    assert [entry.patient_id for entry in entries] == ["s0", "s1", "NA", "P1", "P1"]
    (tmp_path / "slides.csv").write_text(
        "slide_id,path,label,patient_id\nNA,a.svs,1,\ns,b.svs,0,NA\n"
    )
    with pytest.raises(CohortError, match=r"2 slides have patient_id='na' \(rows 2, 3\)"):
        read_manifest(tmp_path / "slides.csv")
    (tmp_path / "slides.csv").write_text("slide_id,path,label,annotation\na,a.svs,1,NA\n")
    with pytest.raises(
        CohortError,
        match=r"row 2 \(slide_id=a\): annotation='NA' names no file; leave the cell empty",
    ):
        read_manifest(tmp_path / "slides.csv")
    assert is_unknown(" n/a ") and not is_unknown("NAN2") and not is_unknown("Nadia")


def test_a_history_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    rows = [{"epoch": number, "loss": 0.1 + 0.2 * number, "auc": 1.0} for number in (1, 2)]
    write_history(rows, tmp_path / "h.csv")
    history = read_history(tmp_path / "h.csv", EvidenceError, "; run it")
    assert history.to_dict("records") == rows and [str(kind) for kind in history.dtypes] == [
        "int64",
        "float64",
        "float64",
    ]
    (tmp_path / "h.csv").write_text("epoch,loss\n1,\n2,NA\n")
    with pytest.raises(
        EvidenceError,
        match=r"h\.csv: column loss, row 1: value 'NA': must be of type float64; run it",
    ):
        read_history(tmp_path / "h.csv", EvidenceError, "; run it")
    (tmp_path / "h.csv").write_text("epoch,loss\n1,\n")
    assert read_history(tmp_path / "h.csv", EvidenceError, "")["loss"].isna().tolist() == [True]


def test_a_column_that_is_missing_and_a_number_that_is_none_are_named() -> None:
    with pytest.raises(
        EvidenceError, match=r"t: column b is missing; its columns are \['a'\]; run it"
    ):
        read_frame(
            b"a\n1\n", {"a": "int64", "b": "str"}, "t", refuse=EvidenceError, cure="; run it"
        )
    for kind, cell in (
        ("int32", "3000000000"),
        ("float32", "1e39"),
        ("float64", "nan"),
        ("bool", "1"),
        ("int64", ""),
    ):
        with pytest.raises(
            EvidenceError,
            match=f"t: column a, row 1: value '{cell}': must be of type {kind}; run it",
        ):
            good = "True" if kind == "bool" else "1"
            read_frame(
                f"a,b\n{good},\n{cell},\n".encode(),
                {"a": kind},
                "t",
                refuse=EvidenceError,
                cure="; run it",
            )
