"""Cross-fitted scores: each train slide's tiles scored by a head that was not trained on that
slide.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from hnm import params
from hnm.errors import HeadError
from hnm.learning.predict import predict
from hnm.learning.training.fit_head import LabelledSlide, fit_head
from hnm.splits import folds_of
from hnm.tables import TILE_SCORES


def cross_fitted_scores(
    train: Sequence[LabelledSlide],
    patients: Mapping[str, str],
    validation: Sequence[LabelledSlide],
    tiles: pd.DataFrame,
    section: params.Head,
    ranking: params.Ranking,
) -> pd.DataFrame:
    """The `TILE_SCORES` of the train slides, each slide's by the head of its fold; empty where
    `head.score_folds` is 0.

    A head has learnt the labels of its own train slides, and with many features and few slides some
    of them by heart:
    in sample, the hardest negatives are those that it did not get round to, and the surest
    positives any tiles of positive slides. The head of a fold is trained as any other, its epoch
    chosen on validation, on all train slides but the fold's. Two heads differ in how far they
    spread their logits, so that ranking their folds together would take the hardest tiles from
    whoever spreads most: each head's logits are shifted and stretched until those of all train
    tiles have the mean and the deviation that the heads have on average. The order within a fold
    stays.

    Args:
        train: the labelled train slides.
        patients: slide id -> patient id, of the train slides at least.
        validation: the labelled validation slides.
        tiles: the `TILES` index.
        section: the head's settings.
        ranking: the ranking loss's.

    Raises:
        HeadError: a fold would have no slides of one label; or as `fit_head`.
    """
    if not section.score_folds:
        return TILE_SCORES.empty()
    features = {slide.slide_id: slide.features for slide in train}
    tiles = tiles[tiles["slide_id"].isin(list(features))]
    of_folds, owned = [], []
    for others, own in score_folds(train, patients, section.score_folds, section.seed):
        head, _ = fit_head(others, validation, section, ranking, _untold)
        of_folds.append(predict(head, features, tiles)[1])
        owned.append({slide.slide_id for slide in own})
    scaled = on_one_scale([scores["logit"].to_numpy(np.float64) for scores in of_folds])
    tables = []
    for scores, logits, own_ids in zip(of_folds, scaled, owned, strict=True):
        told = scores.assign(
            logit=logits.astype(np.float32), score=expit(logits).astype(np.float32)
        )
        tables.append(told[told["slide_id"].isin(own_ids)])
    return pd.concat(tables, ignore_index=True)


def on_one_scale(logits: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Each head's `(tiles,)` logits of the same tiles, moved to the heads' average mean and
    deviation.
    """
    means, deviations = np.mean(logits, axis=1), np.std(logits, axis=1)
    stretch = deviations.mean() / np.where(
        deviations > 0, deviations, 1
    )  # a head that says one thing of all has nothing to stretch
    return [
        (own - mean) * factor + means.mean()
        for own, mean, factor in zip(logits, means, stretch, strict=True)
    ]


def score_folds(
    train: Sequence[LabelledSlide], patients: Mapping[str, str], folds: int, seed: int
) -> Iterator[tuple[list[LabelledSlide], list[LabelledSlide]]]:
    """(slides to train on, slides to score) of each fold: a patient's slides share a fold, labels
    are spread evenly.
    """
    slides = [(patients[slide.slide_id], slide.label) for slide in train]
    fold_of = folds_of(slides, folds, seed, "score folds", "head.score_folds", HeadError)
    for fold in range(folds):
        is_scored = [fold_of[patient] == fold for patient, _ in slides]
        yield (
            [slide for slide, scored in zip(train, is_scored, strict=True) if not scored],
            [slide for slide, scored in zip(train, is_scored, strict=True) if scored],
        )


def _untold(epoch: int, metrics: Mapping[str, float]) -> None:
    """The epochs of a fold's head are told to nobody."""
