"""Patients dealt into parts by a seeded hash of their ids: a share of them, or folds.

A patient's place depends on the seed, the purpose and its id alone. So neither the order of rows
nor the version of a library decides, and one patient more moves few others.
"""

import math
from collections.abc import Iterable
from itertools import chain

from hnm.files import Refuse
from hnm.seeds import seed_of


def dealing_order(ids: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Returns the distinct `ids` in the order in which they are dealt."""
    return sorted(set(ids), key=lambda name: (seed_of(seed, purpose, name), name))


def size_of_share(share: float, count: int) -> int:
    """Returns how many of `count` patients are a `share`: rounded, and at least one."""
    return max(1, math.floor(share * count + 0.5))


def folds_of(
    slides: Iterable[tuple[str, int]],
    folds: int,
    seed: int,
    purpose: str,
    param: str,
    refuse: Refuse,
) -> dict[str, int]:
    """Returns the fold of each patient; each fold has slides of both labels.

    A patient is positive if any of its slides is. First the positive patients are dealt out one by
    one, then the negative ones go on where the positives ended. So folds differ by one patient at
    most, and by one patient of each kind.

    Args:
        slides: patient and label of each slide.
        folds: how many folds there are.
        seed: of the order in which patients are dealt.
        purpose: of the folds; two purposes have independent orders.
        param: names the number of folds in the error.
        refuse: makes the error.

    Raises:
        HnmError: of `refuse`; a fold would have no slides of one label.
    """
    patients_with: dict[int, set[str]] = {0: set(), 1: set()}
    for patient, label in slides:
        patients_with[label].add(patient)
    order = chain(
        dealing_order(patients_with[1], seed, purpose),
        dealing_order(patients_with[0] - patients_with[1], seed, purpose),
    )
    fold_of = {patient: place % folds for place, patient in enumerate(order)}
    for label, kind in ((1, "positive"), (0, "negative")):
        if len({fold_of[patient] for patient in patients_with[label]}) < folds:
            raise refuse(
                f"{len(patients_with[label])} patients with {kind} slides cannot be dealt into"
                f" {param}={folds} folds, each of which needs one; lower it or add patients"
            )
    return fold_of
