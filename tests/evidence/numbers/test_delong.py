"""DeLong's variance: a published example, and its definition in plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.evidence.numbers.delong import delong, delong_bounds, delong_p
from tests.support.predictions import predictions


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
        aucs, covariance = delong(use.astype(np.int64), np.stack([alb, 10 - kg, protein]))
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
        assert delong_p(first, second) == pytest.approx(0.4561, abs=5e-5)
        assert delong_p(first, predictions(use.tolist(), alb.tolist())) == pytest.approx(
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
        aucs, covariance = delong(use.astype(np.int64), np.stack([alb, 10 - kg, protein]))
        assert aucs == pytest.approx([0.736559139785, 0.725806451613, 0.647849462366], abs=1e-12)
        assert np.diag(covariance) == pytest.approx(
            [0.00859224179008, 0.0105722832732, 0.0100094773612], abs=1e-13
        )
        assert covariance[[1, 1, 0], [2, 0, 2]] == pytest.approx(
            [0.00481929729133, 0.00503705981073, 0.00774452927646], abs=1e-13
        )
        pairs = [(10 - kg, protein), (10 - kg, alb), (alb, protein)]
        p_values = [
            delong_p(*(predictions(use.tolist(), scores.tolist()) for scores in pair))
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
            delong_bounds(predictions(use.tolist(), scores.tolist()), 0.95)
            for scores in (10 - kg, protein)
        ]
        assert np.array(bounds) == pytest.approx(
            np.array([[0.5243, 0.9273], [0.4518, 0.8439]]), abs=1.5e-4
        )

    def test_intervals_end_at_one_and_need_variance(self) -> None:
        # wins of positives 1, 1, 1/2 and over negatives 2/3, 1: AUC 5/6, variance (1/12) / 3 +
        # (1/18) / 2 = 1/18
        low, high = delong_bounds(predictions([1, 1, 1, 0, 0], [0.9, 0.8, 0.4, 0.6, 0.1]), 0.9) or (
            0,
            0,
        )
        assert (low, high) == (pytest.approx(5 / 6 - 1.6448536 / 18**0.5), 1.0)
        assert delong_bounds(predictions([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1]), 0.9) is None
        assert delong_bounds(predictions([1, 0, 0], [0.9, 0.8, 0.2]), 0.9) is None

    def test_no_p_value_without_variance(self) -> None:
        slides = predictions([1, 1, 0, 0], [0.9, 0.6, 0.7, 0.1])
        assert delong_p(slides, slides) is None
        assert (
            delong_p(
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
        aucs, covariance = delong(labels, scores)
        assert aucs == pytest.approx(wins.mean(axis=(1, 2)))
        assert covariance == pytest.approx(expected)
