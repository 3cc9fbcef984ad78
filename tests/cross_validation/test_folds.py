from collections import Counter

from hnm.cross_validation.folds import split_of_fold


def test_each_patient_is_test_once_and_validation_once() -> None:
    for test_fold in range(4):
        assert Counter(split_of_fold(test_fold, fold, 4) for fold in range(4)) == {
            "test": 1,
            "validation": 1,
            "train": 2,
        }
    assert [split_of_fold(test_fold, 3, 4) for test_fold in range(4)] == [
        "validation",
        "train",
        "train",
        "test",
    ]
