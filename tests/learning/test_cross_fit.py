"""Cross-fitted scores: no slide is scored by a head that was trained on its patient."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from hnm import params
from hnm.errors import HeadError
from hnm.learning.cross_fit import cross_fitted_scores, score_folds
from hnm.learning.fit_head import LabelledSlide, fit_head
from hnm.learning.predict import predict
from hnm.tables import TILE_SCORES, TILES

RANKING = params.Ranking(top_k=2)
SECTION = params.Head(epochs=2, attention_features=4, score_folds=3)


def slides(count: int, seed: int) -> list[LabelledSlide]:
    generator = torch.Generator().manual_seed(seed)
    return [LabelledSlide(f"s{seed}_{i:02}", torch.randn(3 + i % 3, 4, generator=generator) + i % 2, i % 2) for i in range(count)]


TRAIN, VALIDATION = slides(15, 1), slides(6, 2)
PATIENTS = {slide.slide_id: f"p{max(i, 1)}" for i, slide in enumerate(TRAIN)}  # the first two slides, of both labels, are of one patient


def index_of(*groups: list[LabelledSlide]) -> pd.DataFrame:
    rows = [(slide.slide_id, tile, 10 * tile, 0, 10, 0.9) for group in groups for slide in group for tile in range(len(slide.features))]
    table = pd.DataFrame(rows, columns=list(TILES.columns)).astype({"tile": "int32", "tissue": "float32"})
    return TILES.check(table, "tiles")


def scores_of(train: list[LabelledSlide], section: params.Head = SECTION) -> pd.DataFrame:
    return cross_fitted_scores(train, PATIENTS, VALIDATION, index_of(TRAIN, VALIDATION), section, RANKING)


def test_each_slide_is_scored_once_by_the_head_of_the_other_folds() -> None:
    scores = TILE_SCORES.check(scores_of(TRAIN), "scores").set_index(["slide_id", "tile"])["logit"]
    assert scores.index.equals(pd.MultiIndex.from_frame(index_of(TRAIN)[["slide_id", "tile"]]))
    for others, own in score_folds(TRAIN, PATIENTS, 3, SECTION.seed):
        head = fit_head(others, VALIDATION, SECTION, RANKING, lambda epoch, metrics: None)[0]
        expected = predict(head, {slide.slide_id: slide.features for slide in own}, index_of(own))[1]
        assert scores[expected["slide_id"].unique()].tolist() == expected["logit"].tolist()


def test_folds_keep_patients_together_and_spread_the_labels() -> None:
    folds = list(score_folds(TRAIN, PATIENTS, 3, 0))
    assert sorted(slide.slide_id for _, own in folds for slide in own) == [slide.slide_id for slide in TRAIN]
    for others, own in folds:
        assert len(others) + len(own) == 15
        assert not {PATIENTS[slide.slide_id] for slide in others} & {PATIENTS[slide.slide_id] for slide in own}
        assert all(2 <= count <= 3 for count in Counter(slide.label for slide in own).values())
    assert [own for _, own in score_folds(TRAIN, PATIENTS, 3, 1)] != [own for _, own in folds]


def test_a_slides_tiles_change_no_score_of_its_own_fold() -> None:
    own = {slide.slide_id for slide in next(fold for _, fold in score_folds(TRAIN, PATIENTS, 3, SECTION.seed) if TRAIN[4] in fold)}
    changed = [LabelledSlide(slide.slide_id, slide.features * 3 + 1, slide.label) if slide is TRAIN[4] else slide for slide in TRAIN]
    before, after = scores_of(TRAIN), scores_of(changed)
    same = before["logit"] == after["logit"]
    of_fold, of_slide = before["slide_id"].isin(own), before["slide_id"] == TRAIN[4].slide_id
    assert same[of_fold & ~of_slide].all() and not same[~of_fold].any() and not same[of_slide].all()


def test_no_folds_give_no_scores() -> None:
    none = scores_of(TRAIN, SECTION.model_copy(update={"score_folds": 0}))
    assert none.empty and np.array_equal(TILE_SCORES.check(none, "scores").columns, list(TILE_SCORES.columns))


def test_more_folds_than_patients_of_a_label_are_refused() -> None:
    with pytest.raises(HeadError, match=r"head\.score_folds=8, but train slides with label 1 and tiles are of 7 patients; lower it, or add slides of others"):
        list(score_folds(TRAIN, PATIENTS, 8, 0))
