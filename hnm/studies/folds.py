"""The folds of a study: patients of train and validation, split in several ways; the test split
stays out.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from hnm.causes import keys_of
from hnm.errors import StudyError
from hnm.loop.rounds import Fold, Upstream
from hnm.splits import folds_of as dealt_folds
from hnm.store import Store
from hnm.tables import LABELS, SLIDES


def folds_of(upstream: Upstream, count: int, seed: int, store: Store) -> list[Fold]:
    """The folds that judge a trial; with `count` 0 the project's own split alone.

    Each patient of train and validation is in the validation part of one fold, and in the train
    part of the others.

    Raises:
        StudyError: a fold would have no slides of one label.
    """
    if not count:
        return [upstream.split]
    slides = SLIDES.read(upstream.paths.cohort.slides)
    labels = pd.concat(
        [LABELS.read(upstream.paths.cohort.labels(split)) for split in ("train", "validation")]
    ).sort_values("slide_id", ignore_index=True)
    patients = labels["slide_id"].map(
        dict(zip(slides["slide_id"], slides["patient_id"], strict=True))
    )
    slide_patients = zip(patients, labels["label"], strict=True)
    fold_of = dealt_folds(slide_patients, count, seed, "folds", "tune.folds", StudyError)
    key = keys_of("hnm.studies.folds")
    folds = []
    for number in range(count):
        is_judged = patients.map(fold_of) == number
        parts = {"train": labels[~is_judged], "validation": labels[is_judged]}
        slide_ids = {name: part["slide_id"].tolist() for name, part in parts.items()}
        folder = store.folder(
            "trials/folds",
            key(parts=slide_ids, labels=labels["label"].tolist()),
            partial(_write_parts, parts),
            _read_parts,
        )
        folds.append(Fold(folder / "train.csv", folder / "validation.csv"))
    return folds


def _write_parts(parts: Mapping[str, pd.DataFrame], folder: Path) -> None:
    for name, part in parts.items():
        LABELS.write(part, folder / f"{name}.csv")


def _read_parts(folder: Path) -> None:
    for name in ("train", "validation"):
        LABELS.read(folder / f"{name}.csv")
