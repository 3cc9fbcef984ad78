"""Cross-fitted scores: no slide is scored by a head that was trained on its patient."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from hnm import params
from hnm.errors import HeadError
from hnm.learning.predict import predict
from hnm.learning.training.cross_fit import cross_fitted_scores, on_one_scale, score_folds
from hnm.learning.training.fit_head import LabelledSlide, fit_head
from hnm.tables import TILE_SCORES, TILES

RANKING = params.Ranking(top_k=2)
SECTION = params.Head(epochs=2, attention_features=4, score_folds=3)


def slides(count: int, seed: int) -> list[LabelledSlide]:
    generator = torch.Generator().manual_seed(seed)
    return [
        LabelledSlide(
            f"s{seed}_{i:02}", torch.randn(3 + i % 3, 4, generator=generator) + i % 2, i % 2
        )
        for i in range(count)
    ]


TRAIN, VALIDATION = slides(15, 1), slides(6, 2)
PATIENTS = {
    slide.slide_id: f"p{max(i, 1)}" for i, slide in enumerate(TRAIN)
}  # the first two slides, of both labels, are of one patient


def index_of(*groups: list[LabelledSlide]) -> pd.DataFrame:
    rows = [
        (slide.slide_id, tile, 10 * tile, 0, 10, 0.9)
        for group in groups
        for slide in group
        for tile in range(len(slide.features))
    ]
    table = pd.DataFrame(rows, columns=list(TILES.columns)).astype(
        {"tile": "int32", "tissue": "float32"}
    )
    return TILES.check(table, "tiles")


def scores_of(train: list[LabelledSlide], section: params.Head = SECTION) -> pd.DataFrame:
    return cross_fitted_scores(
        train, PATIENTS, VALIDATION, index_of(TRAIN, VALIDATION), section, RANKING
    )


def test_each_slide_is_scored_once_by_the_head_of_the_other_folds() -> None:
    scores = TILE_SCORES.check(scores_of(TRAIN), "scores").set_index(["slide_id", "tile"])["logit"]
    assert sorted(scores.index) == sorted(
        pd.MultiIndex.from_frame(index_of(TRAIN)[["slide_id", "tile"]])
    )
    features = {slide.slide_id: slide.features for slide in TRAIN}
    folds = list(score_folds(TRAIN, PATIENTS, 3, SECTION.seed))
    heads = [
        fit_head(others, VALIDATION, SECTION, RANKING, lambda epoch, metrics: None)[0]
        for others, _ in folds
    ]
    logits_of_folds = [
        predict(head, features, index_of(TRAIN))[1]
        .set_index(["slide_id", "tile"])["logit"]
        .astype(float)
        for head in heads
    ]
    mean, deviation = (
        np.mean([logits.mean() for logits in logits_of_folds]),
        np.mean([logits.std(ddof=0) for logits in logits_of_folds]),
    )
    for (_, fold), logits in zip(folds, logits_of_folds, strict=True):
        for slide in fold:
            expected = (logits[slide.slide_id] - logits.mean()) / logits.std(
                ddof=0
            ) * deviation + mean
            assert scores[slide.slide_id].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_heads_that_spread_their_logits_more_are_brought_to_one_scale() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(1, 2, 50), generator.normal(-1, 1, 50)
    same = on_one_scale([first, second])
    moved = on_one_scale([first, 3 * second + 5])
    assert [logits.mean() for logits in same] == pytest.approx([same[0].mean()] * 2) and [
        logits.std() for logits in same
    ] == pytest.approx([same[0].std()] * 2)
    for before, after in zip(same, moved, strict=True):
        assert (after - after.mean()) / after.std() == pytest.approx(
            (before - before.mean()) / before.std()
        )
    assert (
        on_one_scale([np.zeros(3), np.array([1.0, 2.0, 3.0])])[0].tolist() == [1.0] * 3
    )  # a head that says one thing of all


def test_folds_keep_patients_together_and_spread_the_labels() -> None:
    folds = list(score_folds(TRAIN, PATIENTS, 3, 0))
    assert sorted(slide.slide_id for _, fold in folds for slide in fold) == [
        slide.slide_id for slide in TRAIN
    ]
    for others, fold in folds:
        assert len(others) + len(fold) == 15
        assert not {PATIENTS[slide.slide_id] for slide in others} & {
            PATIENTS[slide.slide_id] for slide in fold
        }
        assert all(2 <= count <= 3 for count in Counter(slide.label for slide in fold).values())
    assert [fold for _, fold in score_folds(TRAIN, PATIENTS, 3, 1)] != [fold for _, fold in folds]


def test_a_slides_tiles_change_no_score_of_its_own_fold() -> None:
    fold = {
        slide.slide_id
        for slide in next(
            fold for _, fold in score_folds(TRAIN, PATIENTS, 3, SECTION.seed) if TRAIN[4] in fold
        )
    }
    changed = [
        (
            LabelledSlide(slide.slide_id, slide.features * 3 + 1, slide.label)
            if slide is TRAIN[4]
            else slide
        )
        for slide in TRAIN
    ]
    before, after = (
        scores.set_index(["slide_id", "tile"])["logit"]
        for scores in (scores_of(TRAIN), scores_of(changed))
    )
    others = before.index.get_level_values("slide_id").isin(fold - {TRAIN[4].slide_id})
    # the head of the fold is the same, and the scale of all moves every logit by one line
    slope, offset = np.polyfit(before[others], after[others], 1)
    assert after[others].to_numpy() == pytest.approx(
        slope * before[others].to_numpy() + offset, abs=1e-5
    )
    outside = ~before.index.get_level_values("slide_id").isin(fold)
    slope, offset = np.polyfit(before[outside], after[outside], 1)
    assert (
        np.abs(after[outside].to_numpy() - slope * before[outside].to_numpy() - offset).max() > 1e-3
    )


def test_no_folds_give_no_scores() -> None:
    none = scores_of(TRAIN, SECTION.model_copy(update={"score_folds": 0}))
    assert none.empty and np.array_equal(
        TILE_SCORES.check(none, "scores").columns, list(TILE_SCORES.columns)
    )


def test_more_folds_than_patients_of_a_label_are_refused() -> None:
    with pytest.raises(
        HeadError,
        match=(
            r"7 patients with positive slides cannot be dealt into head\.score_folds=8 folds, each of"
            r" which needs one; lower it or add patients"
        ),
    ):
        list(score_folds(TRAIN, PATIENTS, 8, 0))
