"""DeLong's variance of AUCs; slides count as independent, whoever they are of."""

import numpy as np
from scipy.stats import norm, rankdata

from hnm.evidence.numbers.predictions import Floats, Labels, Predictions

LEAST_VARIANCE = 1e-12
"""A variance below it is zero but for rounding."""


def delong(labels: Labels, scores: Floats) -> tuple[Floats, Floats]:
    """Returns the AUCs of several scores of the same slides, and their covariance (DeLong et al.
    1988, by the midranks of Sun & Xu 2014).

    Args:
        labels: `(slides,)` 0 or 1, both present twice or more.
        scores: `(raters, slides)`

    Returns:
        `(raters,)` and `(raters, raters)`
    """
    positive = scores[:, labels == 1]
    negative = scores[:, labels == 0]
    m = positive.shape[1]
    n = negative.shape[1]
    together = rankdata(np.hstack([positive, negative]), axis=1)
    wins_of_positives = (together[:, :m] - rankdata(positive, axis=1)) / n
    wins_over_negatives = 1 - (together[:, m:] - rankdata(negative, axis=1)) / m
    covariance = (
        np.atleast_2d(np.cov(wins_of_positives)) / m
        + np.atleast_2d(np.cov(wins_over_negatives)) / n
    )
    return wins_of_positives.mean(axis=1), covariance


def delong_p(before: Predictions, after: Predictions) -> float | None:
    """Returns the two-sided p-value of no difference between two AUCs on the same slides; None
    where their variance is unknown or zero.
    """
    if min(np.bincount(after.labels, minlength=2)) < 2:
        return None
    (first, second), covariance = delong(after.labels, np.stack([before.scores, after.scores]))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance <= LEAST_VARIANCE:
        return None
    return float(2 * norm.sf(abs(second - first) / np.sqrt(variance)))


def delong_bounds(slides: Predictions, confidence: float) -> tuple[float, float] | None:
    """Returns DeLong's interval of the AUC, cut off at 0 and 1 as pROC's is; None where the
    variance is unknown or zero.
    """
    if min(np.bincount(slides.labels, minlength=2)) < 2:
        return None
    (auc,), ((variance,),) = delong(slides.labels, slides.scores[None])
    if variance <= LEAST_VARIANCE:
        return None
    half = norm.ppf((1 + confidence) / 2) * np.sqrt(variance)
    return max(0.0, float(auc - half)), min(1.0, float(auc + half))
