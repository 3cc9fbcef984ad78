"""Numbers with intervals: how well scores tell positive from negative, for slides and for tiles.

Intervals come from a bootstrap of patients, not of slides: two slides of one patient are no two
witnesses. Patients are drawn within their class (a patient with a positive slide is positive), so
that every resample keeps the cohort's balance. A resample is a row of weights, one for each
patient, and every metric here takes such rows at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_curve

from hnm.evidence.numbers.threshold import ABOVE_ALL, called, midway

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]
"""Weights `(resamples, patients)` to the value of a metric in each resample `(resamples,)`."""

ECE_BINS = 10
FROC_RATES = (0.25, 0.5, 1, 2, 4, 8)
"""False detections a slide."""
SLIDE_METRICS = (
    "auc",
    "average_precision",
    "sensitivity_at_specificity_90",
    "accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "brier",
    "log_loss",
    "ece",
)
LESION_METRICS = ("froc", "lesions_hit", "false_detections")
CUTS_AT_ONCE = 4096
"""Of so many scores precision is held in memory for all resamples."""


@dataclass(frozen=True)
class Number:
    """A metric with its interval. What cannot be said is None, and `reason` tells why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Resampling:
    """How the patients behind a metric are drawn anew."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Predictions:
    """What was said of slides (or tiles), and what is true: one entry each."""

    labels: Labels
    """`(items,)` 0 or 1"""
    scores: Floats
    """`(items,)` in [0, 1]"""
    patients: NDArray[np.str_]
    """`(items,)` ids"""

    @property
    def missing_class(self) -> str | None:
        """Which class has no item, if one has none."""
        if not len(self.labels):
            return "there is nothing to evaluate"
        if not self.labels.any():
            return "there is no positive"
        return "there is no negative" if self.labels.all() else None

    def patients_with(self, label: int) -> int:
        """How many patients have an item of this label."""
        return len(np.unique(self.patients[self.labels == label]))


@dataclass(frozen=True)
class Detections:
    """What the peaks of the tile scores found on some slides."""

    lesion_scores: Floats
    """`(lesions,)` score of each lesion's best peak, -inf where none touches it."""
    lesion_patients: NDArray[np.str_]
    """`(lesions,)` ids"""
    false_scores: Floats
    """`(false detections,)` scores of the peaks that touch no lesion."""
    false_patients: NDArray[np.str_]
    """`(false detections,)` ids"""
    slide_patients: NDArray[np.str_]
    """`(slides,)` ids; a slide on which nothing was found counts as well."""

    @property
    def slides(self) -> int:
        """How many slides were searched."""
        return len(self.slide_patients)


def choose_threshold(validation: Predictions) -> float:
    """The score from which a slide is called positive: the highest Youden index (sensitivity +
    specificity - 1) on validation.

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
    best = int(np.argmax(true_positive_rate - false_positive_rate))
    next_lower = float(cuts[best + 1]) if best + 1 < len(cuts) else 0.0
    return midway(next_lower, float(cuts[best]))


def slide_metrics(
    slides: Predictions, threshold: float, resampling: Resampling
) -> dict[str, Number]:
    """All metrics of slides by name, each with its interval.

    `sensitivity_at_specificity_90` is read from the ROC curve itself; accuracy, F1, sensitivity and
    specificity are those at `threshold`; `ece` is the expected calibration error over ten bins of
    equal width (Guo et al. 2017).
    """
    if not len(slides.labels):
        return {name: Number(None, reason=slides.missing_class) for name in SLIDE_METRICS}
    draws = Draws(slides, resampling)
    of_positives, of_negatives, of_all = (
        slides.patients_with(1),
        slides.patients_with(0),
        len(draws.patients),
    )

    def number(
        metric: Callable[[Predictions, Floats], Floats],
        *,
        of: int | None = None,
        of_one_class: bool = False,
    ) -> Number:
        if slides.missing_class and not of_one_class:
            return Number(None, reason=slides.missing_class)
        return draws.number(
            lambda weights: metric(slides, draws.on_items(weights)), proportion_of=of
        )

    return {
        "auc": auc_number(slides, resampling),
        "average_precision": average_precision_number(slides, resampling),
        "sensitivity_at_specificity_90": number(
            partial(sensitivity_at, specificity=0.9), of=of_positives
        ),
        "accuracy": number(partial(accuracy, threshold=threshold), of=of_all, of_one_class=True),
        "f1": number(partial(f1, threshold=threshold)),
        "sensitivity": number(partial(sensitivity, threshold=threshold), of=of_positives),
        "specificity": number(partial(specificity, threshold=threshold), of=of_negatives),
        "brier": number(brier, of_one_class=True),
        "log_loss": number(log_loss, of_one_class=True),
        "ece": number(calibration_error, of_one_class=True),
    }


def auc_number(items: Predictions, resampling: Resampling) -> Number:
    """Area under the ROC curve, ties counted half, with its interval; the items may be slides or
    tiles.

    Where no resample differs, as when every positive beats every negative, the interval is
    Newcombe's for so many patients.
    """
    if items.missing_class:
        return Number(None, reason=items.missing_class)
    draws = Draws(items, resampling)
    number = draws.number(clustered_auc(items, draws))
    if number.value is None or number.low is not None:
        return number
    return Number(
        number.value,
        *newcombe_bounds(
            number.value, items.patients_with(1), items.patients_with(0), resampling.confidence
        ),
    )


def average_precision_number(items: Predictions, resampling: Resampling) -> Number:
    """Area under the precision-recall steps, with its interval; the items may be slides or
    tiles.
    """
    if items.missing_class:
        return Number(None, reason=items.missing_class)
    draws = Draws(items, resampling)
    return draws.number(clustered_average_precision(items, draws))


def auc_gain(before: Predictions, after: Predictions, resampling: Resampling) -> Number:
    """How much higher the AUC of `after` is than that of `before`, on the same items, with the
    paired interval.
    """
    if after.missing_class:
        return Number(None, reason=after.missing_class)
    draws = Draws(after, resampling)
    first, second = clustered_auc(before, draws), clustered_auc(after, draws)
    return draws.number(lambda weights: second(weights) - first(weights))


def tile_metrics(tiles: Predictions, resampling: Resampling) -> dict[str, Number]:
    """AUC and average precision of tiles pooled over slides, each with its interval."""
    return {
        "auc": auc_number(tiles, resampling),
        "average_precision": average_precision_number(tiles, resampling),
    }


def lesion_metrics(
    found: Detections, threshold: float, resampling: Resampling
) -> dict[str, Number]:
    """How many lesions the tile scores find, and at what price, each with its interval.

    `froc` is the mean of the six shares of `froc`. A lesion is hit where its best peak scores
    `threshold` or more:
    `lesions_hit` is the share of such lesions, `false_detections` the number of such peaks beside
    all lesions, a slide.
    """
    if not len(found.lesion_scores):
        return {name: Number(None, reason="no lesion is drawn") for name in LESION_METRICS}
    with_lesion = np.isin(found.slide_patients, found.lesion_patients).astype(np.int64)
    draws = Draws(
        Predictions(with_lesion, np.zeros(found.slides), found.slide_patients), resampling
    )
    lesions, false, slides = (
        np.searchsorted(draws.patients, own)
        for own in (found.lesion_patients, found.false_patients, found.slide_patients)
    )
    hit, false_alarms = (
        called(found.lesion_scores, threshold),
        called(found.false_scores, threshold),
    )
    return {
        "froc": draws.number(
            lambda weights: _froc(
                found, weights[:, lesions], weights[:, false], weights[:, slides].sum(axis=1)
            ).mean(axis=1)
        ),
        "lesions_hit": draws.number(
            lambda weights: weights[:, lesions] @ hit / weights[:, lesions].sum(axis=1),
            proportion_of=len(np.unique(found.lesion_patients)),
        ),
        "false_detections": draws.number(
            lambda weights: weights[:, false] @ false_alarms / weights[:, slides].sum(axis=1)
        ),
    }


def froc(found: Detections) -> Floats:
    """Share of lesions found at a mean of 1/4, 1/2, 1, 2, 4 and 8 false detections a slide, as
    CAMELYON16 asks; without interpolation.

    Args:
        found: with at least one lesion.

    Returns:
        `(6,)`; its mean is CAMELYON16's score.
    """
    lesions, false = (
        np.ones((1, len(scores))) for scores in (found.lesion_scores, found.false_scores)
    )
    shares: Floats = _froc(found, lesions, false, np.array([float(found.slides)]))[0]
    return shares


def _froc(found: Detections, of_lesions: Floats, of_false: Floats, slides: Floats) -> Floats:
    """`froc` for each row of weights `(resamples, lesions)`, `(resamples, false detections)` and
    `(resamples,)` slides: `(resamples, 6)`.
    """
    order = np.argsort(-found.false_scores, kind="stable")
    highest_first = np.append(found.false_scores[order], -np.inf)
    shares = []
    for lesions, false, count in zip(of_lesions, of_false[:, order], slides, strict=True):
        first_too_many = np.searchsorted(
            np.cumsum(false), np.floor(np.multiply(FROC_RATES, count)), side="right"
        )
        shares.append(
            (found.lesion_scores > highest_first[first_too_many, None]) @ lesions / lesions.sum()
        )
    return np.array(shares)


def delong(labels: Labels, scores: Floats) -> tuple[Floats, Floats]:
    """AUCs of several scores of the same slides, and their covariance (DeLong et al. 1988, by the
    midranks of Sun & Xu 2014).

    Slides count as independent, whoever they are of.

    Args:
        labels: `(slides,)` 0 or 1, both present twice or more.
        scores: `(raters, slides)`

    Returns:
        `(raters,)` and `(raters, raters)`
    """
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    m, n = positive.shape[1], negative.shape[1]
    together = rankdata(np.hstack([positive, negative]), axis=1)
    wins_of_positives = (together[:, :m] - rankdata(positive, axis=1)) / n
    wins_over_negatives = 1 - (together[:, m:] - rankdata(negative, axis=1)) / m
    covariance = (
        np.atleast_2d(np.cov(wins_of_positives)) / m
        + np.atleast_2d(np.cov(wins_over_negatives)) / n
    )
    return wins_of_positives.mean(axis=1), covariance


def delong_p(before: Predictions, after: Predictions) -> float | None:
    """Two-sided p-value of no difference between two AUCs on the same slides; None where their
    variance cannot be told or is zero.
    """
    if min(np.bincount(after.labels, minlength=2)) < 2:
        return None
    (first, second), covariance = delong(after.labels, np.stack([before.scores, after.scores]))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return float(2 * norm.sf(abs(second - first) / np.sqrt(variance))) if variance > 1e-12 else None


def delong_bounds(slides: Predictions, confidence: float) -> tuple[float, float] | None:
    """DeLong's interval of the AUC, cut off at 0 and 1 as pROC's is; None where the variance cannot
    be told or is zero.
    """
    if min(np.bincount(slides.labels, minlength=2)) < 2:
        return None
    (auc,), ((variance,),) = delong(slides.labels, slides.scores[None])
    half = norm.ppf((1 + confidence) / 2) * np.sqrt(variance)
    return (max(0.0, float(auc - half)), min(1.0, float(auc + half))) if variance > 1e-12 else None


def reliability(slides: Predictions) -> list[dict[str, float]]:
    """The calibration curve: for each bin of equal width that holds slides, their mean score, share
    of positives and number.
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
    """The highest sensitivity of any threshold that keeps `specificity`, for each row of weights
    `(resamples, items)`.
    """
    true, false = _ranked_counts(items, weights)
    kept = false <= (1 - specificity) * false[:, -1:] + 1e-9
    return np.asarray(np.where(kept, true, 0).max(axis=1) / true[:, -1])


def accuracy(items: Predictions, weights: Floats, *, threshold: float) -> Floats:
    """Share of items on their label's side of `threshold`, for each row of weights `(resamples,
    items)`.
    """
    return np.asarray(
        weights @ (called(items.scores, threshold) == items.labels) / weights.sum(axis=1)
    )


def sensitivity(items: Predictions, weights: Floats, *, threshold: float) -> Floats:
    """Share of positives at or above `threshold`, for each row of weights `(resamples, items)`."""
    return np.asarray(
        weights @ (called(items.scores, threshold) & (items.labels == 1)) / (weights @ items.labels)
    )


def specificity(items: Predictions, weights: Floats, *, threshold: float) -> Floats:
    """Share of negatives below `threshold`, for each row of weights `(resamples, items)`."""
    return np.asarray(
        weights
        @ (~called(items.scores, threshold) & (items.labels == 0))
        / (weights @ (1 - items.labels))
    )


def f1(items: Predictions, weights: Floats, *, threshold: float) -> Floats:
    """Harmonic mean of precision and sensitivity at `threshold`, for each row of weights
    `(resamples, items)`.
    """
    positive = called(items.scores, threshold)
    return np.asarray(
        2
        * (weights @ (positive & (items.labels == 1)))
        / (weights @ (positive.astype(np.float64) + items.labels))
    )


def brier(items: Predictions, weights: Floats) -> Floats:
    """Mean squared difference of score and label, for each row of weights `(resamples, items)`."""
    return np.asarray(weights @ (items.scores - items.labels) ** 2 / weights.sum(axis=1))


def log_loss(items: Predictions, weights: Floats) -> Floats:
    """Mean cross-entropy of the scores, kept 1e-7 away from 0 and 1, for each row of weights
    `(resamples, items)`.
    """
    of_label = np.where(items.labels == 1, items.scores, 1 - items.scores)
    return np.asarray(weights @ -np.log(np.clip(of_label, 1e-7, 1 - 1e-7)) / weights.sum(axis=1))


def calibration_error(items: Predictions, weights: Floats) -> Floats:
    """Expected calibration error over ten bins of equal width (Guo et al. 2017), for each row of
    weights `(resamples, items)`.
    """
    in_bin = np.eye(ECE_BINS)[_bin_of(items.scores)]
    gaps = (weights * (items.scores - items.labels)) @ in_bin
    return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def clustered_auc(items: Predictions, draws: "Draws") -> Statistic:
    """The AUC as a function of the patients' weights.

    How often a positive of patient p beats a negative of patient q, for all pairs of patients, is
    counted once; a resample is then one product with a `(patients, patients)` matrix, however many
    items (tiles) there are.
    """
    count = len(draws.patients)
    positive = items.labels == 1
    positive_scores, owner = items.scores[positive], draws.patient_of[positive]
    wins = np.zeros((count, count))
    for q in range(count):
        negative_scores = np.sort(items.scores[~positive & (draws.patient_of == q)])
        beaten = (
            np.searchsorted(negative_scores, positive_scores, "left")
            + np.searchsorted(negative_scores, positive_scores, "right")
        ) / 2
        wins[:, q] = np.bincount(owner, weights=beaten, minlength=count)
    positives = np.bincount(owner, minlength=count)
    negatives = np.bincount(draws.patient_of[~positive], minlength=count)
    return lambda weights: (
        ((weights @ wins) * weights).sum(axis=1) / ((weights @ positives) * (weights @ negatives))
    )


def clustered_average_precision(items: Predictions, draws: "Draws") -> Statistic:
    """The area under the precision-recall steps (as scikit-learn's) as a function of the patients'
    weights.

    How many items, and how many positives, each patient has from a positive's score on is counted
    once; a resample is then a few products with `(patients, scores)` matrices, however many
    negatives (tiles) there are.
    """
    positive = items.labels == 1
    cuts = np.unique(items.scores[positive])  # where no positive comes in, the area does not grow

    def from_cut_on(kind: NDArray[np.bool_]) -> Floats:
        own = [
            np.sort(items.scores[kind & (draws.patient_of == p)])
            for p in range(len(draws.patients))
        ]
        return np.array(
            [len(scores) - np.searchsorted(scores, cuts, "left") for scores in own],
            dtype=np.float64,
        )

    true, called = from_cut_on(positive), from_cut_on(np.ones_like(positive))
    gained = -np.diff(true, axis=1, append=0)

    def area(weights: Floats) -> Floats:
        sums = np.zeros(len(weights))
        for first in range(0, len(cuts), CUTS_AT_ONCE):
            part = slice(first, first + CUTS_AT_ONCE)
            of_all = weights @ called[:, part]
            sums += (
                weights
                @ gained[:, part]
                * (weights @ true[:, part])
                / np.where(of_all > 0, of_all, 1)
            ).sum(axis=1)
        return np.asarray(sums / (weights @ true[:, 0]))

    return area


def _ranked_counts(items: Predictions, weights: Floats) -> tuple[Floats, Floats]:
    """True and false positives at each distinct score, from the highest down: `(resamples, scores)`
    each.
    """
    order = np.argsort(-items.scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(items.scores[order]) != 0, True))
    ranked = weights[:, order]
    positive = items.labels[order]
    return (
        np.cumsum(ranked * positive, axis=1)[:, ends],
        np.cumsum(ranked * (1 - positive), axis=1)[:, ends],
    )


def _bin_of(scores: Floats) -> NDArray[np.intp]:
    return np.minimum((scores * ECE_BINS).astype(np.intp), ECE_BINS - 1)


class Draws:
    """The bootstrap's and the jackknife's weights of the patients behind some items."""

    def __init__(self, items: Predictions, resampling: Resampling) -> None:
        self.confidence = resampling.confidence
        self.patients, self.patient_of = np.unique(items.patients, return_inverse=True)
        positive = np.bincount(self.patient_of, weights=items.labels) > 0
        self.strata = [np.flatnonzero(positive == kind) for kind in (False, True)]
        self.bootstrap = np.zeros((resampling.resamples, len(self.patients)))
        generator = np.random.default_rng(resampling.seed)
        for members in self.strata:
            if len(members):
                self.bootstrap[:, members] = generator.multinomial(
                    len(members), np.full(len(members), 1 / len(members)), size=resampling.resamples
                )
        self.jackknife = 1 - np.eye(len(self.patients))

    def on_items(self, weights: Floats) -> Floats:
        """Weights of patients `(resamples, patients)` as weights of their items `(resamples,
        items)`.
        """
        return weights[:, self.patient_of]

    def number(self, statistic: Statistic, proportion_of: int | None = None) -> Number:
        """The metric with its bias-corrected and accelerated interval (BCa, Efron 1987; strata as
        in scipy.stats.bootstrap).

        Where no resample differs, the bootstrap knows nothing: a proportion of so many patients
        then gets Wilson's interval, anything else none.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(statistic(np.ones((1, len(self.patients))))[0])
            resampled = statistic(self.bootstrap)
            # the order of a sum must not decide whether a resample lies below the value
            value, resampled = round(value, 12), np.round(resampled[np.isfinite(resampled)], 12)
            if not np.ptp(resampled):
                if proportion_of:
                    return Number(value, *wilson_bounds(value, proportion_of, self.confidence))
                return Number(value, reason="all resamples agree")
            low, high = bca_bounds(
                value, resampled, self._acceleration(statistic(self.jackknife)), self.confidence
            )
        return Number(value, low, high)

    def _acceleration(self, left_out: Floats) -> float:
        """BCa's acceleration from the values `(patients,)` with one patient left out; 0 where they
        cannot tell.
        """
        cubes = squares = 0.0
        for members in self.strata:
            n = len(members)
            if n > 1 and np.isfinite(left_out[members]).all():
                influence = (n - 1) * (left_out[members].mean() - left_out[members])
                cubes += (influence**3).sum() / n**3
                squares += (influence**2).sum() / n**2
        return float(cubes / (6 * squares**1.5)) if squares else 0.0


def bca_bounds(
    value: float, resampled: Floats, acceleration: float, confidence: float
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval of a metric from its values in the resamples."""
    below = (np.mean(resampled < value) + np.mean(resampled <= value)) / 2
    edge = 0.5 / len(resampled)
    bias = norm.ppf(np.clip(below, edge, 1 - edge))
    at = bias + norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(resampled, norm.cdf(bias + at / (1 - acceleration * at)))
    return float(low), float(high)


def wilson_bounds(share: float, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's (1927) score interval of a proportion."""
    z = norm.ppf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def newcombe_bounds(
    auc: float, positives: int, negatives: int, confidence: float
) -> tuple[float, float]:
    """Newcombe's (2006, method 5) score interval of an AUC, which has a width even where all
    positives beat all negatives.
    """
    z = norm.ppf((1 + confidence) / 2)
    extra = (positives + negatives) / 2 - 1

    def excess(theta: float) -> float:
        variance = (
            theta
            * (1 - theta)
            * (1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
            / (positives * negatives)
        )
        return float((auc - theta) ** 2 - z**2 * variance)

    low = brentq(excess, 0.0, auc - 1e-9) if auc > 0 else 0.0
    high = brentq(excess, auc + 1e-9, 1.0) if auc < 1 else 1.0
    return float(low), float(high)
