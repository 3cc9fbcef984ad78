"""Areas under the ROC and the precision-recall curve, with intervals, of slides or tiles."""

import numpy as np
from numpy.typing import NDArray

from hnm.evidence.numbers.intervals import (
    Number,
    Resamples,
    Resampling,
    Statistic,
    newcombe_bounds,
)
from hnm.evidence.numbers.predictions import Floats, Predictions

CUTS_AT_ONCE = 4096
"""Precision at so many scores is held in memory at once, for all resamples."""


def auc_number(items: Predictions, resampling: Resampling) -> Number:
    """Returns the area under the ROC curve, ties counted half, with its interval.

    Where no resample differs, as when every positive beats every negative, the interval is
    Newcombe's for so many patients.
    """
    if items.missing_class:
        return Number(None, reason=items.missing_class)
    resamples = Resamples(items, resampling)
    number = resamples.number(clustered_auc(items, resamples))
    if number.value is None or number.low is not None:
        return number
    patients = items.patients_with(1), items.patients_with(0)
    return Number(number.value, *newcombe_bounds(number.value, *patients, resampling.confidence))


def average_precision_number(items: Predictions, resampling: Resampling) -> Number:
    """Returns the area under the precision-recall steps, with its interval."""
    if items.missing_class:
        return Number(None, reason=items.missing_class)
    resamples = Resamples(items, resampling)
    return resamples.number(clustered_average_precision(items, resamples))


def auc_gain(before: Predictions, after: Predictions, resampling: Resampling) -> Number:
    """Returns the AUC of `after` less that of `before`, on the same items, with the paired
    interval.
    """
    if after.missing_class:
        return Number(None, reason=after.missing_class)
    resamples = Resamples(after, resampling)
    first = clustered_auc(before, resamples)
    second = clustered_auc(after, resamples)
    return resamples.number(lambda weights: second(weights) - first(weights))


def clustered_auc(items: Predictions, resamples: Resamples) -> Statistic:
    """Returns the AUC as a function of the patients' weights.

    How often a positive of patient p beats a negative of patient q, for all pairs of patients, is
    counted once; a resample is then one product with a `(patients, patients)` matrix, however many
    items (tiles) there are.
    """
    count = len(resamples.patients)
    positive = items.labels == 1
    positive_scores = items.scores[positive]
    owner = resamples.patient_of[positive]
    wins = np.zeros((count, count))
    for q in range(count):
        negative_scores = np.sort(items.scores[~positive & (resamples.patient_of == q)])
        beaten = (
            np.searchsorted(negative_scores, positive_scores, "left")
            + np.searchsorted(negative_scores, positive_scores, "right")
        ) / 2
        wins[:, q] = np.bincount(owner, weights=beaten, minlength=count)
    positives = np.bincount(owner, minlength=count)
    negatives = np.bincount(resamples.patient_of[~positive], minlength=count)
    return lambda weights: (
        ((weights @ wins) * weights).sum(axis=1) / ((weights @ positives) * (weights @ negatives))
    )


def clustered_average_precision(items: Predictions, resamples: Resamples) -> Statistic:
    """Returns the area under the precision-recall steps (as scikit-learn's) as a function of the
    patients' weights.

    How many items, and how many positives, each patient has from a positive's score on is counted
    once; a resample is then a few products with `(patients, scores)` matrices, however many
    negatives (tiles) there are.
    """
    positive = items.labels == 1
    cuts = np.unique(items.scores[positive])  # where no positive comes in, the area does not grow

    def from_cut_on(chosen: NDArray[np.bool_]) -> Floats:
        counts = []
        for patient in range(len(resamples.patients)):
            scores = np.sort(items.scores[chosen & (resamples.patient_of == patient)])
            counts.append(len(scores) - np.searchsorted(scores, cuts, "left"))
        return np.array(counts, dtype=np.float64)

    true = from_cut_on(positive)
    called = from_cut_on(np.ones_like(positive))
    gained = -np.diff(true, axis=1, append=0)

    def area(weights: Floats) -> Floats:
        sums = np.zeros(len(weights))
        for first in range(0, len(cuts), CUTS_AT_ONCE):
            part = slice(first, first + CUTS_AT_ONCE)
            of_all = weights @ called[:, part]
            steps = weights @ gained[:, part] * (weights @ true[:, part])
            sums += (steps / np.where(of_all > 0, of_all, 1)).sum(axis=1)
        return np.asarray(sums / (weights @ true[:, 0]))

    return area
