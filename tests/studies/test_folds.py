"""Folds: by patient, with both classes, and never a test slide."""

from pathlib import Path

import pytest

from hnm.errors import StudyError
from hnm.loop.rounds import Upstream
from hnm.store import Store
from hnm.studies.folds import folds_of
from hnm.tables import LABELS
from tests.support.study import make_upstream


def test_folds_hold_train_and_validation_slides_and_are_kept(tmp_path: Path) -> None:
    make_upstream(tmp_path / "data")
    upstream, store = Upstream(tmp_path), Store(tmp_path / "store")
    assert folds_of(upstream, 0, 0, store) == [upstream.split]
    folds = folds_of(upstream, 3, 0, store)
    every = {f"{split}_{number}" for split in ("train", "validation") for number in range(6)}
    judged = [LABELS.read(fold.validation)["slide_id"].tolist() for fold in folds]
    assert sorted(slide_id for part in judged for slide_id in part) == sorted(every)
    for fold, part in zip(folds, judged, strict=True):
        assert set(LABELS.read(fold.train)["slide_id"]) == every - set(part)
    assert all(LABELS.read(fold.validation)["label"].tolist().count(1) == 2 for fold in folds)
    assert folds == folds_of(upstream, 3, 0, store) != folds_of(upstream, 3, 1, store)
    with pytest.raises(
        StudyError,
        match=(
            r"6 patients with positive slides cannot be dealt into tune\.folds=7 folds, each of"
            r" which needs one; lower it or add patients"
        ),
    ):
        folds_of(upstream, 7, 0, store)
