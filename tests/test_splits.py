"""Patients dealt into parts: a share of them, and folds."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.errors import CohortError, StudyError
from hnm.seeds import seed_of
from hnm.splits import dealing_order, folds_of, size_of_share

SLIDES = [(f"p{number}", int(number < 4)) for number in range(11)]


def folds(slides: list[tuple[str, int]], count: int, seed: int) -> dict[str, int]:
    return folds_of(slides, count, seed, "fold", "split.folds", CohortError)


def test_the_order_is_that_of_the_seeded_hash() -> None:
    hashes = {name: seed_of(3, "split", name) for name in ("a", "b", "c", "d")}
    assert dealing_order(["d", "b", "a", "c", "b"], 3, "split") == sorted(hashes, key=hashes.get)  # type: ignore[arg-type]
    assert dealing_order("abcdefgh", 0, "split") != dealing_order("abcdefgh", 1, "split")
    assert dealing_order("abcdefgh", 0, "split") != dealing_order("abcdefgh", 0, "fold")


@pytest.mark.parametrize(
    ("share", "count", "size"), [(0.2, 10, 2), (0.2, 7, 1), (0.5, 5, 3), (0.5, 7, 4), (0.01, 3, 1)]
)
def test_a_share_is_rounded_half_up_and_is_one_at_least(
    share: float, count: int, size: int
) -> None:
    assert size_of_share(share, count) == size


@given(st.integers(3, 5), st.integers(5, 20), st.integers(5, 20), st.integers(0, 99))
def test_folds_are_even_in_patients_and_in_each_class(
    count: int, positives: int, negatives: int, seed: int
) -> None:
    slides = [(f"p{number}", int(number < positives)) for number in range(positives + negatives)]
    fold_of = folds(slides, count, seed)
    assert fold_of.keys() == {patient for patient, _ in slides}
    for labels in ((0, 1), (1,), (0,)):
        counts = Counter(fold_of[patient] for patient, label in slides if label in labels)
        assert set(counts) == set(range(count)) and max(counts.values()) - min(counts.values()) <= 1


def test_folds_by_hand() -> None:
    """The negatives, in their order, go on where the positives, in theirs, ended."""
    order = [
        *dealing_order(["p0", "p1", "p2", "p3"], 5, "fold"),
        *dealing_order([f"p{number}" for number in range(4, 11)], 5, "fold"),
    ]
    assert folds(SLIDES, 3, 5) == {patient: place % 3 for place, patient in enumerate(order)}


def test_a_patient_with_slides_of_both_labels_is_positive() -> None:
    mixed = [*SLIDES, ("p0", 0), ("p5", 1), ("p5", 0)]
    as_positive = [(patient, int(label or patient == "p5")) for patient, label in SLIDES]
    assert folds(mixed, 3, 0) == folds(as_positive, 3, 0)
    paired = [(f"p{number}", label) for number in range(4) for label in (0, 1)]
    assert sorted(folds(paired, 4, 0).values()) == [0, 1, 2, 3]


def test_the_order_of_rows_does_not_decide() -> None:
    assert folds(SLIDES, 3, 0) == folds(SLIDES[::-1], 3, 0)
    assert folds(SLIDES, 3, 0) != folds(SLIDES, 3, 1)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(
        StudyError,
        match=(
            r"^4 patients with positive slides cannot be dealt into tune\.folds=5 folds, each of"
            r" which needs one; lower it or add patients$"
        ),
    ):
        folds_of(SLIDES, 5, 0, "folds", "tune.folds", StudyError)


def test_a_fold_without_negative_slides_is_refused() -> None:
    """Of three patients with negative slides two are positive too, and may share a fold."""
    slides = [("a", 1), ("a", 0), ("b", 1), ("b", 0), ("c", 1), ("d", 1), ("e", 0)]
    refused = 0
    for seed in range(20):
        try:
            fold_of = folds(slides, 3, seed)
        except CohortError as error:
            assert "3 patients with negative slides cannot be dealt into split.folds=3" in str(
                error
            )
            refused += 1
        else:
            assert {fold_of[patient] for patient in "abe"} == {0, 1, 2}
    assert 0 < refused < 20
