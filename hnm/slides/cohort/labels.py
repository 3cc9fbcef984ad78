"""Labels and splits of a cohort's slides, from the rows of its manifest."""

from collections.abc import Collection, Mapping
from pathlib import Path

from hnm.errors import CohortError
from hnm.names import quoted, shortlist
from hnm.params import Split
from hnm.rows import number
from hnm.slides.cohort.manifest import ManifestRow
from hnm.splits import dealing_order, size_of_share
from hnm.tables import SPLITS

NAMED = 20
"""Labels that an error names at most."""


def labels_of(
    rows: Collection[ManifestRow], positive: Collection[str], manifest: Path
) -> dict[str, int]:
    """Returns slide id -> label, 0 or 1.

    Args:
        rows: of the manifest.
        positive: the words that are label 1, as `cohort.positive`; every other word is label 0.
            Where it is empty, the manifest has 0 and 1 itself.
        manifest: names the file in errors.

    Raises:
        CohortError: a label is neither 0 nor 1 and nothing says which words are positive, a
        positive word is no slide's label, or some labels are numbers and some are words.
    """
    words = sorted({row.label for row in rows})
    if not positive:
        for row in rows:
            if row.label not in {"0", "1"}:
                raise CohortError(
                    f"{manifest}, row {row.line} (slide_id={row.slide_id}):"
                    f" label={quoted(row.label)} is not 0 or 1; correct it, or list in"
                    f" cohort.positive which labels are positive (there are"
                    f" {shortlist(words, NAMED)})"
                )
        return {row.slide_id: int(row.label) for row in rows}
    if len({number(word) is not None for word in words}) > 1:
        raise CohortError(
            f"{manifest}: some labels are numbers and some are words ({shortlist(words, NAMED)});"
            " where cohort.positive names labels, write words alone"
        )
    for word in positive:
        if word not in words:
            raise CohortError(
                f"{manifest}: no slide has the label {quoted(word)} of cohort.positive; the labels"
                f" are {shortlist(words, NAMED)}"
            )
    return {row.slide_id: int(row.label in positive) for row in rows}


def splits_of(
    rows: Collection[ManifestRow], labels: Mapping[str, int], split: Split
) -> dict[str, str]:
    """Returns slide id -> split: the manifest's, or drawn by patient, stratified by label.

    A patient is positive if any of its slides is. The patients of each kind are dealt in the order
    of a seeded hash of their id: the first are test, the last validation, those between train. So
    the order of rows does not matter, and one patient more moves at most one other into or out of
    each of test and validation.
    """
    if all(row.split is not None for row in rows):
        return {row.slide_id: str(row.split) for row in rows}
    positive = {row.patient_id for row in rows if labels[row.slide_id]}
    negative = {row.patient_id for row in rows} - positive
    split_of = _drawn_splits(negative, split, "negative") | _drawn_splits(
        positive, split, "positive"
    )
    return {row.slide_id: split_of[row.patient_id] for row in rows}


def check_classes(labels: Mapping[str, int], splits: Mapping[str, str], where: str) -> None:
    """Raises `CohortError` unless each split has slides of both labels; `where` says in what."""
    for split in SPLITS:
        present = {label for slide_id, label in labels.items() if splits[slide_id] == split}
        if present != {0, 1}:
            has = f"has only slides of label {present.pop()}" if present else "has no slides"
            raise CohortError(
                f"{where}: split {split} {has}, but each of {', '.join(SPLITS)} needs both labels;"
                " add slides or move patients"
            )


def _drawn_splits(patients: Collection[str], split: Split, kind: str) -> dict[str, str]:
    """Returns the split of each patient of one kind."""
    count = len(patients)
    if count < len(SPLITS):
        raise CohortError(
            f"{count} {kind} patients cannot be split into {', '.join(SPLITS)}; each needs one at"
            " least: add patients"
        )
    test = size_of_share(split.test_share, count)
    validation = size_of_share(split.validation_share, count)
    while test + validation >= count:
        if test >= validation:
            test -= 1
        else:
            validation -= 1
    splits = ["test"] * test + ["train"] * (count - test - validation) + ["validation"] * validation
    return dict(zip(dealing_order(patients, split.seed, "split"), splits, strict=True))
