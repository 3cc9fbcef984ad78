import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)
from sklearn.metrics import log_loss as sklearn_log_loss

from hnm.evidence.numbers import metrics
from hnm.evidence.numbers.metrics import Draws, Number, Predictions, Resampling
from tests.support.evidence import detections

RESAMPLING = Resampling(resamples=400, confidence=0.95, seed=7)


def predictions(
    labels: list[int], scores: list[float], patients: list[str] | None = None
) -> Predictions:
    names = patients or [f"p{place}" for place in range(len(labels))]
    return Predictions(
        np.array(labels, np.int64), np.array(scores, np.float64), np.array(names, dtype=str)
    )


# label, score: two errors at 0.5, one tie across labels
WORKED = predictions([1, 1, 1, 0, 0, 0, 0], [0.9, 0.6, 0.3, 0.7, 0.3, 0.2, 0.1])


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Predictions, np.ndarray]:
    """Slides of both classes, many ties, and two rows of positive whole weights."""
    count = draw(st.integers(2, 12))
    labels = draw(
        st.lists(st.integers(0, 1), min_size=count, max_size=count).filter(
            lambda own: 0 < sum(own) < len(own)
        )
    )
    scores = [
        step / 8 for step in draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
    ]
    patients = [
        f"p{own}" for own in draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    ]
    weights = [draw(st.lists(st.integers(1, 4), min_size=count, max_size=count)) for _ in range(2)]
    return predictions(labels, scores, patients), np.array(weights, np.float64)


class TestWorkedExample:
    """Three positive and four negative slides, by hand."""

    def test_auc(self) -> None:
        # 0.9 beats 4; 0.6 beats 3 (not 0.7); 0.3 beats 2 and ties one: 9.5 of 12
        assert metrics.auc_number(WORKED, RESAMPLING).value == pytest.approx(9.5 / 12)

    def test_threshold_metrics_at_a_half(self) -> None:
        numbers = metrics.slide_metrics(WORKED, 0.5, RESAMPLING)
        assert numbers["accuracy"].value == pytest.approx(5 / 7)
        assert numbers["sensitivity"].value == pytest.approx(2 / 3)
        assert numbers["specificity"].value == pytest.approx(3 / 4)
        assert numbers["f1"].value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
        assert numbers["brier"].value == pytest.approx(
            (0.01 + 0.16 + 0.49 + 0.49 + 0.09 + 0.04 + 0.01) / 7
        )

    def test_a_score_equal_to_the_threshold_is_positive(self) -> None:
        assert metrics.slide_metrics(WORKED, 0.3, RESAMPLING)["sensitivity"].value == 1.0

    def test_sensitivity_at_high_specificity(self) -> None:
        # no negative may be called: only 0.9 is above 0.7
        assert metrics.slide_metrics(WORKED, 0.5, RESAMPLING)[
            "sensitivity_at_specificity_90"
        ].value == pytest.approx(1 / 3)

    def test_calibration_error_is_its_formula(self) -> None:
        # bins of width 0.1, by score: 0.9: 1 of 1; 0.7: 0 of 1; 0.6: 1 of 1; 0.3: 1 of 2; 0.2: 0 of
        # 1; 0.1: 0 of 1
        expected = (1 * 0.1 + 1 * 0.7 + 1 * 0.4 + 2 * 0.2 + 1 * 0.2 + 1 * 0.1) / 7
        assert metrics.slide_metrics(WORKED, 0.5, RESAMPLING)["ece"].value == pytest.approx(
            expected
        )

    def test_reliability(self) -> None:
        curve = metrics.reliability(predictions([1, 0, 0, 1], [0.92, 0.98, 0.12, 1.0]))
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
                metrics.brier: brier_score_loss(slides.labels, slides.scores, sample_weight=row),
                metrics.log_loss: sklearn_log_loss(
                    slides.labels, np.clip(slides.scores, 1e-7, 1 - 1e-7), sample_weight=row
                ),
            }
            for metric, value in expected.items():
                assert metric(slides, row[None])[0] == pytest.approx(value, abs=1e-6), (
                    metric.__name__
                )
            at_threshold = {
                metrics.accuracy: accuracy_score(slides.labels, called, sample_weight=row),
                metrics.f1: f1_score(slides.labels, called, sample_weight=row, zero_division=0),
                metrics.sensitivity: recall_score(slides.labels, called, sample_weight=row),
                metrics.specificity: recall_score(1 - slides.labels, 1 - called, sample_weight=row),
            }
            for metric, value in at_threshold.items():
                assert metric(slides, row[None], threshold=0.5)[0] == pytest.approx(value), (
                    metric.__name__
                )

    @settings(max_examples=30, deadline=None)
    @given(labelled(), st.lists(st.integers(1, 3), min_size=5, max_size=5))
    def test_clustered_auc(self, drawn: tuple[Predictions, np.ndarray], times: list[int]) -> None:
        slides, _ = drawn
        draws = Draws(slides, RESAMPLING)
        weights = np.array(times[: len(draws.patients)], np.float64)
        expected = roc_auc_score(
            slides.labels, slides.scores, sample_weight=weights[draws.patient_of]
        )
        assert metrics.clustered_auc(slides, draws)(weights[None])[0] == pytest.approx(expected)

    @settings(max_examples=30, deadline=None)
    @given(
        labelled(),
        st.lists(st.integers(1, 3), min_size=5, max_size=5),
        st.sampled_from([1, 2, 4096]),
    )
    def test_clustered_average_precision(
        self, drawn: tuple[Predictions, np.ndarray], times: list[int], at_once: int
    ) -> None:
        slides, _ = drawn
        draws = Draws(slides, RESAMPLING)
        weights = np.array(times[: len(draws.patients)], np.float64)
        expected = average_precision_score(
            slides.labels, slides.scores, sample_weight=weights[draws.patient_of]
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "CUTS_AT_ONCE", at_once)
            assert metrics.clustered_average_precision(slides, draws)(weights[None])[
                0
            ] == pytest.approx(expected)

    def test_tiles(self) -> None:
        rng = np.random.default_rng(3)
        labels = (rng.random(300) < 0.2).astype(np.int64)
        tiles = Predictions(
            labels,
            np.round(rng.random(300) + 0.3 * labels, 2) / 2,
            rng.integers(0, 9, 300).astype(str),
        )
        numbers = metrics.tile_metrics(tiles, RESAMPLING)
        assert numbers["auc"].value == pytest.approx(roc_auc_score(tiles.labels, tiles.scores))
        precision = numbers["average_precision"]
        assert precision.value == pytest.approx(
            average_precision_score(tiles.labels, tiles.scores), abs=1e-12
        )
        patient_of = np.unique(tiles.patients, return_inverse=True)[1]
        expected = Draws(tiles, RESAMPLING).number(
            lambda weights: np.array(
                [
                    average_precision_score(
                        tiles.labels, tiles.scores, sample_weight=row[patient_of]
                    )
                    for row in weights
                ]
            )
        )
        assert (precision.low, precision.high) == pytest.approx(
            (expected.low, expected.high), abs=1e-9
        )


class TestThreshold:
    def test_lies_midway_between_two_scores_at_the_highest_youden_index(self) -> None:
        # from 0.6 on: sensitivity 2/3, specificity 1: J = 0.667; from 0.2 on: 1 and 1/2
        assert metrics.choose_threshold(
            predictions([1, 1, 1, 0, 0], [0.9, 0.6, 0.2, 0.4, 0.1])
        ) == pytest.approx((0.6 + 0.4) / 2)

    def test_ties_go_to_the_higher_threshold(self) -> None:
        # J = 1/2 from 0.8 on (1/2, 1) and from 0.4 on (1, 1/2)
        assert metrics.choose_threshold(
            predictions([1, 0, 1, 0], [0.8, 0.6, 0.4, 0.2])
        ) == pytest.approx(0.7)

    def test_worse_than_chance_calls_nothing_positive(self) -> None:
        assert metrics.choose_threshold(predictions([0, 1], [0.9, 0.2])) == pytest.approx(0.95)

    def test_all_positive_where_one_score_is_all_there_is(self) -> None:
        assert metrics.choose_threshold(predictions([1, 0], [0.4, 0.4])) == pytest.approx(0.7)

    @pytest.mark.parametrize("labels", [[1, 1], [0, 0], []])
    def test_a_half_without_both_classes(self, labels: list[int]) -> None:
        assert metrics.choose_threshold(predictions(labels, [0.3] * len(labels))) == 0.5


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
        numbers = metrics.slide_metrics(slides, 0.5, RESAMPLING)
        assert list(numbers) == list(metrics.SLIDE_METRICS)
        for name in (
            "auc",
            "average_precision",
            "sensitivity_at_specificity_90",
            "f1",
            "sensitivity",
            "specificity",
        ):
            assert numbers[name] == Number(None, reason=reason)
        assert metrics.tile_metrics(slides, RESAMPLING) == {
            name: Number(None, reason=reason) for name in ("auc", "average_precision")
        }
        assert metrics.auc_gain(slides, slides, RESAMPLING) == Number(None, reason=reason)

    def test_what_needs_one_class_is_there(self) -> None:
        numbers = metrics.slide_metrics(predictions([0, 0], [0.2, 0.7]), 0.5, RESAMPLING)
        assert numbers["accuracy"].value == 0.5
        assert numbers["brier"].value == pytest.approx((0.04 + 0.49) / 2)


class TestDelong:
    # alb, total protein, K-G score and whether surgery was of use: DeLong et al. 1988, as PROC
    # LOGISTIC's manual prints them (example 8)
    ALB = """3.0 3.2 3.9 2.8 3.2 0.9 2.5 1.6 3.8 3.7 3.2 3.8 4.1 3.6 4.3 3.6 2.3 4.2 4.0 3.5 3.8
    3.0 4.5 3.7 3.1 4.1 4.3 4.3 3.2 2.6 3.3 1.7 3.7 3.3 4.2 3.5 2.9 2.1 2.8 4.0 3.3 3.7 3.6"""
    TP = """5.8 6.3 6.8 4.8 5.8 4.0 5.7 5.6 5.7 6.7 5.4 6.6 6.6 5.7 7.0 6.7 4.4 7.6 6.6 5.8 6.8
    4.7 7.4 7.4 6.6 8.2 7.0 6.5 5.1 4.7 6.8 4.0 6.1 6.3 7.7 6.2 5.7 4.8 6.2 7.0 5.7 6.9 6.6"""
    KG = "10 5 3 6 3 5 8 5 5 6 4 6 5 5 4 4 6 4 6 6 7 8 5 5 6 6 5 4 5 6 6 7 5 7 6 5 9 7 8 7 6 5 5"
    USE = "0 1 1 0 1 0 0 1 1 1 1 1 1 1 1 0 1 0 0 1 1 0 1 1 1 1 1 1 1 1 0 0 1 1 1 1 0 1 0 1 1 1 1"

    def test_published_example(self) -> None:
        alb, protein, kg, use = (
            np.array(column.split(), np.float64)
            for column in (self.ALB, self.TP, self.KG, self.USE)
        )
        aucs, covariance = metrics.delong(use.astype(np.int64), np.stack([alb, 10 - kg, protein]))
        assert aucs == pytest.approx([0.7366, 0.7258, 0.6478], abs=5e-5)
        assert np.sqrt(np.diag(covariance)) == pytest.approx([0.0927, 0.1028, 0.1000], abs=5e-5)
        for rater, difference, error in ((0, 0.0108, 0.0953), (2, -0.0780, 0.1046)):
            assert aucs[rater] - aucs[1] == pytest.approx(difference, abs=5e-5)
            assert np.sqrt(
                covariance[rater, rater] + covariance[1, 1] - 2 * covariance[rater, 1]
            ) == pytest.approx(error, abs=5e-5)

    def test_p_value_of_the_published_example(self) -> None:
        # chi-square 0.5554 with one degree of freedom, p = 0.4561
        alb, protein, kg, use = (
            np.array(column.split(), np.float64)
            for column in (self.ALB, self.TP, self.KG, self.USE)
        )
        first, second = (
            predictions(use.tolist(), scores.tolist()) for scores in (10 - kg, protein)
        )
        assert metrics.delong_p(first, second) == pytest.approx(0.4561, abs=5e-5)
        assert metrics.delong_p(first, predictions(use.tolist(), alb.tolist())) == pytest.approx(
            0.9102, abs=5e-5
        )

    def test_the_numbers_of_r_s_proc(self) -> None:
        """roc, var, cov and roc.test(method = "delong") of pROC 1.18.0 in R 4.2.2, on the published
        example; tests/services/test_proc.py asks R itself.
        """
        alb, protein, kg, use = (
            np.array(column.split(), np.float64)
            for column in (self.ALB, self.TP, self.KG, self.USE)
        )
        aucs, covariance = metrics.delong(use.astype(np.int64), np.stack([alb, 10 - kg, protein]))
        assert aucs == pytest.approx([0.736559139785, 0.725806451613, 0.647849462366], abs=1e-12)
        assert np.diag(covariance) == pytest.approx(
            [0.00859224179008, 0.0105722832732, 0.0100094773612], abs=1e-13
        )
        assert covariance[[1, 1, 0], [2, 0, 2]] == pytest.approx(
            [0.00481929729133, 0.00503705981073, 0.00774452927646], abs=1e-13
        )
        pairs = [(10 - kg, protein), (10 - kg, alb), (alb, protein)]
        p_values = [
            metrics.delong_p(*(predictions(use.tolist(), scores.tolist()) for scores in pair))
            for pair in pairs
        ]
        assert p_values == pytest.approx(
            [0.456139707507, 0.910206347201, 0.111828210121], abs=1e-12
        )

    def test_intervals_of_the_published_example(self) -> None:
        # Wald limits at 95 %: K-G 0.5243 to 0.9273, total protein 0.4518 to 0.8439, as the manual
        # prints them
        protein, kg, use = (
            np.array(column.split(), np.float64) for column in (self.TP, self.KG, self.USE)
        )
        bounds = [
            metrics.delong_bounds(predictions(use.tolist(), scores.tolist()), 0.95)
            for scores in (10 - kg, protein)
        ]
        assert np.array(bounds) == pytest.approx(
            np.array([[0.5243, 0.9273], [0.4518, 0.8439]]), abs=1.5e-4
        )

    def test_intervals_end_at_one_and_need_variance(self) -> None:
        # wins of positives 1, 1, 1/2 and over negatives 2/3, 1: AUC 5/6, variance (1/12) / 3 +
        # (1/18) / 2 = 1/18
        low, high = metrics.delong_bounds(
            predictions([1, 1, 1, 0, 0], [0.9, 0.8, 0.4, 0.6, 0.1]), 0.9
        ) or (0, 0)
        assert (low, high) == (pytest.approx(5 / 6 - 1.6448536 / 18**0.5), 1.0)
        assert metrics.delong_bounds(predictions([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1]), 0.9) is None
        assert metrics.delong_bounds(predictions([1, 0, 0], [0.9, 0.8, 0.2]), 0.9) is None

    def test_no_p_value_without_variance(self) -> None:
        slides = predictions([1, 1, 0, 0], [0.9, 0.6, 0.7, 0.1])
        assert metrics.delong_p(slides, slides) is None
        assert (
            metrics.delong_p(
                predictions([1, 0, 0], [0.9, 0.6, 0.7]), predictions([1, 0, 0], [0.1, 0.6, 0.7])
            )
            is None
        )

    @settings(max_examples=40, deadline=None)
    @given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10**6))
    def test_the_definition_in_plain_loops(self, m: int, n: int, seed: int) -> None:
        scores = np.random.default_rng(seed).integers(0, 5, (2, m + n)) / 4
        labels = np.array([1] * m + [0] * n)
        wins = np.array(
            [[[(x > y) + (x == y) / 2 for y in row[m:]] for x in row[:m]] for row in scores]
        )
        expected = np.cov(wins.mean(axis=2)) / m + np.cov(wins.mean(axis=1)) / n
        aucs, covariance = metrics.delong(labels, scores)
        assert aucs == pytest.approx(wins.mean(axis=(1, 2)))
        assert covariance == pytest.approx(expected)


class TestIntervals:
    def test_are_those_of_scipy_where_each_patient_has_one_slide(self) -> None:
        rng = np.random.default_rng(0)
        labels = np.array([1] * 20 + [0] * 40)
        scores = 1 / (1 + np.exp(-(1.2 * labels + rng.normal(size=60))))
        number = metrics.auc_number(
            predictions(labels.tolist(), scores.tolist()), Resampling(4000, 0.9, 1)
        )
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
        draws = Draws(
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

        number = draws.number(variance)
        assert number.value == pytest.approx(171.5, abs=0.05)
        assert draws._acceleration(variance(draws.jackknife)) == pytest.approx(0.061, abs=5e-4)
        # the standard error of such an end over 2,000 resamples is about 3
        assert (number.low, number.high) == (
            pytest.approx(115.8, abs=4),
            pytest.approx(259.6, abs=9),
        )
        assert np.quantile(variance(draws.bootstrap), [0.05, 0.95]) == pytest.approx(
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
        draws = Draws(slides, Resampling(999, 0.9, 5))

        def auc(positive: np.ndarray, negative: np.ndarray, axis: int) -> np.ndarray:
            pairs = positive[..., :, None] - negative[..., None, :]
            return np.round(((pairs > 0) + (pairs == 0) / 2).mean(axis=(-1, -2)), 12)

        of_positives, of_negatives = (
            draws.bootstrap[:, :positives],
            draws.bootstrap[:, positives:],
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
        number = metrics.auc_number(slides, Resampling(999, 0.9, 5))
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
            shared, own = np.repeat(rng.normal(size=40), 2), rng.normal(size=80)
            scores = (shared + own) / np.sqrt(2) + 1.265 * labels
            for names in (patients, np.arange(80).astype(str)):
                number = metrics.auc_number(
                    Predictions(labels, scores, names), Resampling(200, 0.9, run)
                )
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
        for name, number in metrics.slide_metrics(slides, 0.5, RESAMPLING).items():
            other = metrics.slide_metrics(turned, 0.5, RESAMPLING)[name]
            assert (other.value, other.low, other.high) == pytest.approx(
                (number.value, number.low, number.high)
            ), name

    def test_every_resample_keeps_the_classes_of_patients(self) -> None:
        draws = Draws(
            predictions([1, 0, 0, 0, 1], [0.5] * 5, ["a", "a", "b", "c", "d"]), RESAMPLING
        )
        assert draws.patients.tolist() == ["a", "b", "c", "d"]
        assert (draws.bootstrap[:, [0, 3]].sum(axis=1) == 2).all()
        assert (draws.bootstrap[:, [1, 2]].sum(axis=1) == 2).all()
        assert draws.bootstrap[:, 0].mean() == pytest.approx(1, abs=0.1)

    def test_perfect_slides_get_score_intervals_for_so_many_patients(self) -> None:
        slides = predictions(
            [1, 1, 1, 0, 0, 0, 0],
            [0.9, 0.8, 0.7, 0.4, 0.3, 0.2, 0.1],
            ["a", "a", "b", "c", "d", "e", "f"],
        )
        numbers = metrics.slide_metrics(slides, 0.5, RESAMPLING)
        assert numbers["auc"] == Number(1.0, *metrics.newcombe_bounds(1.0, 2, 4, 0.95))
        assert numbers["specificity"] == Number(1.0, *metrics.wilson_bounds(1.0, 4, 0.95))
        assert numbers["sensitivity"] == Number(1.0, *metrics.wilson_bounds(1.0, 2, 0.95))
        assert numbers["f1"] == Number(1.0, reason="all resamples agree")

    @pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 7), (9, 9)])
    def test_wilson_is_scipys(self, successes: int, trials: int) -> None:
        reference = binomtest(successes, trials).proportion_ci(0.9, "wilson")
        assert metrics.wilson_bounds(successes / trials, trials, 0.9) == pytest.approx(
            (reference.low, reference.high)
        )

    def test_newcombe_solves_its_equation(self) -> None:
        low, high = metrics.newcombe_bounds(0.9, 12, 30, 0.95)
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
        assert metrics.newcombe_bounds(0.0, 4, 3, 0.95) == pytest.approx(
            [1 - bound for bound in metrics.newcombe_bounds(1.0, 4, 3, 0.95)[::-1]]
        )
        assert (
            metrics.newcombe_bounds(1.0, 4, 3, 0.95)[0]
            < metrics.newcombe_bounds(1.0, 40, 30, 0.95)[0]
            < 1.0
        )

    def test_no_warning_escapes(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metrics.slide_metrics(
                predictions([1, 0, 0], [0.2, 0.9, 0.1], ["a", "a", "b"]), 0.5, RESAMPLING
            )


class TestGain:
    def test_is_paired(self) -> None:
        before = predictions([1, 1, 0, 0, 1, 0], [0.6, 0.4, 0.5, 0.3, 0.2, 0.1])
        number = metrics.auc_gain(before, before, RESAMPLING)
        assert number == Number(0.0, reason="all resamples agree")

    def test_value(self) -> None:
        before, after = (
            predictions([1, 1, 0, 0], [0.6, 0.2, 0.5, 0.3]),
            predictions([1, 1, 0, 0], [0.6, 0.4, 0.5, 0.3]),
        )
        assert metrics.auc_gain(before, after, RESAMPLING).value == pytest.approx(3 / 4 - 2 / 4)


class TestFroc:
    def test_worked_example(self) -> None:
        # two slides: 1/4, 1/2, 1, 2, 4, 8 false detections a slide are 0, 1, 2, 4, 8, 16 in all
        found = detections(
            [0.95, 0.75, 0.5, 0.5, -np.inf], "aabbb", [0.9, 0.6, 0.5, 0.5, 0.2], "abbbb", "ab"
        )
        # none: above 0.9; one: above 0.6; two: above 0.5; four: above 0.2; all five: whatever was
        # found
        assert metrics.froc(found).tolist() == [0.2, 0.4, 0.4, 0.8, 0.8, 0.8]

    def test_without_false_detections_all_that_was_found_counts(self) -> None:
        assert metrics.froc(detections([0.1, -np.inf], "ab", [], "", "abc")).tolist() == [0.5] * 6


class TestLesionMetrics:
    found = detections(
        [0.95, 0.75, 0.5, 0.5, -np.inf], "aabbc", [0.9, 0.6, 0.5, 0.5, 0.2, 0.1], "abddde", "abcdde"
    )

    def test_worked_example(self) -> None:
        # of five lesions 0.95 and 0.75 lie above 0.55, as do 0.9 and 0.6 of the false detections on
        # six slides
        numbers = metrics.lesion_metrics(self.found, 0.55, RESAMPLING)
        assert numbers["lesions_hit"].value == 0.4 and numbers[
            "false_detections"
        ].value == pytest.approx(2 / 6)
        # 1.5 (one), 3, 6, 12, 24, 48 false ones: above 0.6; above 0.5 (0.5 itself comes fourth);
        # then whatever was found
        assert numbers["froc"].value == pytest.approx((0.4 + 0.4 + 4 * 0.8) / 6)
        assert [(own.low, own.high) != (None, None) for own in numbers.values()] == [True] * 3

    def test_a_score_at_the_threshold_is_a_hit(self) -> None:
        numbers = metrics.lesion_metrics(self.found, 0.5, RESAMPLING)
        assert numbers["lesions_hit"].value == 0.8 and numbers[
            "false_detections"
        ].value == pytest.approx(4 / 6)

    def test_a_resample_takes_a_patient_with_all_slides_and_lesions(self) -> None:
        """The interval from values that plain loops find in every resample."""
        found, resampling = self.found, Resampling(40, 0.9, 5)
        with_lesion = np.isin(found.slide_patients, list("abc")).astype(np.int64)
        draws = Draws(Predictions(with_lesion, np.zeros(6), found.slide_patients), resampling)

        def values(weights: np.ndarray) -> dict[str, float]:
            times = dict(zip(draws.patients, weights.astype(int), strict=True))
            lesions = [
                score
                for score, owner in zip(found.lesion_scores, found.lesion_patients, strict=True)
                for _ in range(times[owner])
            ]
            beside = [
                score
                for score, owner in zip(found.false_scores, found.false_patients, strict=True)
                for _ in range(times[owner])
            ]
            slides = sum(times[owner] for owner in found.slide_patients)
            cuts = [
                [*sorted(beside, reverse=True), -np.inf][min(int(rate * slides), len(beside))]
                for rate in metrics.FROC_RATES
            ]
            return {
                "froc": float(np.mean([[score > cut for score in lesions] for cut in cuts])),
                "lesions_hit": float(np.mean([score >= 0.55 for score in lesions])),
                "false_detections": sum(score >= 0.55 for score in beside) / slides,
            }

        resampled, left_out = (
            [values(row) for row in rows] for rows in (draws.bootstrap, draws.jackknife)
        )
        for name, number in metrics.lesion_metrics(found, 0.55, resampling).items():
            acceleration = draws._acceleration(np.array([own[name] for own in left_out]))
            values_of_all = np.array([own[name] for own in resampled]).round(12)
            assert (number.low, number.high) == pytest.approx(
                metrics.bca_bounds(round(number.value, 12), values_of_all, acceleration, 0.9)
            )

    def test_where_all_are_hit_the_interval_is_wilson_s_of_patients(self) -> None:
        number = metrics.lesion_metrics(
            detections([0.9, 0.8, 0.7], "abb", [0.1], "c", "abc"), 0.6, RESAMPLING
        )["lesions_hit"]
        assert number.value == 1 and (number.low, number.high) == metrics.wilson_bounds(
            1.0, 2, RESAMPLING.confidence
        )

    def test_without_a_lesion_nothing_can_be_said(self) -> None:
        numbers = metrics.lesion_metrics(detections([], "", [0.4], "a", "a"), 0.5, RESAMPLING)
        assert numbers == {
            name: Number(None, reason="no lesion is drawn") for name in metrics.LESION_METRICS
        }
