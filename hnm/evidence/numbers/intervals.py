"""Numbers with intervals.

Intervals come from a bootstrap of patients, not of slides: two slides of one patient are no two
witnesses. Patients are drawn within their class (a patient with a positive slide is positive), so
that every resample keeps the cohort's balance. A resample is a row of weights, one for each
patient, and every metric takes such rows at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from hnm.evidence.numbers.predictions import Floats, Predictions
from hnm.params import Evaluate
from hnm.seeds import seed_of

Statistic = Callable[[Floats], Floats]
"""Weights `(resamples, patients)` to the value of a metric in each resample `(resamples,)`."""

DIGITS = 6
"""Decimals of numbers in JSON: enough to compare, too few for the last bits of a machine."""


@dataclass(frozen=True)
class Number:
    """A metric with its interval. What cannot be said is None, and `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @classmethod
    def from_json(cls, numbers: Mapping[str, Any], name: str) -> "Number":
        """Returns the number that `flat_numbers` has written under `name`."""
        return cls(
            numbers[name], *(numbers.get(f"{name}_{part}") for part in ("low", "high", "reason"))
        )

    def text(self, form: str = ".3f") -> str:
        """Returns the value in this format, or a dash where there is none."""
        return "–" if self.value is None or math.isnan(self.value) else format(self.value, form)

    def interval(self, form: str = ".2f") -> str:
        """Returns the interval, such as `0.75 to 0.96`, or nothing where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:{form}} to {self.high:{form}}"

    def above_interval(self, form: str = ".3f") -> str:
        """Returns the value, and the interval on a second line, for a narrow column."""
        interval = self.interval()
        return f"{self.text(form)}\n{interval}" if interval else self.text(form)

    def with_interval(self, form: str = ".3f", form_of_bounds: str = "") -> str:
        """Returns the value and, in brackets, the interval; bounds have the value's format unless
        they are given another.
        """
        interval = self.interval(form_of_bounds or form)
        return f"{self.text(form)} ({interval})" if interval else self.text(form)


def flat_numbers(
    numbers: Mapping[str, Number], bounds_of: Sequence[str] | None = None
) -> dict[str, Any]:
    """Returns numbers as JSON: `<name>`, `<name>_low`, `<name>_high`, and `<name>_reason` where
    there is one; bounds only of the names in `bounds_of`, where it is given.
    """
    flat: dict[str, Any] = {}
    for name, number in numbers.items():
        flat[name] = rounded(number.value)
        with_bounds = bounds_of is None or name in bounds_of
        if with_bounds:
            flat |= {f"{name}_low": rounded(number.low), f"{name}_high": rounded(number.high)}
        if number.reason and (with_bounds or number.value is None):
            flat[f"{name}_reason"] = number.reason
    return flat


def rounded(value: float | None) -> float | None:
    """Returns the value with `DIGITS` decimals."""
    return None if value is None else round(float(value), DIGITS)


@dataclass(frozen=True)
class Resampling:
    """How the patients behind a metric are drawn anew."""

    count: int
    """How many times."""
    confidence: float
    seed: int

    @classmethod
    def of(cls, section: Evaluate, purpose: str) -> "Resampling":
        """Returns the resampling of one purpose. The same purpose draws the same patients, so that
        rounds and states are compared on the same resamples.
        """
        return cls(
            section.resamples, section.confidence, seed_of(section.seed, "bootstrap", purpose)
        )


class Resamples:
    """Weights of the patients behind some items: the bootstrap's and the jackknife's."""

    def __init__(self, items: Predictions, resampling: Resampling) -> None:
        self.confidence = resampling.confidence
        self.patients, self.patient_of = np.unique(items.patients, return_inverse=True)
        positive = np.bincount(self.patient_of, weights=items.labels) > 0
        self.strata = [np.flatnonzero(positive == kind) for kind in (False, True)]
        self.bootstrap = np.zeros((resampling.count, len(self.patients)))
        generator = np.random.default_rng(resampling.seed)
        for members in self.strata:
            if len(members):
                self.bootstrap[:, members] = generator.multinomial(
                    len(members), np.full(len(members), 1 / len(members)), size=resampling.count
                )
        self.jackknife = 1 - np.eye(len(self.patients))

    def on_items(self, weights: Floats) -> Floats:
        """Returns weights of patients `(resamples, patients)` as weights of their items
        `(resamples, items)`.
        """
        return weights[:, self.patient_of]

    def number(self, statistic: Statistic, proportion_of: int | None = None) -> Number:
        """Returns the metric with its bias-corrected and accelerated interval (BCa, Efron 1987;
        strata as in scipy.stats.bootstrap).

        Where no resample differs, the bootstrap knows nothing: a proportion of so many patients
        then gets Wilson's interval, anything else none.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            # the order of a sum must not decide whether a resample lies below the value
            value = round(float(statistic(np.ones((1, len(self.patients))))[0]), 12)
            resampled = statistic(self.bootstrap)
            resampled = np.round(resampled[np.isfinite(resampled)], 12)
            if not np.ptp(resampled):
                if proportion_of:
                    return Number(value, *wilson_bounds(value, proportion_of, self.confidence))
                return Number(value, reason="all resamples agree")
            acceleration = self._acceleration(statistic(self.jackknife))
            low, high = bca_bounds(value, resampled, acceleration, self.confidence)
        return Number(value, low, high)

    def _acceleration(self, left_out: Floats) -> float:
        """Returns BCa's acceleration from the values `(patients,)` with one patient left out, or 0
        where they are no numbers or all the same.
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
    """Returns the bias-corrected and accelerated interval of a metric from its values in the
    resamples.
    """
    below = (np.mean(resampled < value) + np.mean(resampled <= value)) / 2
    edge = 0.5 / len(resampled)
    bias = norm.ppf(np.clip(below, edge, 1 - edge))
    at = bias + norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(resampled, norm.cdf(bias + at / (1 - acceleration * at)))
    return float(low), float(high)


def wilson_bounds(share: float, trials: int, confidence: float) -> tuple[float, float]:
    """Returns Wilson's (1927) score interval of a proportion."""
    z = norm.ppf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def newcombe_bounds(
    auc: float, positives: int, negatives: int, confidence: float
) -> tuple[float, float]:
    """Returns Newcombe's (2006, method 5) score interval of an AUC, which has a width even where
    all positives beat all negatives.
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
