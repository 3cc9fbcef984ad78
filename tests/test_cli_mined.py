"""`hnm mined`, as it is typed."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from hnm.cli import app
from hnm.tables import MINED, MINED_SLIDES, PASSED_OVER, SLIDES
from tests.support import evidence as tiny_evidence


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two rounds; n2 is suspect in the second."""
    monkeypatch.chdir(tmp_path)
    SLIDES.write(tiny_evidence.cohort().slides, tmp_path / "data" / "cohort" / "slides.parquet")
    MINED.write(MINED.empty(), tmp_path / "data" / "mined" / "0" / "mined.parquet")
    for round_ in (1, 2):
        MINED.write(
            tiny_evidence.mined(round_), tmp_path / "data" / "mined" / str(round_) / "mined.parquet"
        )
        table = pd.DataFrame(
            {
                "slide_id": ["n1", "n2", "p1"],
                "patient_id": ["a", "b", "c"],
                "label": [0, 0, 1],
                "candidates": 40,
                "mined": [1, 7, 2],
                "share": [0.125, 0.875, 1.0],
                "patient_share": [0.125, 0.875, 1.0],
                "hardest": [0, 12, 0],
                "expected": [4.0, 4.0, 0.0],
                "chance": [1.0, 0.0001, 1.0],
                "suspect": [False, round_ == 2, False],
            }
        )
        MINED_SLIDES.write(table, tmp_path / "data" / "mined" / str(round_) / "slides.csv")
        PASSED_OVER.write(
            PASSED_OVER.empty(), tmp_path / "data" / "mined" / str(round_) / "passed_over.csv"
        )
    return tmp_path


def said(*arguments: str) -> list[str]:
    return CliRunner().invoke(app, ["mined", *arguments]).output.splitlines()


def test_suspects_are_listed_with_what_makes_them_so(root: Path) -> None:
    assert said("suspects") == [
        "n2\t12 of the hardest tiles, 4.0 by its size\tpatient b",
        "1 of 2 negative slides are suspect",
    ]
    assert said("suspects", "--round", "1") == ["0 of 2 negative slides are suspect"]


def test_export_of_the_last_round_or_of_another(root: Path) -> None:
    assert said("export", "--out", "a") == ["a/tr2.geojson", "a/tr3.geojson"]
    assert said("export", "--round", "1", "--out", "b") == [
        "b/tr1.geojson",
        "b/tr3.geojson",
        "b/tr4.geojson",
    ]
    assert (root / "b" / "tr4.geojson").is_file()
    assert said("export", "--round", "1") == [
        f"{root}/results/mined/1/{slide_id}.geojson" for slide_id in ("tr1", "tr3", "tr4")
    ]
    slides = SLIDES.read(root / "data" / "cohort" / "slides.parquet").assign(bounds_x=5, bounds_y=3)
    SLIDES.write(slides, root / "data" / "cohort" / "slides.parquet")
    said("export", "--out", "c")
    said("export", "--out", "d", "--origin", "level_0")
    corners = [
        json.loads((root / name / "tr2.geojson").read_text())["features"][0]["geometry"][
            "coordinates"
        ][0][0]
        for name in "cd"
    ]
    assert corners[0] == [corners[1][0] - 5, corners[1][1] - 3]
    *_, left_over = said("export", "--out", "b")
    assert (
        left_over == "b has files of slides without mined tiles too, perhaps of an earlier export:"
        " tr1.geojson, tr4.geojson"
    )


def test_gallery_of_the_last_round(root: Path) -> None:
    tiny_evidence.write_packs(root / "data" / "tiles" / "packs")
    assert said("gallery", "--out", "g", "--tiles", "3") == [
        "g/hard_negative.png",
        "g/positive.png",
    ]
    assert (root / "g" / "positive.png").is_file()


def test_nothing_mined_yet_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    MINED.write(
        MINED.empty(), tmp_path / "data" / "mined" / "0" / "mined.parquet"
    )  # what the stage `encoder` writes
    assert said("suspects") == [
        f"error: {tmp_path / 'data' / 'mined'} holds no round; run dvc repro"
    ]
