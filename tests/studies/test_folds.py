"""Folds: by patient, with both classes, and never a test slide."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.errors import StudyError
from hnm.loop.rounds import Upstream
from hnm.store import Store
from hnm.studies.folds import folds_of, split_patients
from hnm.tables import LABELS
from tests.support.study import make_upstream


@given(st.lists(st.integers(0, 1), min_size=12, max_size=30), st.integers(2, 3), st.integers(0, 5))
def test_every_patient_is_judged_once_and_trained_on_elsewhere(
    labels: list[int], count: int, seed: int
) -> None:
    patients = np.array([f"p{number // 2}" for number in range(len(labels))])
    try:
        folds = split_patients(np.array(labels), patients, count, seed)
    except StudyError:
        return
    judged = [set(patients[validation]) for _, validation in folds]
    assert sum(map(len, judged)) == len(set(patients)) == len(set().union(*judged))
    assert all(
        set(patients[train]) == set(patients) - own
        for (train, _), own in zip(folds, judged, strict=True)
    )


def test_folds_hold_train_and_validation_slides_and_are_kept(tmp_path: Path) -> None:
    make_upstream(tmp_path / "data")
    upstream, store = Upstream(tmp_path), Store(tmp_path / "store")
    assert folds_of(upstream, 0, 0, store) == [upstream.split]
    folds = folds_of(upstream, 3, 0, store)
    judged = [LABELS.read(fold.validation)["slide_id"].tolist() for fold in folds]
    assert sorted(slide_id for own in judged for slide_id in own) == sorted(
        f"{split}_{number}" for split in ("train", "validation") for number in range(6)
    )
    assert all(LABELS.read(fold.validation)["label"].tolist().count(1) == 2 for fold in folds)
    assert folds == folds_of(upstream, 3, 0, store) != folds_of(upstream, 3, 1, store)
    with pytest.raises(
        StudyError,
        match=(
            r"tune\.folds=7, but the rarer class of train and validation has 6 patients, and each"
            r" fold needs one; lower it"
        ),
    ):
        folds_of(upstream, 7, 0, store)
