"""How well the tile scores find lesions: of single tiles, and of peaks against drawn lesions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hnm.evidence.numbers.areas import auc_number, average_precision_number
from hnm.evidence.numbers.intervals import Number, Resamples, Resampling
from hnm.evidence.numbers.predictions import Floats, Predictions
from hnm.evidence.numbers.threshold import called

FROC_RATES = (0.25, 0.5, 1, 2, 4, 8)
"""False detections a slide."""
LESION_METRICS = ("froc", "lesions_hit", "false_detections")


@dataclass(frozen=True)
class Detections:
    """The peaks of the tile scores on some slides, beside the lesions there."""

    lesion_scores: Floats
    """`(lesions,)` score of each lesion's best peak, -inf where none touches it."""
    lesion_patients: NDArray[np.str_]
    """`(lesions,)` ids"""
    false_scores: Floats
    """`(false detections,)` scores of the peaks that touch no lesion."""
    false_patients: NDArray[np.str_]
    """`(false detections,)` ids"""
    slide_patients: NDArray[np.str_]
    """`(slides,)` ids; a slide without a peak counts as well."""

    @property
    def slides(self) -> int:
        """The number of slides that were searched."""
        return len(self.slide_patients)


def tile_metrics(tiles: Predictions, resampling: Resampling) -> dict[str, Number]:
    """Returns AUC and average precision of tiles pooled over slides, each with its interval."""
    return {
        "auc": auc_number(tiles, resampling),
        "average_precision": average_precision_number(tiles, resampling),
    }


def lesion_metrics(
    detections: Detections, threshold: float, resampling: Resampling
) -> dict[str, Number]:
    """Returns how many lesions the tile scores find, and at what price, each with its interval.

    `froc` is the mean of the six shares of `froc`. A lesion is hit where its best peak scores
    `threshold` or more: `lesions_hit` is the share of such lesions, `false_detections` the number
    of such peaks beside all lesions, a slide.
    """
    if not len(detections.lesion_scores):
        return {name: Number(None, reason="no lesion is drawn") for name in LESION_METRICS}
    slide_patients = detections.slide_patients
    with_lesion = np.isin(slide_patients, detections.lesion_patients).astype(np.int64)
    resamples = Resamples(
        Predictions(with_lesion, np.zeros(detections.slides), slide_patients), resampling
    )
    lesions = np.searchsorted(resamples.patients, detections.lesion_patients)
    false = np.searchsorted(resamples.patients, detections.false_patients)
    hit = called(detections.lesion_scores, threshold)
    false_alarms = called(detections.false_scores, threshold)

    def slides(weights: Floats) -> Floats:
        return np.asarray(resamples.on_items(weights).sum(axis=1))

    return {
        "froc": resamples.number(
            lambda weights: _froc(
                detections, weights[:, lesions], weights[:, false], slides(weights)
            ).mean(axis=1)
        ),
        "lesions_hit": resamples.number(
            lambda weights: weights[:, lesions] @ hit / weights[:, lesions].sum(axis=1),
            proportion_of=len(np.unique(detections.lesion_patients)),
        ),
        "false_detections": resamples.number(
            lambda weights: weights[:, false] @ false_alarms / slides(weights)
        ),
    }


def froc(detections: Detections) -> Floats:
    """Returns the share of lesions found at a mean of 1/4, 1/2, 1, 2, 4 and 8 false detections a
    slide, as CAMELYON16 asks; without interpolation.

    Args:
        detections: with at least one lesion.

    Returns:
        `(6,)`; its mean is CAMELYON16's score.
    """
    shares: Floats = _froc(
        detections,
        np.ones((1, len(detections.lesion_scores))),
        np.ones((1, len(detections.false_scores))),
        np.array([float(detections.slides)]),
    )[0]
    return shares


def _froc(detections: Detections, of_lesions: Floats, of_false: Floats, slides: Floats) -> Floats:
    """Returns `froc` for each row of weights `(resamples, lesions)`, `(resamples, false
    detections)` and `(resamples,)` slides: `(resamples, 6)`.
    """
    order = np.argsort(-detections.false_scores, kind="stable")
    highest_first = np.append(detections.false_scores[order], -np.inf)
    shares = []
    for lesions, false, count in zip(of_lesions, of_false[:, order], slides, strict=True):
        first_too_many = np.searchsorted(
            np.cumsum(false), np.floor(np.multiply(FROC_RATES, count)), side="right"
        )
        detected = detections.lesion_scores > highest_first[first_too_many, None]
        shares.append(detected @ lesions / lesions.sum())
    return np.array(shares)
