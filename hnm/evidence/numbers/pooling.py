"""Cross-validation's out-of-fold predictions put together: what all slides say, and how far folds
and seeds differ.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from sklearn.metrics import roc_auc_score

from hnm.errors import EvidenceError
from hnm.evidence.numbers.areas import auc_gain, auc_number
from hnm.evidence.numbers.delong import delong_p
from hnm.evidence.numbers.intervals import Number, Resampling, flat_numbers, rounded
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.slide_metrics import choose_threshold, decisions_of, log_loss
from hnm.evidence.numbers.threshold import called
from hnm.files import whole
from hnm.params import Evaluate
from hnm.selection import best_row
from hnm.tables import read_frame, write_csv

OUT_OF_FOLD = {
    "seed": "int64",
    "fold": "int64",
    "slide_id": "str",
    "patient_id": "str",
    "label": "int64",
    "first_score": "float32",
    "round": "int64",
    "threshold": "float64",
    "score": "float32",
    "called": "int64",
}
"""Columns of the out-of-fold predictions, and their dtypes."""


def out_of_fold(held_out: pd.DataFrame, *, seed: int, fold: int) -> pd.DataFrame:
    """Returns one fold's test slides, called as the fold's validation decides.

    Args:
        held_out: slide_id, patient_id, split (validation, test), label, round, score.
        seed: of the fold's loop.
        fold: its number.

    Returns:
        seed, fold, slide_id, patient_id, label, `first_score` (round 0), round, threshold, score
        and called of the round that the fold's validation picks.
    """
    numbers = sorted(int(number) for number in held_out["round"].unique())
    rounds = [held_out[held_out["round"] == number] for number in numbers]
    validation = [Predictions.of(slides[slides["split"] == "validation"]) for slides in rounds]
    best = best_row(
        [float(roc_auc_score(slides.labels, slides.scores)) for slides in validation],
        [float(log_loss(slides, np.ones((1, len(slides.labels))))[0]) for slides in validation],
    )
    threshold = choose_threshold(validation[best])
    first, test = (
        slides[slides["split"] == "test"].sort_values("slide_id", ignore_index=True)
        for slides in (rounds[0], rounds[best])
    )
    table = test.assign(
        seed=seed,
        fold=fold,
        first_score=first["score"],
        threshold=threshold,
        called=called(test["score"], threshold).astype(int),
    )
    return table[list(OUT_OF_FOLD)]


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Writes rows of `out_of_fold` as CSV; scores and thresholds come back as they were."""
    with whole(path) as temporary:
        write_csv(
            table.assign(threshold=table["threshold"].map(repr)), temporary, float_format="%.9g"
        )


def read_predictions(path: Path) -> pd.DataFrame:
    """Reads what `write_predictions` has written; scores are single precision, as they were."""
    return read_frame(
        path, OUT_OF_FOLD, str(path), refuse=EvidenceError, cure="; run hnm cv, which makes it anew"
    )


def pooled(table: pd.DataFrame, section: Evaluate) -> dict[str, Any]:
    """Returns the numbers of all folds and seeds, from the rows of `out_of_fold`.

    `seeds`: for each seed the pooled AUC with its interval, its gain over round 0 (paired, with
    interval and DeLong's p), accuracy, sensitivity and specificity at the folds' own thresholds,
    with theirs. `folds`: AUC and gain of each fold and seed. `variance`: mean of these, standard
    deviation between folds (of the seeds' mean) and between seeds (within a fold, root mean square
    over the folds; null for one seed). Scores of different folds come from different heads, so that
    the pooled AUC also asks that these agree on a scale; the mean of the folds' AUCs does not.
    """
    resampling = Resampling.of(section, "cross-validation")
    folds = [_fold_numbers(slides) for _, slides in table.groupby(["seed", "fold"])]
    return {
        "slides": int(table["slide_id"].nunique()),
        "patients": int(table["patient_id"].nunique()),
        "confidence": section.confidence,
        "seeds": {
            str(seed): _seed_numbers(slides, resampling) for seed, slides in table.groupby("seed")
        },
        "folds": folds,
        "variance": {name: _components(folds, name) for name in ("auc", "gain")},
    }


def pooled_table(numbers: dict[str, Any]) -> Table:
    """Returns a line for each seed, and the variance beneath."""
    table = Table(
        title=(
            f"Cross-validation, {numbers['slides']} slides of {numbers['patients']} patients, each"
            " test once"
        ),
        caption="\n".join(
            _spread(title, numbers["variance"][name])
            for title, name in (("AUC", "auc"), ("gain", "gain"))
        ),
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("seed", justify="left", no_wrap=True)
    for header in (
        "pooled AUC",
        "gain over\nround 0",
        "DeLong p",
        "acc.",
        "sens.",
        "spec.",
        "rounds\nchosen",
    ):
        table.add_column(header, justify="right", no_wrap=header != "rounds\nchosen")
    for seed, of_seed in numbers["seeds"].items():
        rounds = [str(fold["round"]) for fold in numbers["folds"] if str(fold["seed"]) == seed]
        table.add_row(
            seed,
            Number.from_json(of_seed, "auc").above_interval(),
            Number.from_json(of_seed, "gain").above_interval("+.3f"),
            *(
                Number(of_seed[name]).text()
                for name in ("delong_p", "accuracy", "sensitivity", "specificity")
            ),
            ", ".join(rounds),
        )
    return table


def _spread(title: str, variance: dict[str, float | None]) -> str:
    mean, of_folds, of_seeds = (
        Number(variance[name]).text() for name in ("mean", "sd_folds", "sd_seeds")
    )
    return f"{title}: mean of folds {mean}, SD between folds {of_folds}, between seeds {of_seeds}"


def _seed_numbers(slides: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    before = Predictions.of(slides.assign(score=slides["first_score"]))
    after = Predictions.of(slides)
    numbers = {
        "auc": auc_number(after, resampling),
        "gain": auc_gain(before, after, resampling),
        **decisions_of(slides, resampling),
    }
    return {**flat_numbers(numbers), "delong_p": rounded(delong_p(before, after))}


def _fold_numbers(slides: pd.DataFrame) -> dict[str, Any]:
    first, last = (
        float(roc_auc_score(slides["label"], slides[column])) for column in ("first_score", "score")
    )
    return {
        **{name: int(slides[name].iloc[0]) for name in ("seed", "fold", "round")},
        "auc": rounded(last),
        "gain": rounded(last - first),
    }


def _components(folds: Sequence[dict[str, Any]], name: str) -> dict[str, float | None]:
    """Returns the mean, and standard deviations between folds and between seeds of a fold."""
    values = pd.DataFrame(folds).pivot_table(index="seed", columns="fold", values=name).to_numpy()
    between_seeds = None if len(values) < 2 else np.sqrt(values.var(axis=0, ddof=1).mean())
    return {
        "mean": rounded(values.mean()),
        "sd_folds": rounded(values.mean(axis=0).std(ddof=1)),
        "sd_seeds": rounded(between_seeds),
    }
