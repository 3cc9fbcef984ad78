"""Folds for cross-validation: k ways to split one cohort by patient, so that each slide is test
once.
"""

from collections.abc import Mapping

from hnm.errors import CohortError
from hnm.seeds import seed_of


def folds_of(patients: Mapping[str, bool], folds: int, seed: int) -> dict[str, int]:
    """Patient -> the fold in which it is test, from whether it has a positive slide.

    Within each class the patients are ordered by a seeded hash of their id and dealt out one by
    one; the negatives go on where the positives ended, so that folds differ by one patient at most,
    and by one of each class.

    Raises:
        CohortError: a class has fewer patients than there are folds.
    """
    dealt: dict[str, int] = {}
    for is_positive, kind in ((True, "positive"), (False, "negative")):
        own = sorted(
            (patient for patient, positive in patients.items() if positive == is_positive),
            key=lambda patient: (seed_of(seed, "fold", patient), patient),
        )
        if len(own) < folds:
            raise CohortError(
                f"{len(own)} {kind} patients cannot be dealt into split.folds={folds} folds, each"
                " of which needs one; lower it or add patients"
            )
        first = len(dealt)
        dealt |= {patient: (first + place) % folds for place, patient in enumerate(own)}
    return dealt


def split_of_fold(own: int, fold: int, folds: int) -> str:
    """The split, in fold `fold`, of what is test in fold `own`: validation is the next fold, train
    the rest.
    """
    return {0: "test", 1: "validation"}.get((own - fold) % folds, "train")
