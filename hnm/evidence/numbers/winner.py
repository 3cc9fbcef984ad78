"""Whether the winner of a study is better than what it is to replace, and how much of its lead is
luck.

Each is run again with fresh seeds. What is compared are AUCs of the same slides under the same
seeds, so that neither a hard slide nor a lucky seed counts for one side alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from hnm.evidence.numbers.areas import clustered_auc
from hnm.evidence.numbers.intervals import Number, Resamples, Resampling
from hnm.evidence.numbers.predictions import Floats, Predictions
from hnm.seeds import seed_of

SIMULATIONS = 10_000
THAN = {
    "better": "better than",
    "worse": "worse than",
    "not distinguishable": "not distinguishable from",
}


@dataclass(frozen=True)
class Reruns:
    """One setting, run again: the scores of the slides that judge each run, `[seed][fold]`."""

    runs: Sequence[Sequence[Predictions]]

    @property
    def aucs(self) -> Floats:
        """`(seeds,)`: the mean over the folds."""
        return np.array(
            [
                np.mean([roc_auc_score(fold.labels, fold.scores) for fold in run])
                for run in self.runs
            ]
        )


@dataclass(frozen=True)
class Finalist:
    """A trial of a study, and its runs with fresh seeds."""

    trial: int
    value: float
    """In the study."""
    reruns: Reruns


@dataclass(frozen=True)
class Verdict:
    """A setting against the default."""

    auc: float
    """Mean over seeds and folds."""
    gain: Number
    """AUC less the default's; its interval resamples patients and seeds, the same for both."""

    @property
    def word(self) -> str:
        """`better`, `worse` or `not distinguishable`."""
        if self.gain.low is not None and self.gain.low > 0:
            return "better"
        if self.gain.high is not None and self.gain.high < 0:
            return "worse"
        return "not distinguishable"


def verdict(default: Reruns, other: Reruns, resampling: Resampling) -> Verdict:
    """Compares `other` with `default`: the same seeds and slides in the same order.

    The interval is the percentile interval of a bootstrap that draws patients (within their class,
    in each fold) and seeds anew.
    """
    seeds = len(default.runs)
    folds = len(default.runs[0])
    gains = np.zeros((resampling.count, seeds))
    for fold in range(folds):
        of_fold = replace(resampling, seed=seed_of(resampling.seed, "fold", fold))
        resamples = Resamples(default.runs[0][fold], of_fold)
        for seed in range(seeds):
            before, after = (
                clustered_auc(setting.runs[seed][fold], resamples)(resamples.bootstrap)
                for setting in (default, other)
            )
            gains[:, seed] += (after - before) / folds
    # the draws of seeds must be independent of the draws of patients
    generator = np.random.default_rng(seed_of(resampling.seed, "seeds"))
    weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resampling.count) / seeds
    low, high = np.quantile(
        np.round((gains * weights).sum(axis=1), 12),
        [(1 - resampling.confidence) / 2, (1 + resampling.confidence) / 2],
    )
    auc = float(other.aucs.mean())
    return Verdict(auc, Number(float(auc - default.aucs.mean()), float(low), float(high)))


def seed_noise(settings: Sequence[Reruns]) -> float:
    """Returns the standard deviation of the AUC from seed to seed, pooled over settings."""
    deviations = np.concatenate([setting.aucs - setting.aucs.mean() for setting in settings])
    return float(np.sqrt((deviations**2).sum() / (len(deviations) - len(settings))))


def winners_bias(noise: float, trials: int, seed: int) -> float:
    """Returns by how much the best of `trials` trials is expected to lead their mean where no param
    matters and each has `noise` alone; simulated.
    """
    lucks = np.random.default_rng(seed).normal(scale=1.0, size=(SIMULATIONS, trials))
    return noise * float(lucks.max(axis=1).mean())


def sentence(
    best: Finalist, default: Finalist, winner: Verdict, *, bias: float, trials: int
) -> str:
    """Returns the verdict on a study's best trial, in words."""
    runs = best.reruns.runs
    slides = sum(len(fold.labels) for fold in runs[0])
    return (
        f"Trial {best.trial} is {THAN[winner.word]} the default: AUC"
        f" {winner.gain.with_interval('+.4f')} over {len(runs)} fresh seeds and {slides} slides. In"
        f" the study it led by {best.value - default.value:+.4f}; the best of {trials} trials would"
        f" lead their mean by {bias:+.4f} if no param mattered."
    )


def judged(scores: pd.DataFrame, labels: pd.DataFrame, slides: pd.DataFrame) -> Predictions:
    """Returns the `SLIDE_SCORES` of the labelled slides that have scores, with the patients of
    `SLIDES`.
    """
    table = labels.merge(scores, on="slide_id").merge(
        slides[["slide_id", "patient_id"]], on="slide_id"
    )
    return Predictions.of(table.sort_values("slide_id"))


def report_markdown(
    name: str, finalists: Sequence[Finalist], trials: int, resampling: Resampling
) -> str:
    """Returns the report of a study.

    Args:
        name: of the study.
        finalists: the default first, then the others from the best on.
        trials: of how many trials the best was chosen.
        resampling: how intervals are made.
    """
    default, *others = finalists
    verdicts = [verdict(default.reruns, other.reruns, resampling) for other in others]
    noise = seed_noise([finalist.reruns for finalist in finalists])
    bias = winners_bias(noise, trials, resampling.seed)
    auc = default.reruns.aucs.mean()
    rows = [
        f"| {other.trial} | {other.value:.4f} | {against.auc:.4f} |"
        f" {against.gain.with_interval('+.4f')} | {against.word} |"
        for other, against in zip(others, verdicts, strict=True)
    ]
    lines = [
        f"# Study {name}",
        "",
        "| trial | value in the study | AUC, fresh seeds | against the default | verdict |",
        "|---|---|---|---|---|",
        f"| {default.trial} (default) | {default.value:.4f} | {auc:.4f} | | |",
        *rows,
        "",
        sentence(others[0], default, verdicts[0], bias=bias, trials=trials),
        "",
        "These slides have chosen the trial: what it does on others only `evaluate` says, after"
        " `hnm tune apply` and `dvc repro`.",
    ]
    return "\n".join(lines) + "\n"
