"""Intervals: as SciPy has them, and as often right as they claim."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from hnm.evidence.numbers.areas import auc_number
from hnm.evidence.numbers.intervals import (
    Number,
    Resamples,
    Resampling,
    flat_numbers,
    newcombe_bounds,
    wilson_bounds,
)
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.slide_metrics import slide_metrics
from tests.support.predictions import RESAMPLING, predictions


class TestNumber:
    def test_formats(self) -> None:
        number = Number(0.8125, -0.25, 1.0)
        assert number.text() == "0.812"
        assert number.text("+.1f") == "+0.8"
        assert number.interval() == "-0.25 to 1.00"
        assert number.interval("+.1f") == "-0.2 to +1.0"
        assert number.with_interval() == "0.812 (-0.250 to 1.000)"
        assert number.with_interval("+.4f") == "+0.8125 (-0.2500 to +1.0000)"
        assert number.with_interval(".3f", ".2f") == "0.812 (-0.25 to 1.00)"
        assert number.above_interval() == "0.812\n-0.25 to 1.00"
        assert number.above_interval("+.3f") == "+0.812\n-0.25 to 1.00"

    def test_without_an_interval_it_is_the_value_and_without_a_value_a_dash(self) -> None:
        assert Number(0.5, reason="all resamples agree").interval() == ""
        assert Number(0.5, reason="all resamples agree").with_interval(".2f") == "0.50"
        assert Number(0.5).above_interval() == "0.500"
        for missing in (Number(None, reason="there is no positive"), Number(float("nan"))):
            assert missing.text() == missing.with_interval() == missing.above_interval() == "–"

    def test_comes_back_from_json(self) -> None:
        numbers = {
            "auc": Number(0.5, 0.25, 0.75),
            "f1": Number(1.0, reason="all resamples agree"),
            "ece": Number(None, reason="there is nothing to evaluate"),
        }
        flat = flat_numbers(numbers)
        assert list(flat) == [
            *("auc", "auc_low", "auc_high"),
            *("f1", "f1_low", "f1_high", "f1_reason"),
            *("ece", "ece_low", "ece_high", "ece_reason"),
        ]
        assert {name: Number.from_json(flat, name) for name in numbers} == numbers

    def test_bounds_may_be_left_out_of_json(self) -> None:
        numbers = {"auc": Number(0.1234567, 0.1, 0.2), "f1": Number(1.0, reason="why")}
        flat = flat_numbers(numbers, bounds_of=("auc",))
        assert flat == {"auc": 0.123457, "auc_low": 0.1, "auc_high": 0.2, "f1": 1.0}
        assert Number.from_json(flat, "f1") == Number(1.0)


class TestIntervals:
    def test_are_those_of_scipy_where_each_patient_has_one_slide(self) -> None:
        rng = np.random.default_rng(0)
        labels = np.array([1] * 20 + [0] * 40)
        scores = 1 / (1 + np.exp(-(1.2 * labels + rng.normal(size=60))))
        number = auc_number(predictions(labels.tolist(), scores.tolist()), Resampling(4000, 0.9, 1))
        reference = bootstrap(
            (scores[:20], scores[20:]),
            lambda positive, negative, axis: (positive[..., :, None] > negative[..., None, :]).mean(
                axis=(-1, -2)
            ),
            n_resamples=4000,
            confidence_level=0.9,
            method="BCa",
            batch=500,
            rng=2,
        ).confidence_interval
        assert (number.low, number.high) == pytest.approx(
            (reference.low, reference.high), abs=0.012
        )

    # spatial test data of 26 neurologically impaired children, and the variance of A (Efron &
    # Tibshirani 1993, tables 14.1 and 14.2)
    SPATIAL = "48 36 20 29 42 42 20 42 22 41 45 14 6 0 33 28 34 4 32 24 47 41 24 26 30 41"

    def test_published_example(self) -> None:
        """Variance 171.5, acceleration 0.061, and at 90 % BCa's 115.8 to 259.6 where percentiles
        say 100.8 to 233.9; their 2,000 resamples are not ours.
        """
        values = np.array(self.SPATIAL.split(), np.float64)
        resamples = Resamples(
            predictions(
                [0] * len(values),
                [0.5] * len(values),
                [f"{place:02d}" for place in range(len(values))],
            ),
            Resampling(20_000, 0.9, 3),
        )

        def variance(weights: np.ndarray) -> np.ndarray:
            total = weights.sum(axis=1)
            return weights @ values**2 / total - (weights @ values / total) ** 2

        number = resamples.number(variance)
        assert number.value == pytest.approx(171.5, abs=0.05)
        assert resamples._acceleration(variance(resamples.jackknife)) == pytest.approx(
            0.061, abs=5e-4
        )
        # the standard error of such an end over 2,000 resamples is about 3
        assert (number.low, number.high) == (
            pytest.approx(115.8, abs=4),
            pytest.approx(259.6, abs=9),
        )
        assert np.quantile(variance(resamples.bootstrap), [0.05, 0.95]) == pytest.approx(
            [100.8, 233.9], abs=4
        )

    @pytest.mark.parametrize(
        ("positives", "negatives", "steps"), [(9, 17, 1000), (9, 17, 6), (25, 6, 4)]
    )
    def test_are_scipys_of_the_same_resamples(
        self, positives: int, negatives: int, steps: int
    ) -> None:
        """SciPy gets our resamples and finds bias and acceleration by itself."""
        rng = np.random.default_rng(steps)
        labels = np.repeat([1, 0], [positives, negatives])
        scores = (
            np.round(steps / (1 + np.exp(-(1.2 * labels + rng.normal(size=len(labels)))))) / steps
        )
        slides = predictions(
            labels.tolist(), scores.tolist(), [f"{place:02d}" for place in range(len(labels))]
        )
        resamples = Resamples(slides, Resampling(999, 0.9, 5))

        def auc(positive: np.ndarray, negative: np.ndarray, axis: int) -> np.ndarray:
            pairs = positive[..., :, None] - negative[..., None, :]
            return np.round(((pairs > 0) + (pairs == 0) / 2).mean(axis=(-1, -2)), 12)

        of_positives, of_negatives = (
            resamples.bootstrap[:, :positives],
            resamples.bootstrap[:, positives:],
        )  # whole numbers
        pairs = scores[:positives, None] - scores[None, positives:]
        wins = np.einsum("rp,pn,rn->r", of_positives, (pairs > 0) + (pairs == 0) / 2, of_negatives)
        resampled = np.round(wins / (positives * negatives), 12)
        assert (
            0.005 < np.mean(resampled == auc(scores[:positives], scores[positives:], -1)) < 0.2
        )  # some tie with the value
        drawn = SimpleNamespace(bootstrap_distribution=resampled)
        reference = bootstrap(
            (scores[:positives], scores[positives:]),
            auc,
            n_resamples=0,
            bootstrap_result=drawn,
            confidence_level=0.9,
            method="BCa",
            vectorized=True,
        ).confidence_interval
        number = auc_number(slides, Resampling(999, 0.9, 5))
        assert (number.low, number.high) == pytest.approx((reference.low, reference.high), abs=1e-9)

    def test_cover_the_truth_about_as_often_as_they_claim(self) -> None:
        """200 cohorts of 20 positive and 20 negative patients of two slides each; slides of a
        patient share half their variance.
        """
        rng = np.random.default_rng(11)
        labels = np.repeat([1] * 20 + [0] * 20, 2)
        patients = np.repeat(np.arange(40), 2).astype(str)
        truth, by_patient, by_slide = 0.8145, 0, 0  # Phi(d / sqrt(2)) with d = 1.265
        for run in range(200):
            shared = np.repeat(rng.normal(size=40), 2)
            of_slide = rng.normal(size=80)
            scores = (shared + of_slide) / np.sqrt(2) + 1.265 * labels
            for names in (patients, np.arange(80).astype(str)):
                number = auc_number(Predictions(labels, scores, names), Resampling(200, 0.9, run))
                covered = number.low <= truth <= number.high
                by_patient, by_slide = (
                    by_patient + (covered and names is patients),
                    by_slide + (covered and names is not patients),
                )
        assert 0.85 <= by_patient / 200 <= 0.95
        assert by_slide < by_patient  # slides taken for patients claim too much

    def test_do_not_depend_on_the_order_of_slides(self) -> None:
        slides = predictions(
            [1, 0, 1, 0, 1, 0], [0.9, 0.1, 0.4, 0.6, 0.7, 0.3], ["a", "b", "c", "d", "a", "e"]
        )
        turned = Predictions(slides.labels[::-1], slides.scores[::-1], slides.patients[::-1])
        for name, number in slide_metrics(slides, 0.5, RESAMPLING).items():
            other = slide_metrics(turned, 0.5, RESAMPLING)[name]
            assert (other.value, other.low, other.high) == pytest.approx(
                (number.value, number.low, number.high)
            ), name

    def test_every_resample_keeps_the_classes_of_patients(self) -> None:
        resamples = Resamples(
            predictions([1, 0, 0, 0, 1], [0.5] * 5, ["a", "a", "b", "c", "d"]), RESAMPLING
        )
        assert resamples.patients.tolist() == ["a", "b", "c", "d"]
        assert (resamples.bootstrap[:, [0, 3]].sum(axis=1) == 2).all()
        assert (resamples.bootstrap[:, [1, 2]].sum(axis=1) == 2).all()
        assert resamples.bootstrap[:, 0].mean() == pytest.approx(1, abs=0.1)

    def test_perfect_slides_get_score_intervals_for_so_many_patients(self) -> None:
        slides = predictions(
            [1, 1, 1, 0, 0, 0, 0],
            [0.9, 0.8, 0.7, 0.4, 0.3, 0.2, 0.1],
            ["a", "a", "b", "c", "d", "e", "f"],
        )
        numbers = slide_metrics(slides, 0.5, RESAMPLING)
        assert numbers["auc"] == Number(1.0, *newcombe_bounds(1.0, 2, 4, 0.95))
        assert numbers["specificity"] == Number(1.0, *wilson_bounds(1.0, 4, 0.95))
        assert numbers["sensitivity"] == Number(1.0, *wilson_bounds(1.0, 2, 0.95))
        assert numbers["f1"] == Number(1.0, reason="all resamples agree")

    @pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 7), (9, 9)])
    def test_wilson_is_scipys(self, successes: int, trials: int) -> None:
        reference = binomtest(successes, trials).proportion_ci(0.9, "wilson")
        assert wilson_bounds(successes / trials, trials, 0.9) == pytest.approx(
            (reference.low, reference.high)
        )

    def test_newcombe_solves_its_equation(self) -> None:
        low, high = newcombe_bounds(0.9, 12, 30, 0.95)
        for theta in (low, high):
            variance = (
                theta
                * (1 - theta)
                * (1 + 20 * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
                / (12 * 30)
            )
            assert abs(0.9 - theta) == pytest.approx(1.959964 * np.sqrt(variance))
        assert low < 0.9 < high < 1

    def test_newcombe_mirrors_and_narrows(self) -> None:
        assert newcombe_bounds(0.0, 4, 3, 0.95) == pytest.approx(
            [1 - bound for bound in newcombe_bounds(1.0, 4, 3, 0.95)[::-1]]
        )
        assert newcombe_bounds(1.0, 4, 3, 0.95)[0] < newcombe_bounds(1.0, 40, 30, 0.95)[0] < 1.0

    def test_no_warning_escapes(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            slide_metrics(predictions([1, 0, 0], [0.2, 0.9, 0.1], ["a", "a", "b"]), 0.5, RESAMPLING)
