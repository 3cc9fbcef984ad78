"""Whether the winner of a study is better than what it is to replace, and how much of its lead is
luck.

Each is run again with fresh seeds. What is compared are AUCs of the same slides under the same
seeds, so that neither a hard slide nor a lucky seed counts for one side alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from hnm.evidence.numbers.metrics import (
    Draws,
    Floats,
    Number,
    Predictions,
    Resampling,
    clustered_auc,
)
from hnm.seeds import seed_of

SIMULATIONS = 10_000


@dataclass(frozen=True)
class Reruns:
    """One setting, run again: what each run says of the slides that judge it, `[seed][fold]`."""

    runs: Sequence[Sequence[Predictions]]

    @property
    def aucs(self) -> Floats:
        """`(seeds,)`: the mean over the folds."""
        return np.array([np.mean([_auc_of(fold) for fold in folds]) for folds in self.runs])


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
        if (
            self.gain.low is not None
            and self.gain.high is not None
            and (self.gain.low > 0 or self.gain.high < 0)
        ):
            return "better" if self.gain.low > 0 else "worse"
        return "not distinguishable"


def verdict(default: Reruns, other: Reruns, resampling: Resampling) -> Verdict:
    """`other` against `default`: the same seeds and slides in the same order.

    The interval is the percentile interval of a bootstrap that draws patients (within their class,
    in each fold) and seeds anew.
    """
    seeds, folds = len(default.runs), len(default.runs[0])
    draws = [
        Draws(
            default.runs[0][fold], replace(resampling, seed=seed_of(resampling.seed, "fold", fold))
        )
        for fold in range(folds)
    ]
    gains = np.zeros((resampling.resamples, seeds))
    for seed in range(seeds):
        for fold in range(folds):
            before, after = (
                clustered_auc(side.runs[seed][fold], draws[fold])(draws[fold].bootstrap)
                for side in (default, other)
            )
            gains[:, seed] += (after - before) / folds
    generator = np.random.default_rng(
        seed_of(resampling.seed, "seeds")
    )  # not the patients' draws: these must not know of each other
    weights = (
        generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resampling.resamples) / seeds
    )
    low, high = np.quantile(
        np.round((gains * weights).sum(axis=1), 12),
        [(1 - resampling.confidence) / 2, (1 + resampling.confidence) / 2],
    )
    return Verdict(
        float(other.aucs.mean()),
        Number(float(other.aucs.mean() - default.aucs.mean()), float(low), float(high)),
    )


def seed_noise(settings: Sequence[Reruns]) -> float:
    """Standard deviation of the AUC from seed to seed, pooled over settings."""
    deviations = np.concatenate([setting.aucs - setting.aucs.mean() for setting in settings])
    return float(np.sqrt((deviations**2).sum() / (len(deviations) - len(settings))))


def winners_bias(noise: float, trials: int, seed: int) -> float:
    """By how much the best of `trials` trials is expected to lead their mean where no param matters
    and each has `noise` alone; simulated.
    """
    draws = np.random.default_rng(seed).normal(scale=1.0, size=(SIMULATIONS, trials))
    return noise * float(draws.max(axis=1).mean())


def sentence(
    trial: int, found: Verdict, *, seeds: int, slides: int, lead: float, bias: float, trials: int
) -> str:
    """The verdict on a study's best trial, in words."""
    gain = found.gain
    than = {"better": "better than", "worse": "worse than"}.get(
        found.word, "not distinguishable from"
    )
    return (
        f"Trial {trial} is {than} the default: AUC {gain.value:+.4f} [{gain.low:+.4f},"
        f" {gain.high:+.4f}] over {seeds} fresh seeds and {slides} slides. In the study it led by"
        f" {lead:+.4f}; the best of {trials} trials would lead their mean by {bias:+.4f} if no"
        " param mattered."
    )


def _auc_of(slides: Predictions) -> float:
    positive, negative = slides.scores[slides.labels == 1], slides.scores[slides.labels == 0]
    beaten = (positive[:, None] > negative).sum() + (positive[:, None] == negative).sum() / 2
    return float(beaten / (len(positive) * len(negative)))


def judged(scores: pd.DataFrame, labels: pd.DataFrame, slides: pd.DataFrame) -> Predictions:
    """What `SLIDE_SCORES` say of the labelled slides that have scores, by the patients of
    `SLIDES`.
    """
    table = (
        labels.merge(scores, on="slide_id")
        .merge(slides[["slide_id", "patient_id"]], on="slide_id")
        .sort_values("slide_id")
    )
    return Predictions(
        table["label"].to_numpy(),
        table["score"].to_numpy(dtype=np.float64),
        table["patient_id"].to_numpy(dtype=str),
    )


@dataclass(frozen=True)
class Finalist:
    """A trial of a study, and its runs with fresh seeds."""

    trial: int
    value: float
    """In the study."""
    reruns: Reruns


def report_markdown(
    name: str, finalists: Sequence[Finalist], trials: int, resampling: Resampling
) -> str:
    """The report of a study.

    Args:
        name: of the study.
        finalists: the default first, then the others from the best on.
        trials: of how many trials the best was chosen.
        resampling: how intervals are made.
    """
    default, *others = finalists
    found = {other.trial: verdict(default.reruns, other.reruns, resampling) for other in others}
    seeds, slides = (
        len(default.reruns.runs),
        sum(len(fold.labels) for fold in default.reruns.runs[0]),
    )
    bias = winners_bias(
        seed_noise([finalist.reruns for finalist in finalists]), trials, resampling.seed
    )
    lines = [f"# Study {name}", ""]
    lines += [
        "| trial | value in the study | AUC, fresh seeds | against the default | verdict |",
        "|---|---|---|---|---|",
    ]
    lines.append(
        f"| {default.trial} (default) | {default.value:.4f} | {default.reruns.aucs.mean():.4f}"
        " | | |"
    )
    for other in others:
        own = found[other.trial]
        gain = f"{own.gain.value:+.4f} [{own.gain.low:+.4f}, {own.gain.high:+.4f}]"
        lines.append(f"| {other.trial} | {other.value:.4f} | {own.auc:.4f} | {gain} | {own.word} |")
    best = others[0]
    lines += [
        "",
        sentence(
            best.trial,
            found[best.trial],
            seeds=seeds,
            slides=slides,
            lead=best.value - default.value,
            bias=bias,
            trials=trials,
        ),
    ]
    lines += [
        "",
        (
            "These slides have chosen the trial: what it does on others only `evaluate` says, after"
            " `hnm tune apply` and `dvc repro`."
        ),
    ]
    return "\n".join(lines) + "\n"
