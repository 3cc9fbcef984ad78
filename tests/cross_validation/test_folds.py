from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.cross_validation.folds import folds_of, split_of_fold
from hnm.errors import CohortError

PATIENTS = {f"p{number}": number < 4 for number in range(11)}


@given(st.integers(3, 5), st.integers(5, 20), st.integers(5, 20), st.integers(0, 99))
def test_folds_are_even_in_patients_and_in_each_class(
    folds: int, positives: int, negatives: int, seed: int
) -> None:
    patients = {f"p{number}": number < positives for number in range(positives + negatives)}
    dealt = folds_of(patients, folds, seed)
    assert dealt.keys() == patients.keys()
    for members in (
        patients,
        [p for p in patients if patients[p]],
        [p for p in patients if not patients[p]],
    ):
        counts = Counter(dealt[patient] for patient in members)
        assert set(counts) == set(range(folds)) and max(counts.values()) - min(counts.values()) <= 1


def test_neither_order_nor_python_decides() -> None:
    assert folds_of(PATIENTS, 3, 0) == folds_of(dict(reversed(PATIENTS.items())), 3, 0)
    assert folds_of(PATIENTS, 3, 0) != folds_of(PATIENTS, 3, 1)


def test_each_patient_is_test_once_and_validation_once() -> None:
    for own in range(4):
        assert Counter(split_of_fold(own, fold, 4) for fold in range(4)) == {
            "test": 1,
            "validation": 1,
            "train": 2,
        }
    assert [split_of_fold(own, 3, 4) for own in range(4)] == [
        "validation",
        "train",
        "train",
        "test",
    ]


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(
        CohortError,
        match=(
            r"4 positive patients cannot be dealt into split\.folds=5 folds.*lower it or add"
            r" patients"
        ),
    ):
        folds_of(PATIENTS, 5, 0)
