"""The splits of a fold of cross-validation: each slide is test in one fold."""


def split_of_fold(test_fold: int, fold: int, folds: int) -> str:
    """Returns the split, in fold `fold`, of what is test in fold `test_fold`.

    Validation is the next fold, and train the rest.
    """
    return {0: "test", 1: "validation"}.get((test_fold - fold) % folds, "train")
