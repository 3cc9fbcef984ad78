"""The folds of a study: patients of train and validation, split in several ways; the test split
stays out.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from hnm.causes import keys_of
from hnm.errors import StudyError
from hnm.loop.rounds import Fold, Upstream
from hnm.seeds import seed_of
from hnm.store import Store
from hnm.tables import LABELS, SLIDES


def folds_of(upstream: Upstream, count: int, seed: int, store: Store) -> list[Fold]:
    """The folds that judge a trial; with `count` 0 the project's own split alone.

    Each patient of train and validation is in the validation part of one fold, and in the train
    part of the others.

    Raises:
        StudyError: a part of a fold would lack a class.
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
    key = keys_of("hnm.studies.folds")
    folds = []
    for number, (train, validation) in enumerate(
        split_patients(labels["label"].to_numpy(), patients.to_numpy(), count, seed)
    ):
        parts = {"train": labels.iloc[train], "validation": labels.iloc[validation]}
        for name, part in parts.items():
            if part["label"].nunique() < 2:
                raise StudyError(
                    f"fold {number + 1} of {count} has {name} slides of one class only; lower"
                    " tune.folds, or add slides of the rarer class"
                )
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


def split_patients(
    labels: np.ndarray, patients: np.ndarray, count: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of train and of validation in each of `count` folds, by patient and with classes as even
    as patients allow.
    """
    rarest = min(len(set(patients[labels == label])) for label in (0, 1))
    if rarest < count:
        raise StudyError(
            f"tune.folds={count}, but the rarer class of train and validation has {rarest}"
            " patients, and each fold needs one; lower it"
        )
    splitter = StratifiedGroupKFold(
        count, shuffle=True, random_state=seed_of(seed, "folds") % 2**32
    )
    return list(splitter.split(labels, labels, patients))
