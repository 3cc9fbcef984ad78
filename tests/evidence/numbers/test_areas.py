"""Areas under curves: worked by hand, and as scikit-learn has them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from hnm.evidence.numbers.areas import (
    auc_gain,
    auc_number,
    clustered_auc,
    clustered_average_precision,
)
from hnm.evidence.numbers.intervals import Number, Resamples
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.tile_metrics import tile_metrics
from tests.support.predictions import RESAMPLING, WORKED, labelled, predictions


def test_worked_example() -> None:
    # 0.9 beats 4; 0.6 beats 3 (not 0.7); 0.3 beats 2 and ties one: 9.5 of 12
    assert auc_number(WORKED, RESAMPLING).value == pytest.approx(9.5 / 12)


class TestAgainstScikitLearn:
    """Weights stand for repeated slides, so scikit-learn's sample weights are an independent figure
    of every resample.
    """

    @settings(max_examples=30, deadline=None)
    @given(labelled(), st.lists(st.integers(1, 3), min_size=5, max_size=5))
    def test_clustered_auc(self, drawn: tuple[Predictions, np.ndarray], times: list[int]) -> None:
        slides, _ = drawn
        resamples = Resamples(slides, RESAMPLING)
        weights = np.array(times[: len(resamples.patients)], np.float64)
        expected = roc_auc_score(
            slides.labels, slides.scores, sample_weight=weights[resamples.patient_of]
        )
        assert clustered_auc(slides, resamples)(weights[None])[0] == pytest.approx(expected)

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
        resamples = Resamples(slides, RESAMPLING)
        weights = np.array(times[: len(resamples.patients)], np.float64)
        expected = average_precision_score(
            slides.labels, slides.scores, sample_weight=weights[resamples.patient_of]
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hnm.evidence.numbers.areas.CUTS_AT_ONCE", at_once)
            assert clustered_average_precision(slides, resamples)(weights[None])[
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
        numbers = tile_metrics(tiles, RESAMPLING)
        assert numbers["auc"].value == pytest.approx(roc_auc_score(tiles.labels, tiles.scores))
        precision = numbers["average_precision"]
        assert precision.value == pytest.approx(
            average_precision_score(tiles.labels, tiles.scores), abs=1e-12
        )
        patient_of = np.unique(tiles.patients, return_inverse=True)[1]
        expected = Resamples(tiles, RESAMPLING).number(
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


class TestGain:
    def test_is_paired(self) -> None:
        before = predictions([1, 1, 0, 0, 1, 0], [0.6, 0.4, 0.5, 0.3, 0.2, 0.1])
        number = auc_gain(before, before, RESAMPLING)
        assert number == Number(0.0, reason="all resamples agree")

    def test_value(self) -> None:
        before, after = (
            predictions([1, 1, 0, 0], [0.6, 0.2, 0.5, 0.3]),
            predictions([1, 1, 0, 0], [0.6, 0.4, 0.5, 0.3]),
        )
        assert auc_gain(before, after, RESAMPLING).value == pytest.approx(3 / 4 - 2 / 4)
