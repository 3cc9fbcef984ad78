"""How well scores tell positive from negative slides."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from hnm.evidence.numbers.areas import auc_number, average_precision_number
from hnm.evidence.numbers.intervals import Number, Resamples, Resampling
from hnm.evidence.numbers.predictions import Floats, Predictions
from hnm.evidence.numbers.threshold import ABOVE_ALL, called, midway

ECE_BINS = 10
OF_ONE_CLASS = ("accuracy", "brier", "log_loss", "ece")
"""Metrics that do not need slides of both classes."""
DECISIONS = ("accuracy", "sensitivity", "specificity")


def choose_threshold(validation: Predictions) -> float:
    """Returns the score from which a slide is called positive: the highest Youden index
    (sensitivity + specificity - 1) on validation.

    It lies midway between two neighbouring scores, so that it favours neither; ties go to the
    higher threshold, that is to specificity. Where the best is to call nothing positive, it lies
    midway between the highest score and `ABOVE_ALL`, so it may be a little above 1. Where
    validation lacks a class nothing can be chosen, and it is 0.5.

    It calls each validation score as it was called in the choice.
    """
    if validation.missing_class:
        return 0.5
    false_positive_rate, true_positive_rate, cuts = roc_curve(
        validation.labels, validation.scores, drop_intermediate=False
    )
    cuts[0] = ABOVE_ALL  # scikit-learn says infinity for "nothing is positive"
    positives = int(validation.labels.sum())
    pairs = positives * (len(validation.labels) - positives)
    # in whole pairs of a positive and a negative slide: rounding is to break no tie
    youden = np.rint((true_positive_rate - false_positive_rate) * pairs)
    best = int(np.argmax(youden))
    next_lower = float(cuts[best + 1]) if best + 1 < len(cuts) else 0.0
    return midway(next_lower, float(cuts[best]))


def slide_metrics(
    slides: Predictions, threshold: float, resampling: Resampling
) -> dict[str, Number]:
    """Returns all metrics of slides by name, each with its interval.

    `sensitivity_at_specificity_90` is read from the ROC curve itself; accuracy, F1, sensitivity and
    specificity are those at `threshold`; `ece` is the expected calibration error over ten bins of
    equal width (Guo et al. 2017).
    """
    metrics: dict[str, Callable[[Predictions, Floats], Floats]] = {
        "sensitivity_at_specificity_90": partial(sensitivity_at, specificity=0.9),
        "accuracy": partial(accuracy, threshold=threshold),
        "f1": partial(f1, threshold=threshold),
        "sensitivity": partial(sensitivity, threshold=threshold),
        "specificity": partial(specificity, threshold=threshold),
        "brier": brier,
        "log_loss": log_loss,
        "ece": calibration_error,
    }
    positives = slides.patients_with(1)
    proportion_of = {
        "sensitivity_at_specificity_90": positives,
        "accuracy": len(np.unique(slides.patients)),
        "sensitivity": positives,
        "specificity": slides.patients_with(0),
    }
    resamples = Resamples(slides, resampling)

    def number(name: str) -> Number:
        if slides.missing_class and not (len(slides.labels) and name in OF_ONE_CLASS):
            return Number(None, reason=slides.missing_class)
        return resamples.number(
            lambda weights: metrics[name](slides, resamples.on_items(weights)),
            proportion_of.get(name),
        )

    return {
        "auc": auc_number(slides, resampling),
        "average_precision": average_precision_number(slides, resampling),
        **{name: number(name) for name in metrics},
    }


def decisions_of(slides: pd.DataFrame, resampling: Resampling) -> dict[str, Number]:
    """Returns accuracy, sensitivity and specificity of what slides were called, whatever threshold
    called them.

    Args:
        slides: patient_id, label, called.
        resampling: of the intervals.
    """
    calls = Predictions.of(slides.assign(score=slides["called"]))
    numbers = slide_metrics(calls, 0.5, resampling)
    return {name: numbers[name] for name in DECISIONS}


def reliability(slides: Predictions) -> list[dict[str, float]]:
    """Returns the calibration curve: for each bin of equal width that holds slides, their mean
    score, share of positives and number.
    """
    bins = _bin_of(slides.scores)
    return [
        {
            "mean_score": float(slides.scores[bins == b].mean()),
            "positive_share": float(slides.labels[bins == b].mean()),
            "slides": int((bins == b).sum()),
        }
        for b in np.unique(bins)
    ]


def sensitivity_at(items: Predictions, weights: Floats, *, specificity: float) -> Floats:
    """Returns the highest sensitivity of any threshold that keeps `specificity`, for each row of
    weights `(resamples, items)`.
    """
    order = np.argsort(-items.scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(items.scores[order]) != 0, True))
    ranked = weights[:, order]
    positive = items.labels[order]
    # true and false positives at each distinct score, from the highest down
    true = np.cumsum(ranked * positive, axis=1)[:, ends]
    false = np.cumsum(ranked * (1 - positive), axis=1)[:, ends]
    allowed = false <= (1 - specificity) * false[:, -1:] + 1e-9
    return np.asarray(np.where(allowed, true, 0).max(axis=1) / true[:, -1])


def accuracy(items: Predictions, weights: Floats, *, threshold: float) -> Floats:
    """Returns the share of items on their label's side of `threshold`, for each row of weights
    `(resamples, items)`.
    """
    return _mean(weights, called(items.scores, threshold) == items.labels)


def sensitivity(items: Predictions, weights: Floats, *, threshold: float) -> Floats:
    """Returns the share of positives at or above `threshold`, for each row of weights `(resamples,
    items)`.
    """
    positive = items.labels == 1
    return _mean(weights[:, positive], called(items.scores[positive], threshold))


def specificity(items: Predictions, weights: Floats, *, threshold: float) -> Floats:
    """Returns the share of negatives below `threshold`, for each row of weights `(resamples,
    items)`.
    """
    negative = items.labels == 0
    return _mean(weights[:, negative], ~called(items.scores[negative], threshold))


def f1(items: Predictions, weights: Floats, *, threshold: float) -> Floats:
    """Returns the harmonic mean of precision and sensitivity at `threshold`, for each row of
    weights `(resamples, items)`.
    """
    positive = called(items.scores, threshold)
    hits = weights @ (positive & (items.labels == 1))
    return np.asarray(2 * hits / (weights @ (positive.astype(np.float64) + items.labels)))


def brier(items: Predictions, weights: Floats) -> Floats:
    """Returns the mean squared difference of score and label, for each row of weights `(resamples,
    items)`.
    """
    return _mean(weights, (items.scores - items.labels) ** 2)


def log_loss(items: Predictions, weights: Floats) -> Floats:
    """Returns the mean cross-entropy of the scores, which are held 1e-7 away from 0 and 1, for each
    row of weights `(resamples, items)`.
    """
    of_label = np.where(items.labels == 1, items.scores, 1 - items.scores)
    return _mean(weights, -np.log(np.clip(of_label, 1e-7, 1 - 1e-7)))


def calibration_error(items: Predictions, weights: Floats) -> Floats:
    """Returns the expected calibration error over ten bins of equal width (Guo et al. 2017), for
    each row of weights `(resamples, items)`.
    """
    in_bin = np.eye(ECE_BINS)[_bin_of(items.scores)]
    gaps = (weights * (items.scores - items.labels)) @ in_bin
    return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def _mean(weights: Floats, values: NDArray[Any]) -> Floats:
    """Returns the mean of `values` `(items,)` for each row of weights `(resamples, items)`."""
    return np.asarray(weights @ values / weights.sum(axis=1))


def _bin_of(scores: Floats) -> NDArray[np.intp]:
    return np.minimum((scores * ECE_BINS).astype(np.intp), ECE_BINS - 1)
