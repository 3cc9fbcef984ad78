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
from hnm.evidence.evaluation import DIGITS, decisions_of, flat_numbers, predictions, rounded
from hnm.evidence.numbers.metrics import (
    Resampling,
    auc_gain,
    auc_number,
    choose_threshold,
    delong_p,
    log_loss,
)
from hnm.evidence.numbers.threshold import called
from hnm.files import whole
from hnm.params import Evaluate
from hnm.seeds import seed_of
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
    """One fold's test slides as its own validation would have them called.

    Args:
        held_out: slide_id, patient_id, split (validation, test), label, round, score.
        seed: of the fold's loop.
        fold: its number.

    Returns:
        seed, fold, slide_id, patient_id, label, `first_score` (round 0), round, threshold, score
        and called of the round that the fold's validation picks.
    """
    by_round = {int(str(number)): own for number, own in held_out.groupby("round")}
    numbers = sorted(by_round)
    validation = [
        predictions(by_round[number][by_round[number]["split"] == "validation"])
        for number in numbers
    ]
    best = best_row(
        [float(roc_auc_score(slides.labels, slides.scores)) for slides in validation],
        [float(log_loss(slides, np.ones((1, len(slides.labels))))[0]) for slides in validation],
    )
    chosen = numbers[best]
    threshold = choose_threshold(validation[best])
    first, test = (
        own[own["split"] == "test"].sort_values("slide_id", ignore_index=True)
        for own in (by_round[0], by_round[chosen])
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
    """Rows of `out_of_fold` as CSV; scores and thresholds come back as they were."""
    with whole(path) as temporary:
        write_csv(
            table.assign(threshold=table["threshold"].map(repr)), temporary, float_format="%.9g"
        )


def read_predictions(path: Path) -> pd.DataFrame:
    """Rows that `write_predictions` has written; scores are single precision, as they were."""
    return read_frame(
        path, OUT_OF_FOLD, str(path), refuse=EvidenceError, cure="; run hnm cv, which makes it anew"
    )


def pooled(table: pd.DataFrame, section: Evaluate) -> dict[str, Any]:
    """The numbers of all folds and seeds, from the rows of `out_of_fold`.

    `seeds`: for each seed the pooled AUC with its interval, its gain over round 0 (paired, with
    interval and DeLong's p), accuracy, sensitivity and specificity at the folds' own thresholds,
    with theirs. `folds`: AUC and gain of each fold and seed. `variance`: mean of these, standard
    deviation between folds (of the seeds' mean) and between seeds (within a fold, root mean square
    over the folds; null for one seed). Scores of different folds come from different heads, so that
    the pooled AUC also asks that these agree on a scale; the mean of the folds' AUCs does not.
    """
    resampling = Resampling(
        section.resamples,
        section.confidence,
        seed_of(section.seed, "bootstrap", "cross-validation"),
    )
    folds = [
        {
            **{name: int(own[name].iloc[0]) for name in ("seed", "fold", "round")},
            **_fold_numbers(own),
        }
        for _, own in table.groupby(["seed", "fold"])
    ]
    return {
        "slides": int(table["slide_id"].nunique()),
        "patients": int(table["patient_id"].nunique()),
        "confidence": section.confidence,
        "seeds": {str(seed): _seed_numbers(own, resampling) for seed, own in table.groupby("seed")},
        "folds": folds,
        "variance": {name: _components(folds, name) for name in ("auc", "gain")},
    }


def pooled_table(numbers: dict[str, Any]) -> Table:
    """A line for each seed, and the variance beneath."""
    auc, gain = numbers["variance"]["auc"], numbers["variance"]["gain"]
    spread = "\n".join(
        f"{name}: mean of folds {_text(own['mean'])}, SD between folds {_text(own['sd_folds'])},"
        f" between seeds {_text(own['sd_seeds'])}"
        for name, own in (("AUC", auc), ("gain", gain))
    )
    title = (
        f"Cross-validation, {numbers['slides']} slides of {numbers['patients']} patients, each test"
        " once"
    )
    table = Table(title=title, caption=spread, box=box.SIMPLE_HEAD, collapse_padding=True)
    for header in (
        "seed",
        "pooled AUC",
        "gain over\nround 0",
        "DeLong p",
        "acc.",
        "sens.",
        "spec.",
        "rounds\nchosen",
    ):
        table.add_column(
            header,
            justify="left" if header == "seed" else "right",
            no_wrap=header != "rounds\nchosen",
        )
    for seed, own in numbers["seeds"].items():
        rounds = ", ".join(
            str(fold["round"]) for fold in numbers["folds"] if str(fold["seed"]) == seed
        )
        shares = [_text(own[name]) for name in ("accuracy", "sensitivity", "specificity")]
        table.add_row(
            seed,
            _text(own["auc"]) + _span(own, "auc"),
            _text(own["gain"], "+.3f") + _span(own, "gain"),
            _text(own["delong_p"]),
            *shares,
            rounds,
        )
    return table


def _seed_numbers(own: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    before, after = predictions(own.assign(score=own["first_score"])), predictions(own)
    numbers = {
        "auc": auc_number(after, resampling),
        "gain": auc_gain(before, after, resampling),
        **decisions_of(own, resampling),
    }
    return {**flat_numbers(numbers), "delong_p": rounded(delong_p(before, after))}


def _fold_numbers(own: pd.DataFrame) -> dict[str, float]:
    first, last = (
        float(roc_auc_score(own["label"], own[column])) for column in ("first_score", "score")
    )
    return {"auc": round(last, DIGITS), "gain": round(last - first, DIGITS)}


def _components(folds: Sequence[dict[str, Any]], name: str) -> dict[str, float | None]:
    """Mean, and standard deviations between folds and between seeds of a fold."""
    values = pd.DataFrame(folds).pivot_table(index="seed", columns="fold", values=name).to_numpy()
    between_seeds = None if len(values) < 2 else rounded(np.sqrt(values.var(axis=0, ddof=1).mean()))
    return {
        "mean": rounded(values.mean()),
        "sd_folds": rounded(values.mean(axis=0).std(ddof=1)),
        "sd_seeds": between_seeds,
    }


def _text(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _span(own: dict[str, Any], name: str) -> str:
    low, high = own[f"{name}_low"], own[f"{name}_high"]
    return "" if low is None else f"\n{low:.2f} to {high:.2f}"
