"""Labels and splits of a cohort."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hnm.errors import CohortError
from hnm.params import Split
from hnm.slides.cohort.labels import check_classes, labels_of, splits_of
from hnm.slides.cohort.manifest import ManifestRow


def row(
    slide_id: str, label: int | str, patient_id: str | None = None, split: str | None = None
) -> ManifestRow:
    return ManifestRow(slide_id, f"{slide_id}.svs", str(label), patient_id or slide_id, split)


def drawn(rows: list[ManifestRow], split: Split) -> dict[str, str]:
    return splits_of(rows, labels_of(rows, (), Path("m.csv")), split)


def test_the_manifests_splits_are_kept() -> None:
    rows = [row("a", 1, split="test"), row("b", 0, split="train")]
    assert drawn(rows, Split()) == {"a": "test", "b": "train"}


def test_shares_of_a_split_by_hand() -> None:
    """10 positive and 7 negative patients at 0.2 and 0.3: 2 and 1 (rounded from 1.4) test, 3 and 2
    validation.
    """
    rows = [row(f"p{i}", 1) for i in range(10)] + [row(f"n{i}", 0) for i in range(7)]
    splits = drawn(rows, Split(test_share=0.2, validation_share=0.3))
    assert Counter((splits[e.slide_id], int(e.label)) for e in rows) == {
        ("test", 1): 2,
        ("test", 0): 1,
        ("validation", 1): 3,
        ("validation", 0): 2,
        ("train", 1): 5,
        ("train", 0): 4,
    }


patients = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1)), min_size=30, max_size=90)


@settings(max_examples=60, deadline=None)
@given(patients, st.integers(0, 1000), st.randoms())
def test_a_split_is_by_patient_and_not_by_row(
    slides: list[tuple[int, int]], seed: int, random: Random
) -> None:
    rows = [row(f"s{i}", label, f"p{patient}") for i, (patient, label) in enumerate(slides)]
    positive = {patient for patient, label in slides if label}
    assume(3 <= len(positive) <= len({patient for patient, _ in slides}) - 3)
    splits = drawn(rows, Split(seed=seed))
    by_patient = {e.patient_id: splits[e.slide_id] for e in rows}
    assert all(by_patient[e.patient_id] == splits[e.slide_id] for e in rows)
    check_classes(labels_of(rows, (), Path("m.csv")), splits, "x")
    assert drawn(random.sample(rows, len(rows)), Split(seed=seed)) == splits


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(0, 1000), st.integers(0, 1))
def test_one_patient_more_moves_few_others(
    positives: int, negatives: int, seed: int, label: int
) -> None:
    rows = [row(f"p{i}", 1) for i in range(positives)] + [row(f"n{i}", 0) for i in range(negatives)]
    before = drawn(rows, Split(seed=seed))
    after = drawn([*rows, row("new", label)], Split(seed=seed))
    moves = Counter(
        (before[slide_id], after[slide_id])
        for slide_id in before
        if before[slide_id] != after[slide_id]
    )
    for border in ({"train", "test"}, {"train", "validation"}):
        assert sum(count for move, count in moves.items() if set(move) == border) <= 1
    assert all("train" in move for move in moves)


def test_another_seed_is_another_split() -> None:
    rows = [row(f"s{i}", i % 2) for i in range(60)]
    assert drawn(rows, Split(seed=0)) != drawn(rows, Split(seed=1))


def test_too_few_patients_to_split() -> None:
    rows = [row("a", 1), row("b", 1), row("c", 0), row("d", 0), row("e", 0)]
    with pytest.raises(
        CohortError,
        match=(
            r"2 positive patients cannot be split into train, validation, test; each needs one at"
            r" least: add patients"
        ),
    ):
        drawn(rows, Split())


def test_large_shares_leave_a_train_patient() -> None:
    rows = [row(f"s{i}", i % 2) for i in range(6)]
    splits = drawn(rows, Split(test_share=0.49, validation_share=0.49))
    assert Counter(splits.values()) == {"train": 2, "validation": 2, "test": 2}


def test_each_split_needs_both_labels() -> None:
    splits = {
        "a": "train",
        "b": "train",
        "c": "validation",
        "d": "validation",
        "e": "test",
        "f": "test",
    }
    check_classes({"a": 0, "b": 1, "c": 0, "d": 1, "e": 0, "f": 1}, splits, "m.csv")
    with pytest.raises(
        CohortError,
        match=(
            r"m.csv: split validation has only slides of label 1, but each of train, validation,"
            r" test needs both labels"
        ),
    ):
        check_classes({"a": 0, "b": 1, "c": 1, "d": 1, "e": 0, "f": 1}, splits, "m.csv")
    with pytest.raises(CohortError, match=r"m.csv: split test has no slides"):
        check_classes({"a": 0, "b": 1, "c": 0, "d": 1}, splits, "m.csv")


WORDS = [row("a", "tumour"), row("b", "normal"), row("c", "borderline"), row("d", "tumour")]


@pytest.mark.parametrize(
    ("positive", "labels"),
    [
        (["tumour"], [1, 0, 0, 1]),
        (["borderline", "tumour"], [1, 0, 1, 1]),
        (["normal"], [0, 1, 0, 0]),
    ],
)
def test_words_are_labels(positive: list[str], labels: list[int]) -> None:
    assert labels_of(WORDS, positive, Path("m.csv")) == dict(zip("abcd", labels, strict=True))


def test_numbers_are_labels() -> None:
    rows = [row("a", 1), row("b", 0)]
    assert labels_of(rows, (), Path("m.csv")) == {"a": 1, "b": 0}
    grades = [row(name, grade) for name, grade in zip("abc", (1, 2, 3), strict=True)]
    assert labels_of(grades, ["2", "3"], Path("m.csv")) == {"a": 0, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("labels", "positive", "message"),
    [
        (
            ["0", "tumour"],
            [],
            r"^m\.csv, row 0 \(slide_id=b\): label='tumour' is not 0 or 1; correct it, or list in"
            r" cohort\.positive which labels are positive \(there are 0, tumour\)$",
        ),
        (
            ["0", "2"],
            [],
            r"row 0 \(slide_id=b\): label='2' is not 0 or 1; correct it, or list",
        ),
        (
            ["tumour", "normal"],
            ["tumour", "Tumor"],
            r"^m\.csv: no slide has the label 'Tumor' of cohort\.positive; the labels are normal,"
            r" tumour$",
        ),
        (
            ["0", "1"],
            ["tumour"],
            r"no slide has the label 'tumour' of cohort\.positive; the labels are 0, 1$",
        ),
        (
            ["0", "1", "tumour"],
            ["tumour"],
            r"^m\.csv: some labels are numbers and some are words \(0, 1, tumour\); where"
            r" cohort\.positive names labels, write words alone$",
        ),
    ],
)
def test_what_is_wrong_with_labels(labels: list[str], positive: list[str], message: str) -> None:
    rows = [row(name, label) for name, label in zip("abc", labels, strict=False)]
    with pytest.raises(CohortError, match=message):
        labels_of(rows, positive, Path("m.csv"))


def test_an_error_names_some_labels_of_many() -> None:
    rows = [row(f"s{number}", f"word{number:02}") for number in range(25)]
    with pytest.raises(CohortError, match=r"\(there are word00, .*, word19 and 5 more\)$"):
        labels_of(rows, (), Path("m.csv"))
