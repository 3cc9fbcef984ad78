"""The step `mine`, from files to files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hnm import params
from hnm.errors import MiningError, TableError
from hnm.learning import features as feature_files
from hnm.loop.mine import mine_tiles
from hnm.loop.paths import MineFiles
from hnm.mining.screen import pen_share
from hnm.mining.select import scorer_of
from hnm.slides.cutting.pack import Pack
from hnm.tables import LABELS, MINED, MINED_SLIDES, PASSED_OVER, SLIDES, TILE_SCORES
from tests.support import evidence as tiny

EVERY = params.Mining(
    threshold=0.3, negative_fraction=1.0, max_slide_share=1.0, max_patient_share=1.0
)


def mined_with(
    folder: Path,
    *vetoes: str,
    section: params.Mining = EVERY,
    scorer: int = 1,
    cross_fitted: pd.DataFrame | None = None,
    patients: dict[str, str] | None = None,
    before: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Mines round 2 from what the head of round `scorer` says; `patients` of some slides replace
    the cohort's.
    """
    truth = tiny.cohort()
    tables, labels, slides = (
        (folder / "tiles.parquet", folder / "cross_fitted.parquet"),
        folder / "train.csv",
        folder / "slides.parquet",
    )
    TILE_SCORES.write(tiny.rounds(2)[scorer].tile_scores, tables[0])
    TILE_SCORES.write(TILE_SCORES.empty() if cross_fitted is None else cross_fitted, tables[1])
    LABELS.write(truth.labels["train"], labels)
    SLIDES.write(
        truth.slides.assign(
            patient_id=[
                (patients or {}).get(s, p)
                for s, p in zip(truth.slides["slide_id"], truth.slides["patient_id"], strict=True)
            ]
        ),
        slides,
    )
    (folder / "vetoes").mkdir(exist_ok=True)
    (folder / "vetoes" / "vetoes.csv").write_text(
        "\n".join(["slide_id,tile,x,y,reason", *vetoes]) + "\n"
    )
    MINED.write(MINED.empty() if before is None else before, folder / "before.parquet")
    files = MineFiles(
        tile_scores=tables[0],
        cross_fitted=tables[1],
        train_labels=labels,
        slides=slides,
        vetoes=folder / "vetoes",
        features=folder / "features",
        packs=folder / "packs",
        extra=folder / "extra",
        mined_before=folder / "before.parquet",
        mined=folder / "mined.parquet",
        mined_slides=folder / "slides.csv",
        passed_over=folder / "passed_over.csv",
        summary=folder / "summary.json",
    )
    return mine_tiles(files, 2, section)


def test_what_is_written_fits_together_and_heeds_vetoes(tmp_path: Path) -> None:
    found = mined_with(tmp_path, "tr3,4,,,fold", "tr4,,70,10,pen", "te1,0,,,not of a train slide")
    mined, slides = (
        MINED.read(tmp_path / "mined.parquet"),
        MINED_SLIDES.read(tmp_path / "slides.csv").set_index("slide_id"),
    )
    hard = mined[mined["role"] == "hard_negative"]
    # both negative train slides have 11 tiles, of which one is vetoed: tile 1 of tr4 covers x 64 to
    # 128, y 0 to 64
    assert sorted(zip(hard["slide_id"], hard["tile"], strict=True)) == [
        (s, t) for s, veto in (("tr3", 4), ("tr4", 1)) for t in range(11) if t != veto
    ]
    assert found == json.loads((tmp_path / "summary.json").read_text())
    assert (
        found["vetoed"],
        found["round"],
        found["hard_negative"]["tiles"],
        found["hard_negative"]["short_of_budget"],
    ) == (2, 2, 20, 0)
    assert slides["mined"].to_dict() == {**mined["slide_id"].value_counts().to_dict()} | {
        s: 0 for s in slides.index if s not in set(mined["slide_id"])
    }
    assert slides.loc[["tr3", "tr4"], "share"].tolist() == [0.5, 0.5] and set(slides.index) == {
        "tr1",
        "tr2",
        "tr3",
        "tr4",
    }
    assert PASSED_OVER.read(tmp_path / "passed_over.csv").empty


def test_of_tiles_that_overlap_by_more_than_half_the_first_alone_is_mined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth column of tr4's grid, tiles 3 and 7, is moved in to 31 px behind the third; 32 px
    would be just half of a tile.
    """
    at_half = tiny.GRID

    def grid_with(moved: int) -> dict[str, Any]:
        monkeypatch.setattr(
            tiny,
            "GRID",
            [(2 * tiny.SIDE + moved if x == 3 * tiny.SIDE else x, y) for x, y in at_half],
        )
        told = mined_with(tmp_path)
        hard = MINED.read(tmp_path / "mined.parquet").query("role == 'hard_negative'")
        return {
            "twins": told["twins"],
            "candidates": told["hard_negative"]["candidates"],
            "tr4": sorted(hard.loc[hard["slide_id"] == "tr4", "tile"]),
        }

    assert grid_with(31) == {"twins": 8, "candidates": 18, "tr4": [0, 1, 2, 4, 5, 6, 8, 9, 10]}
    assert grid_with(32) == {"twins": 0, "candidates": 22, "tr4": list(range(11))}


def test_near_duplicates_are_told_by_role_and_reason(tmp_path: Path) -> None:
    for slide_id in (
        "tr1",
        "tr2",
        "tr3",
        "tr4",
    ):  # tile n of tr3 and tile n of tr4 are one picture; no positive is like them
        plane = (
            np.eye(24, dtype=np.float16)[:11]
            if slide_id in ("tr3", "tr4")
            else np.eye(24, dtype=np.float16)[13:]
        )
        feature_files.write(
            plane, np.zeros((11, 2), np.int64), tmp_path / "features" / f"{slide_id}.h5"
        )
    found = mined_with(
        tmp_path,
        section=EVERY.model_copy(update={"max_similarity": 0.99, "max_positive_similarity": 0.99}),
    )
    told, passed_over = found["hard_negative"], PASSED_OVER.read(tmp_path / "passed_over.csv")
    assert (told["tiles"], told["short_of_budget"], told["passed_over"]) == (
        11,
        11,
        {"near_duplicate": 11},
    )
    assert (
        found["positive"]["passed_over"] == {}
        and len(passed_over) == 11
        and set(passed_over["tile"]) == set(range(11))
    )


def test_the_screen_reads_the_pixels_of_the_packs(tmp_path: Path) -> None:
    tiny.write_packs(
        tmp_path / "packs"
        # plain colours, from (200, 110, 40) of tr3's tile 0 to (110, 110, 190): from tile 7 on they
        # are
        # blue
    )
    found = mined_with(
        tmp_path, section=EVERY.model_copy(update={"screen": params.Screen(max_pen_share=0.5)})
    )
    hard = PASSED_OVER.read(tmp_path / "passed_over.csv").query("role == 'hard_negative'")
    assert found["hard_negative"]["passed_over"] == {"pen": len(hard)} and found["hard_negative"][
        "tiles"
    ] == 22 - len(hard)
    for slide_id, tile in [(s, t) for s in ("tr3", "tr4") for t in range(11)]:
        pack = Pack(tmp_path / "packs" / f"{slide_id}.h5")
        refused = pen_share(pack.tiles([tile])[0]) > 0.5
        assert refused == ((hard["slide_id"] == slide_id) & (hard["tile"] == tile)).any()
    assert 0 < len(hard) < 22


def test_the_summary_tells_the_overlap_with_the_round_before(tmp_path: Path) -> None:
    mined_with(tmp_path)
    own = MINED.read(tmp_path / "mined.parquet")
    half = own.iloc[: len(own) // 2]
    alone, again, other = (
        mined_with(tmp_path, before=before)
        for before in (None, half, half.assign(tile=half["tile"] + np.int32(100)))
    )
    assert (alone["jaccard"], alone["churn"]) == (None, None)
    assert again["jaccard"] == pytest.approx(len(half) / len(own), abs=1e-6) and again[
        "churn"
    ] == pytest.approx(1 - len(half) / len(own), abs=1e-6)
    assert (other["jaccard"], other["churn"]) == (0.0, 1.0)


def test_patients_are_those_of_the_cohort(tmp_path: Path) -> None:
    found = {}
    for patients in ({}, {"tr4": "p3"}):
        found[len(patients)] = mined_with(
            tmp_path,
            section=EVERY.model_copy(update={"max_patient_share": 0.25}),
            patients=patients,
        )
    # of a budget of 22 no patient supplies more than 6, and tr3 is p3's
    assert [found[shared]["hard_negative"]["tiles"] for shared in (0, 1)] == [12, 6]


def test_a_limit_without_features_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"features/tr\d.h5 does not exist; run the stage embed"):
        mined_with(tmp_path, section=EVERY.model_copy(update={"max_similarity": 0.99}))


def test_round_2_names_the_head_of_round_1_that_it_was_mined_by(tmp_path: Path) -> None:
    """Swapped for another, the digest differs on every tile, and with it what is mined."""
    section = EVERY.model_copy(update={"negative_fraction": 0.2})
    sets = {}
    for name, scorer in (("one", 1), ("again", 1), ("swapped", 0)):
        (tmp_path / name).mkdir()
        mined_with(tmp_path / name, section=section, scorer=scorer)
        sets[name] = MINED.read(tmp_path / name / "mined.parquet")
        assert set(sets[name]["round"]) == {2} and sets[name]["scorer"].nunique() == 1
    assert sets["one"].equals(sets["again"])
    assert not set(sets["one"]["scorer"]) & set(sets["swapped"]["scorer"])
    tiles = [
        set(zip(s["slide_id"], s["tile"], strict=True)) for s in (sets["one"], sets["swapped"])
    ]
    assert tiles[0] != tiles[1]


def test_cross_fitted_scores_are_mined_where_asked_for(tmp_path: Path) -> None:
    tiles = tiny.rounds(1)[0].tile_scores
    train = tiles[tiles["slide_id"].isin(["tr1", "tr2", "tr3", "tr4"])]
    turned = train.assign(score=1 - train["score"], logit=-train["logit"])
    mined_with(
        tmp_path,
        "te1,0,,,a tile that has no cross-fitted score",
        section=EVERY.model_copy(update={"scores": "cross_fitted"}),
        cross_fitted=turned,
    )
    mined = MINED.read(tmp_path / "mined.parquet")
    expected = mined.merge(turned, on=["slide_id", "tile"], suffixes=("", "_expected"))
    assert np.array_equal(expected["score"], expected["score_expected"]) and len(expected) == len(
        mined
    )
    assert set(mined["scorer"]) == {scorer_of(turned)}


def test_cross_fitted_scores_that_nobody_made_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        MiningError,
        match=(
            r"mining\.scores=cross_fitted, but .*cross_fitted\.parquet holds no scores; set"
            r" head\.score_folds to 2 or more"
        ),
    ):
        mined_with(tmp_path, section=EVERY.model_copy(update={"scores": "cross_fitted"}))
