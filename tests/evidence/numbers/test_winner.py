"""The verdict: paired by slide and seed, and what luck alone would do."""

import numpy as np
import pytest
from scipy.stats import norm

from hnm.evidence.numbers.intervals import Resampling
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.winner import (
    Finalist,
    Reruns,
    report_markdown,
    seed_noise,
    sentence,
    verdict,
    winners_bias,
)

LABELS = np.array([1, 1, 1, 0, 0, 0, 0])
PATIENTS = np.array([f"p{number}" for number in range(7)])
RESAMPLING = Resampling(500, 0.95, 0)


def slides(scores: list[float]) -> Predictions:
    return Predictions(LABELS, np.array(scores), PATIENTS)


GOOD = [0.9, 0.8, 0.7, 0.3, 0.2, 0.2, 0.1]
HALF = [0.9, 0.25, 0.1, 0.3, 0.2, 0.2, 0.1]
"""Wins 4, 3 and 0.5 of 4: AUC 7.5 / 12."""


def test_an_auc_is_the_mean_over_folds_and_gains_are_means_over_seeds() -> None:
    default = Reruns([[slides(HALF), slides(GOOD)], [slides(HALF), slides(HALF)]])
    assert default.aucs == pytest.approx([(7.5 / 12 + 1) / 2, 7.5 / 12])
    against = verdict(default, Reruns([[slides(GOOD)] * 2] * 2), RESAMPLING)
    assert against.auc == 1.0 and against.gain.value == pytest.approx(
        1 - ((7.5 / 12 + 1) / 2 + 7.5 / 12) / 2
    )


def test_a_setting_against_itself_is_not_distinguishable() -> None:
    setting = Reruns([[slides(HALF)], [slides(GOOD)]])
    against = verdict(setting, setting, RESAMPLING)
    assert (against.gain.value, against.gain.low, against.gain.high, against.word) == (
        0.0,
        0.0,
        0.0,
        "not distinguishable",
    )


def test_the_interval_is_that_of_plain_loops() -> None:
    """Slides and seeds drawn one by one; the same draws for both sides."""
    generator = np.random.default_rng(1)
    sides = [Reruns([[slides(list(generator.random(7)))] for _ in range(4)]) for _ in range(2)]
    against = verdict(*sides, Resampling(4000, 0.9, 3))

    def auc(scores: np.ndarray, rows: np.ndarray) -> float:
        positive, negative = scores[rows[:3]], scores[rows[3:]]
        return float(np.mean([(p > n) + (p == n) / 2 for p in positive for n in negative]))

    gains = []
    for _ in range(1500):
        rows = np.concatenate([generator.integers(0, 3, 3), generator.integers(3, 7, 4)])
        drawn = generator.integers(0, 4, 4)
        gains.append(
            np.mean(
                [
                    auc(sides[1].runs[seed][0].scores, rows)
                    - auc(sides[0].runs[seed][0].scores, rows)
                    for seed in drawn
                ]
            )
        )
    assert (against.gain.low, against.gain.high) == pytest.approx(
        tuple(np.quantile(gains, [0.05, 0.95])), abs=0.045
    )


@pytest.mark.parametrize(("swap", "word"), [(False, "better"), (True, "worse")])
def test_what_wins_on_every_slide_and_seed_is_better(swap: bool, word: str) -> None:
    sides = [Reruns([[slides([1 - score for score in GOOD])]] * 5), Reruns([[slides(GOOD)]] * 5)]
    assert verdict(*(sides[::-1] if swap else sides), RESAMPLING).word == word


def test_noise_is_pooled_within_settings() -> None:
    class Known(Reruns):
        @property
        def aucs(self) -> np.ndarray:
            return np.array(self.runs)

    assert seed_noise([Known([0.5, 0.7, 0.9]), Known([0.2, 0.4])]) == pytest.approx(
        np.sqrt((0.04 + 0.04 + 0.01 + 0.01) / 3)
    )  # type: ignore[list-item]


def test_the_winner_s_bias_is_the_expected_maximum() -> None:
    """Of n standard normal draws: the integral of x times the density of the largest."""
    grid = np.linspace(-8, 8, 4001)
    for trials in (2, 10, 50):
        expected = np.trapezoid(
            grid * trials * norm.pdf(grid) * norm.cdf(grid) ** (trials - 1), grid
        )
        assert winners_bias(0.03, trials, 0) == pytest.approx(0.03 * expected, rel=0.03)
    assert winners_bias(0.03, 1, 0) == pytest.approx(0, abs=1e-3)


def test_the_sentence_says_all() -> None:
    default = Finalist(0, 0.7, Reruns([[slides(GOOD), slides(GOOD)]] * 5))
    best = Finalist(7, 0.755, Reruns([[slides(GOOD), slides(GOOD)]] * 5))
    against = verdict(default.reruns, best.reruns, RESAMPLING)
    assert sentence(best, default, against, bias=0.031, trials=50) == (
        "Trial 7 is not distinguishable from the default: AUC +0.0000 (+0.0000 to +0.0000) over 5"
        " fresh seeds and 14 slides. In the study it led by +0.0550; the best of 50 trials would"
        " lead their mean by +0.0310 if no param mattered."
    )


def test_the_report_has_a_row_for_each_finalist() -> None:
    bad = [1 - score for score in GOOD]
    finalists = [
        Finalist(0, 0.7, Reruns([[slides(HALF)]] * 5)),
        Finalist(7, 0.8, Reruns([[slides(GOOD)]] * 5)),
        Finalist(3, 0.75, Reruns([[slides(bad)]] * 5)),
    ]
    lines = report_markdown("blur", finalists, 20, RESAMPLING).splitlines()
    assert lines[0] == "# Study blur"
    assert lines[4] == "| 0 (default) | 0.7000 | 0.6250 | | |"
    assert lines[5].startswith("| 7 | 0.8000 | 1.0000 | +0.3750 (+")
    assert lines[6].startswith("| 3 | 0.7500 | 0.0000 | -0.6250 (-")
    assert lines[6].endswith(") | worse |")
    assert lines[8].startswith("Trial 7 is ")
