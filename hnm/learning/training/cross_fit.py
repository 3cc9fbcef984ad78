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
    """Returns the `TILE_SCORES` of the train slides, each scored by a head that was not trained on
    it; without rows where `head.score_folds` is 0.

    With many features and few slides a head learns the labels of some train slides by heart. Of
    these slides its hardest negatives are only the tiles that it has not learnt yet, and its surest
    positives are any tiles of positive slides. So the train slides are dealt into folds, and the
    head that scores a fold is trained on the other folds. Its best epoch is chosen on validation,
    as for any head.

    Heads differ in how far they spread their logits. If folds were ranked together as they are, the
    hardest tiles would all come from the head that spreads most. So the logits of each head are
    shifted and stretched until those of all train tiles have the mean and the deviation that the
    heads have on average. The order within a fold stays.

    Args:
        train: the labelled train slides.
        patients: slide id -> patient id, of the train slides at least.
        validation: the labelled validation slides.
        tiles: the `TILES` index.
        section: the settings of the head.
        ranking: the settings of the ranking loss.

    Raises:
        HeadError: a fold would have no slides of one label; or as `fit_head`.
    """
    if not section.score_folds:
        return TILE_SCORES.empty()
    features = {slide.slide_id: slide.features for slide in train}
    tiles = tiles[tiles["slide_id"].isin(list(features))]
    tables = []
    scored_ids = []
    for others, fold in score_folds(train, patients, section.score_folds, section.seed):
        head, _ = fit_head(others, validation, section, ranking, lambda epoch, metrics: None)
        tables.append(predict(head, features, tiles)[1])
        scored_ids.append([slide.slide_id for slide in fold])
    scaled = on_one_scale([table["logit"].to_numpy(np.float64) for table in tables])
    parts = []
    for table, logits, slide_ids in zip(tables, scaled, scored_ids, strict=True):
        rescored = table.assign(
            logit=logits.astype(np.float32), score=expit(logits).astype(np.float32)
        )
        parts.append(rescored[rescored["slide_id"].isin(slide_ids)])
    return pd.concat(parts, ignore_index=True)


def on_one_scale(logits: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Returns the logits `(tiles,)` of each head, all of the same tiles, shifted and stretched to
    the heads' average mean and deviation.
    """
    table = np.asarray(logits)
    means = table.mean(axis=1)
    deviations = table.std(axis=1)
    # a head that gives all tiles one logit has nothing to stretch
    stretch = deviations.mean() / np.where(deviations > 0, deviations, 1)
    return list((table - means[:, None]) * stretch[:, None] + means.mean())


def score_folds(
    train: Sequence[LabelledSlide], patients: Mapping[str, str], folds: int, seed: int
) -> Iterator[tuple[list[LabelledSlide], list[LabelledSlide]]]:
    """Yields the slides to train on and the slides to score of each fold. The slides of a patient
    share a fold, and labels are spread evenly.
    """
    slides = [(patients[slide.slide_id], slide.label) for slide in train]
    fold_of = folds_of(slides, folds, seed, "score folds", "head.score_folds", HeadError)
    for fold in range(folds):
        is_scored = [fold_of[patient] == fold for patient, _ in slides]
        yield (
            [slide for slide, scored in zip(train, is_scored, strict=True) if not scored],
            [slide for slide, scored in zip(train, is_scored, strict=True) if scored],
        )
