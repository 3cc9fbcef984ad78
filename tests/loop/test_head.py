"""The step `head`, from files to files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hnm import params
from hnm.files import digest_of
from hnm.learning import features as feature_files
from hnm.loop.head import train_head
from hnm.loop.paths import HeadFiles
from hnm.tables import LABELS, MINED, PATIENTS, SLIDE_SCORES, TILE_SCORES, TILES
from tests.support import evidence as tiny


def run(folder: Path, mined: pd.DataFrame, **head: object) -> list[dict[str, float]]:
    """The step on the tiny cohort, whose validation slides are its train slides, with features that
    know a little of the label.
    """
    truth, index = tiny.cohort(), tiny.tiles()
    labels = truth.label_of
    for slide_id, own in index.groupby("slide_id"):
        rows = np.random.default_rng(len(slide_id) + ord(slide_id[-1])).normal(
            size=(len(own), 3)
        ) + labels.get(str(slide_id), 0)
        feature_files.write(
            rows.astype(np.float32),
            own[["x", "y"]].to_numpy(np.int64),
            folder / "features" / f"{slide_id}.h5",
        )
    TILES.write(index, folder / "index.parquet")
    PATIENTS.write(truth.slides[["slide_id", "patient_id"]], folder / "patients.csv")
    MINED.write(mined, folder / "mined.parquet")
    LABELS.write(truth.labels["train"], folder / "train.csv")
    return train_head(
        HeadFiles(
            features=folder / "features",
            index=folder / "index.parquet",
            patients=folder / "patients.csv",
            mined=folder / "mined.parquet",
            train_labels=folder / "train.csv",
            validation_labels=folder / "train.csv",
            folder=folder / "head",
            tile_scores=folder / "tiles.parquet",
            slide_scores=folder / "slide_scores.parquet",
            cross_fitted=folder / "cross_fitted.parquet",
        ),
        head=params.Head.model_validate({"epochs": 2, "attention_features": 4, **head}),
        ranking=params.Ranking(),
        compute=params.Compute(threads=1),
        on_epoch=lambda epoch, metrics: None,
    )


def test_all_slides_are_scored_and_cross_fitting_costs_nothing_unless_asked_for(
    tmp_path: Path,
) -> None:
    run(tmp_path / "none", MINED.empty())
    tiles = TILE_SCORES.read(tmp_path / "none" / "tiles.parquet")
    assert len(tiles) == len(tiny.tiles()) and set(
        SLIDE_SCORES.read(tmp_path / "none" / "slide_scores.parquet")["slide_id"]
    ) == set(tiles["slide_id"])
    assert TILE_SCORES.read(tmp_path / "none" / "cross_fitted.parquet").empty
    run(tmp_path / "folds", MINED.empty(), score_folds=2)
    crossed = TILE_SCORES.read(tmp_path / "folds" / "cross_fitted.parquet")
    assert set(crossed["slide_id"]) == {"tr1", "tr2", "tr3", "tr4"} and len(crossed) == 44
    same = [
        digest_of(tmp_path / run_ / name)
        for name in ("tiles.parquet", "slide_scores.parquet", "head/weights.safetensors")
        for run_ in ("none", "folds")
    ]
    assert same[::2] == same[1::2]


def test_a_mined_head_learns_from_its_rounds_mined_tiles_and_from_all_in_round_0(
    tmp_path: Path,
) -> None:
    table = tiny.mined(1)
    mined, swapped = (
        run(tmp_path / "mined", table, kind="mined"),
        run(tmp_path / "swapped", tiny.mined(1).assign(tile=table["tile"] + 1), kind="mined"),
    )
    everything, inherited = (
        run(tmp_path / "round_0", MINED.empty(), kind="mined"),
        run(tmp_path / "all", every_tile(), kind="mined"),
    )
    assert len({history[0]["loss"] for history in (mined, swapped, everything)}) == 3
    assert [row["loss"] for row in everything] == pytest.approx(
        [row["loss"] for row in inherited], rel=2e-4
    )


def every_tile() -> pd.DataFrame:
    """All tiles of the train slides as mined."""
    label = tiny.cohort().labels["train"].set_index("slide_id")["label"]
    tiles = tiny.tiles().drop(columns="tissue")
    tiles = tiles[tiles["slide_id"].isin(label.index)]
    roles = tiles["slide_id"].map(label).map({0: "hard_negative", 1: "positive"})
    template = tiny.mined(1).iloc[0].drop(["role", "rank", "slide_id", "tile", "x", "y", "side"])
    table = tiles.assign(role=roles, **template)
    return table.assign(rank=table.groupby("role").cumcount() + 1).astype(
        {"rank": "int32", "score": "float32", "logit": "float32", "round": "int32"}
    )
