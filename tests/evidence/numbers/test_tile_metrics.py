"""Lesions that peaks find, worked by hand."""

import numpy as np
import pytest

from hnm.evidence.numbers.intervals import Number, Resamples, Resampling, bca_bounds, wilson_bounds
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.tile_metrics import FROC_RATES, LESION_METRICS, froc, lesion_metrics
from tests.support.evidence import detections
from tests.support.predictions import RESAMPLING


class TestFroc:
    def test_worked_example(self) -> None:
        # two slides: 1/4, 1/2, 1, 2, 4, 8 false detections a slide are 0, 1, 2, 4, 8, 16 in all
        peaks = detections(
            [0.95, 0.75, 0.5, 0.5, -np.inf], "aabbb", [0.9, 0.6, 0.5, 0.5, 0.2], "abbbb", "ab"
        )
        # none: above 0.9; one: above 0.6; two: above 0.5; four: above 0.2; all five: whatever was
        # found
        assert froc(peaks).tolist() == [0.2, 0.4, 0.4, 0.8, 0.8, 0.8]

    def test_without_false_detections_all_that_was_found_counts(self) -> None:
        assert froc(detections([0.1, -np.inf], "ab", [], "", "abc")).tolist() == [0.5] * 6


class TestLesionMetrics:
    peaks = detections(
        [0.95, 0.75, 0.5, 0.5, -np.inf], "aabbc", [0.9, 0.6, 0.5, 0.5, 0.2, 0.1], "abddde", "abcdde"
    )

    def test_worked_example(self) -> None:
        # of five lesions 0.95 and 0.75 lie above 0.55, as do 0.9 and 0.6 of the false detections on
        # six slides
        numbers = lesion_metrics(self.peaks, 0.55, RESAMPLING)
        assert numbers["lesions_hit"].value == 0.4 and numbers[
            "false_detections"
        ].value == pytest.approx(2 / 6)
        # 1.5 (one), 3, 6, 12, 24, 48 false ones: above 0.6; above 0.5 (0.5 itself comes fourth);
        # then whatever was found
        assert numbers["froc"].value == pytest.approx((0.4 + 0.4 + 4 * 0.8) / 6)
        assert [(number.low, number.high) != (None, None) for number in numbers.values()] == [
            True
        ] * 3

    def test_a_score_at_the_threshold_is_a_hit(self) -> None:
        numbers = lesion_metrics(self.peaks, 0.5, RESAMPLING)
        assert numbers["lesions_hit"].value == 0.8 and numbers[
            "false_detections"
        ].value == pytest.approx(4 / 6)

    def test_a_resample_takes_a_patient_with_all_slides_and_lesions(self) -> None:
        """The interval from values that plain loops find in every resample."""
        peaks, resampling = self.peaks, Resampling(40, 0.9, 5)
        with_lesion = np.isin(peaks.slide_patients, list("abc")).astype(np.int64)
        resamples = Resamples(
            Predictions(with_lesion, np.zeros(6), peaks.slide_patients), resampling
        )

        def values(weights: np.ndarray) -> dict[str, float]:
            times = dict(zip(resamples.patients, weights.astype(int), strict=True))
            lesions = [
                score
                for score, owner in zip(peaks.lesion_scores, peaks.lesion_patients, strict=True)
                for _ in range(times[owner])
            ]
            beside = [
                score
                for score, owner in zip(peaks.false_scores, peaks.false_patients, strict=True)
                for _ in range(times[owner])
            ]
            slides = sum(times[owner] for owner in peaks.slide_patients)
            cuts = [
                [*sorted(beside, reverse=True), -np.inf][min(int(rate * slides), len(beside))]
                for rate in FROC_RATES
            ]
            return {
                "froc": float(np.mean([[score > cut for score in lesions] for cut in cuts])),
                "lesions_hit": float(np.mean([score >= 0.55 for score in lesions])),
                "false_detections": sum(score >= 0.55 for score in beside) / slides,
            }

        resampled, left_out = (
            [values(row) for row in rows] for rows in (resamples.bootstrap, resamples.jackknife)
        )
        for name, number in lesion_metrics(peaks, 0.55, resampling).items():
            acceleration = resamples._acceleration(np.array([row[name] for row in left_out]))
            values_of_all = np.array([row[name] for row in resampled]).round(12)
            assert (number.low, number.high) == pytest.approx(
                bca_bounds(round(number.value, 12), values_of_all, acceleration, 0.9)
            )

    def test_where_all_are_hit_the_interval_is_wilson_s_of_patients(self) -> None:
        number = lesion_metrics(
            detections([0.9, 0.8, 0.7], "abb", [0.1], "c", "abc"), 0.6, RESAMPLING
        )["lesions_hit"]
        assert number.value == 1 and (number.low, number.high) == wilson_bounds(
            1.0, 2, RESAMPLING.confidence
        )

    def test_without_a_lesion_nothing_can_be_said(self) -> None:
        numbers = lesion_metrics(detections([], "", [0.4], "a", "a"), 0.5, RESAMPLING)
        assert numbers == {
            name: Number(None, reason="no lesion is drawn") for name in LESION_METRICS
        }
