"""The step `mine`, from files to files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_evidence as tiny

from hnm import params
from hnm.errors import MiningError
from hnm.loop.mine import mine_tiles
from hnm.mining.select import scorer_of
from hnm.tables import LABELS, MINED, MINED_SLIDES, SLIDES, TILE_SCORES


def mined_with(folder: Path, *vetoes: str, scores: str = "in_sample", cross_fitted: pd.DataFrame | None = None) -> dict[str, Any]:
    truth = tiny.cohort()
    tables, labels, slides = (folder / "tiles.parquet", folder / "cross_fitted.parquet"), folder / "train.csv", folder / "slides.parquet"
    TILE_SCORES.write(tiny.rounds(1)[0].tile_scores, tables[0])
    TILE_SCORES.write(TILE_SCORES.empty() if cross_fitted is None else cross_fitted, tables[1])
    LABELS.write(truth.labels["train"], labels)
    SLIDES.write(truth.slides, slides)
    (folder / "vetoes").mkdir()
    (folder / "vetoes" / "vetoes.csv").write_text("\n".join(["slide_id,tile,x,y,reason", *vetoes]) + "\n")
    section = params.Mining.model_validate({"scores": scores, "threshold": 0.3, "negative_fraction": 1.0, "max_slide_share": 1.0, "max_patient_share": 1.0})
    written = (folder / "mined.parquet", folder / "slides.csv", folder / "summary.json")
    return mine_tiles(*tables, labels, slides, folder / "vetoes", *written, 2, mining=section)


def test_what_is_written_fits_together_and_heeds_vetoes(tmp_path: Path) -> None:
    found = mined_with(tmp_path, "tr3,4,,,fold", "tr4,,70,10,pen", "te1,0,,,not of a train slide")
    mined, slides = MINED.read(tmp_path / "mined.parquet"), MINED_SLIDES.read(tmp_path / "slides.csv").set_index("slide_id")
    hard = mined[mined["role"] == "hard_negative"]
    # both negative train slides have 11 tiles, of which one is vetoed: tile 1 of tr4 covers x 64 to 128, y 0 to 64
    assert sorted(zip(hard["slide_id"], hard["tile"], strict=True)) == [(s, t) for s, veto in (("tr3", 4), ("tr4", 1)) for t in range(11) if t != veto]
    assert found == json.loads((tmp_path / "summary.json").read_text())
    assert (found["vetoed"], found["round"], found["hard_negative"]["tiles"], found["hard_negative"]["short_of_budget"]) == (2, 2, 20, 0)
    assert slides["mined"].to_dict() == {**mined["slide_id"].value_counts().to_dict()} | {s: 0 for s in slides.index if s not in set(mined["slide_id"])}
    assert slides.loc[["tr3", "tr4"], "share"].tolist() == [0.5, 0.5] and set(slides.index) == {"tr1", "tr2", "tr3", "tr4"}


def test_cross_fitted_scores_are_mined_where_asked_for(tmp_path: Path) -> None:
    tiles = tiny.rounds(1)[0].tile_scores
    train = tiles[tiles["slide_id"].isin(["tr1", "tr2", "tr3", "tr4"])]
    turned = train.assign(score=1 - train["score"], logit=-train["logit"])
    mined_with(tmp_path, "te1,0,,,a tile that has no cross-fitted score", scores="cross_fitted", cross_fitted=turned)
    mined = MINED.read(tmp_path / "mined.parquet")
    expected = mined.merge(turned, on=["slide_id", "tile"], suffixes=("", "_expected"))
    assert np.array_equal(expected["score"], expected["score_expected"]) and len(expected) == len(mined)
    assert set(mined["scorer"]) == {scorer_of(turned)}


def test_cross_fitted_scores_that_nobody_made_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(MiningError, match=r"mining\.scores=cross_fitted, but .*cross_fitted\.parquet holds no scores; set head\.score_folds to 2 or more"):
        mined_with(tmp_path, scores="cross_fitted")
