"""The loop on folds of a tiny cohort."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from tiny_study import make_upstream, tiny_params

from hnm.errors import StudyError
from hnm.evidence.pooling import out_of_fold
from hnm.experiments.cross_validation import FoldScores, cross_validate
from hnm.experiments.trial import Upstream
from hnm.params import Params
from hnm.store import Store
from hnm.tables import LABELS, SLIDES


def params_with(folds: int) -> Params:
    return tiny_params(split={"folds": folds})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "data"
    make_upstream(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def results(data: Path, store: Store) -> list[FoldScores]:
    return list(cross_validate(data, params_with(3), store, 1, lambda line: None))


def test_each_slide_is_test_once_with_its_label_and_patient(data: Path, results: list[FoldScores]) -> None:
    table = pd.concat([out_of_fold(result.slides, seed=result.seed, fold=result.fold) for result in results])
    labels = pd.concat([LABELS.read(data / "cohort" / "labels" / f"{split}.csv") for split in ("train", "validation", "test")])
    assert dict(zip(table["slide_id"], table["label"], strict=True)) == dict(zip(labels["slide_id"], labels["label"], strict=True))
    assert len(table) == len(labels) == SLIDES.read(Upstream(data).slides)["patient_id"].nunique()
    assert table["score"].between(0, 1).all() and set(table["fold"]) == {0, 1, 2}


def test_no_slide_is_scored_by_a_head_that_it_trained(results: list[FoldScores]) -> None:
    """Of a fold only validation and test slides are held out, and validation is the next fold's test."""
    by_split = [{split: set(own["slide_id"]) for split, own in result.slides.groupby("split")} for result in results]
    for fold, own in enumerate(by_split):
        assert own["validation"] == by_split[(fold + 1) % 3]["test"] and not own["validation"] & own["test"]
    assert Counter(result.slides["round"].nunique() for result in results) == {2: 3}


def test_round_0_is_embedded_once_for_all_folds(data: Path, store: Store, results: list[FoldScores]) -> None:
    embedded = len(list((store.root / "features").glob("*/*.h5")))
    slides = len(SLIDES.read(Upstream(data).slides))
    assert embedded == slides * (1 + 3)  # round 0 together, round 1 by each fold


def test_the_same_folds_again_come_from_the_store(data: Path, store: Store, results: list[FoldScores]) -> None:
    before = sorted(path.as_posix() for path in store.root.rglob("*"))
    said: list[str] = []
    again = list(cross_validate(data, params_with(3), store, 1, said.append))
    assert [result.slides.to_dict() for result in again] == [result.slides.to_dict() for result in results]
    assert sorted(path.as_posix() for path in store.root.rglob("*")) == before
    assert [line.partition(":")[0] for line in said] == ["seed 0, fold 0", "seed 0, fold 1", "seed 0, fold 2"]


def test_no_folds_no_cross_validation(data: Path, store: Store) -> None:
    with pytest.raises(StudyError, match=r"split\.folds=0 asks for no cross-validation; set it to 3 or more"):
        next(cross_validate(data, params_with(0), store, 1, print))
