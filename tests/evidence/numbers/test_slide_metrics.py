"""Metrics of slides: worked by hand, and as scikit-learn has them."""

import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, recall_score
from sklearn.metrics import log_loss as sklearn_log_loss

from hnm.evidence.numbers.areas import auc_gain
from hnm.evidence.numbers.intervals import Number
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.slide_metrics import (
    accuracy,
    brier,
    choose_threshold,
    f1,
    log_loss,
    reliability,
    sensitivity,
    slide_metrics,
    specificity,
)
from hnm.evidence.numbers.tile_metrics import tile_metrics
from tests.support.predictions import RESAMPLING, WORKED, labelled, predictions


class TestWorkedExample:
    """Three positive and four negative slides, by hand."""

    def test_threshold_metrics_at_a_half(self) -> None:
        numbers = slide_metrics(WORKED, 0.5, RESAMPLING)
        assert numbers["accuracy"].value == pytest.approx(5 / 7)
        assert numbers["sensitivity"].value == pytest.approx(2 / 3)
        assert numbers["specificity"].value == pytest.approx(3 / 4)
        assert numbers["f1"].value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
        assert numbers["brier"].value == pytest.approx(
            (0.01 + 0.16 + 0.49 + 0.49 + 0.09 + 0.04 + 0.01) / 7
        )

    def test_a_score_equal_to_the_threshold_is_positive(self) -> None:
        assert slide_metrics(WORKED, 0.3, RESAMPLING)["sensitivity"].value == 1.0

    def test_sensitivity_at_high_specificity(self) -> None:
        # no negative may be called: only 0.9 is above 0.7
        assert slide_metrics(WORKED, 0.5, RESAMPLING)[
            "sensitivity_at_specificity_90"
        ].value == pytest.approx(1 / 3)

    def test_calibration_error_is_its_formula(self) -> None:
        # bins of width 0.1, by score: 0.9: 1 of 1; 0.7: 0 of 1; 0.6: 1 of 1; 0.3: 1 of 2; 0.2: 0 of
        # 1; 0.1: 0 of 1
        expected = (1 * 0.1 + 1 * 0.7 + 1 * 0.4 + 2 * 0.2 + 1 * 0.2 + 1 * 0.1) / 7
        assert slide_metrics(WORKED, 0.5, RESAMPLING)["ece"].value == pytest.approx(expected)

    def test_reliability(self) -> None:
        curve = reliability(predictions([1, 0, 0, 1], [0.92, 0.98, 0.12, 1.0]))
        assert curve == [
            {"mean_score": 0.12, "positive_share": 0.0, "slides": 1},
            {
                "mean_score": pytest.approx(0.9666667),
                "positive_share": pytest.approx(2 / 3),
                "slides": 3,
            },
        ]


class TestAgainstScikitLearn:
    """Weights stand for repeated slides, so scikit-learn's sample weights are an independent figure
    of every resample.
    """

    @settings(max_examples=30, deadline=None)
    @given(labelled())
    def test_all_weighted_metrics(self, drawn: tuple[Predictions, np.ndarray]) -> None:
        slides, weights = drawn
        called = (slides.scores >= 0.5).astype(int)
        for row in weights:
            expected = {
                brier: brier_score_loss(slides.labels, slides.scores, sample_weight=row),
                log_loss: sklearn_log_loss(
                    slides.labels, np.clip(slides.scores, 1e-7, 1 - 1e-7), sample_weight=row
                ),
            }
            for metric, value in expected.items():
                assert metric(slides, row[None])[0] == pytest.approx(value, abs=1e-6), (
                    metric.__name__
                )
            at_threshold = {
                accuracy: accuracy_score(slides.labels, called, sample_weight=row),
                f1: f1_score(slides.labels, called, sample_weight=row, zero_division=0),
                sensitivity: recall_score(slides.labels, called, sample_weight=row),
                specificity: recall_score(1 - slides.labels, 1 - called, sample_weight=row),
            }
            for metric, value in at_threshold.items():
                assert metric(slides, row[None], threshold=0.5)[0] == pytest.approx(value), (
                    metric.__name__
                )


class TestThreshold:
    def test_lies_midway_between_two_scores_at_the_highest_youden_index(self) -> None:
        # from 0.6 on: sensitivity 2/3, specificity 1: J = 0.667; from 0.2 on: 1 and 1/2
        assert choose_threshold(
            predictions([1, 1, 1, 0, 0], [0.9, 0.6, 0.2, 0.4, 0.1])
        ) == pytest.approx((0.6 + 0.4) / 2)

    def test_ties_go_to_the_higher_threshold(self) -> None:
        # J = 1/2 from 0.8 on (1/2, 1) and from 0.4 on (1, 1/2)
        assert choose_threshold(predictions([1, 0, 1, 0], [0.8, 0.6, 0.4, 0.2])) == pytest.approx(
            0.7
        )

    def test_worse_than_chance_calls_nothing_positive(self) -> None:
        assert choose_threshold(predictions([0, 1], [0.9, 0.2])) == pytest.approx(0.95)

    def test_all_positive_where_one_score_is_all_there_is(self) -> None:
        assert choose_threshold(predictions([1, 0], [0.4, 0.4])) == pytest.approx(0.7)

    @pytest.mark.parametrize("labels", [[1, 1], [0, 0], []])
    def test_a_half_without_both_classes(self, labels: list[int]) -> None:
        assert choose_threshold(predictions(labels, [0.3] * len(labels))) == 0.5


class TestOneClass:
    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            ([0, 0], "there is no positive"),
            ([1, 1], "there is no negative"),
            ([], "there is nothing to evaluate"),
        ],
    )
    def test_what_needs_both_classes_is_null_with_a_reason(
        self, labels: list[int], reason: str
    ) -> None:
        slides = predictions(labels, [0.2, 0.7][: len(labels)])
        numbers = slide_metrics(slides, 0.5, RESAMPLING)
        assert list(numbers) == [
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
        ]
        for name in (
            "auc",
            "average_precision",
            "sensitivity_at_specificity_90",
            "f1",
            "sensitivity",
            "specificity",
        ):
            assert numbers[name] == Number(None, reason=reason)
        assert tile_metrics(slides, RESAMPLING) == {
            name: Number(None, reason=reason) for name in ("auc", "average_precision")
        }
        assert auc_gain(slides, slides, RESAMPLING) == Number(None, reason=reason)

    def test_what_needs_one_class_is_there(self) -> None:
        numbers = slide_metrics(predictions([0, 0], [0.2, 0.7]), 0.5, RESAMPLING)
        assert numbers["accuracy"].value == 0.5
        assert numbers["brier"].value == pytest.approx((0.04 + 0.49) / 2)
