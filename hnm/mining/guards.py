"""Guards of mining: candidates are taken in an order until a budget is full, within caps of slides
and patients, and without those that a guard refuses.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hnm.mining.similarity import TileReader, Units, cosines, highest_cosine, read_tiles, units

NEAR_DUPLICATE = "near_duplicate"
LONGEST_STEP = 1024
"""Candidates that are looked at together at most."""
SHORTEST_STEP = 32
"""Candidates that are looked at together at least, though the budget wants fewer."""


@dataclass(frozen=True)
class Caps:
    """How many tiles of one role one slide and one patient may supply."""

    slide: int
    patient: int


@dataclass(frozen=True)
class Guards:
    """What refuses a candidate that the caps let in; nothing, where both are None."""

    flaws: Callable[[pd.DataFrame], list[str]] | None = None
    """(candidates,): why each is refused for its pixels; "" where it is not."""
    features: TileReader | None = None
    """Reads features; where None, no candidate is a near-duplicate."""
    max_similarity: float = 1.0
    """A candidate whose feature has a higher cosine than this to one already taken is a
    near-duplicate.
    """


class GuardedChoice:
    """Takes candidates one after the other, and reads the pixels and features of those alone that
    it comes to.
    """

    def __init__(self, candidates: pd.DataFrame, caps: Caps, guards: Guards) -> None:
        """`candidates` with slide_id, patient_id and tile, and an index without repeats."""
        self._candidates = candidates
        self._caps = caps
        self._guards = guards
        self._of_slide: Counter[str] = Counter()
        self._of_patient: Counter[str] = Counter()
        self._taken: dict[int, None] = {}  # labels of the index, in order
        self._refused: dict[int, str] = {}
        self._features: list[Units] = []

    @property
    def taken(self) -> pd.DataFrame:
        """The candidates that were taken, in that order."""
        return self._candidates.loc[list(self._taken)]

    @property
    def refused(self) -> pd.DataFrame:
        """The candidates that a guard refused, with the `reason`; not those that a full slide or
        patient kept out.
        """
        return self._candidates.loc[list(self._refused)].assign(
            reason=pd.Series(self._refused, dtype="str")
        )

    def take(self, ordered: pd.DataFrame, count: int) -> None:
        """Takes from `ordered`, rows of the candidates, until `count` are taken in all."""
        ordered = ordered[~ordered.index.isin([*self._taken, *self._refused])]
        start = 0
        while start < len(ordered) and len(self._taken) < count:
            length = min(LONGEST_STEP, max(SHORTEST_STEP, count - len(self._taken)))
            step = ordered.iloc[start : start + length]
            start += length
            owners = step[["slide_id", "patient_id"]].itertuples(index=False)
            self._step(step[[self._has_room(*owner) for owner in owners]], count)

    def _step(self, step: pd.DataFrame, count: int) -> None:
        if step.empty:
            return
        reasons = [""] * len(step) if self._guards.flaws is None else self._guards.flaws(step)
        alike = np.zeros((len(step), len(step)), bool)
        near = np.zeros(len(step), bool)
        features = None
        if self._guards.features is not None:
            features = units(read_tiles(step, self._guards.features))
            alike = cosines(features, features) > self._guards.max_similarity
            near = highest_cosine(features, self._features) > self._guards.max_similarity
        taken: list[int] = []
        for row, (label, slide_id, patient_id) in enumerate(
            zip(step.index, step["slide_id"], step["patient_id"], strict=True)
        ):
            if len(self._taken) == count:
                break
            if not self._has_room(slide_id, patient_id):
                continue
            if reasons[row] or near[row] or alike[row, taken].any():
                self._refused[label] = reasons[row] or NEAR_DUPLICATE
                continue
            taken.append(row)
            self._taken[label] = None
            self._of_slide[slide_id] += 1
            self._of_patient[patient_id] += 1
        if features is not None:
            self._features.append(features[taken])

    def _has_room(self, slide_id: str, patient_id: str) -> bool:
        return (
            self._of_slide[slide_id] < self._caps.slide
            and self._of_patient[patient_id] < self._caps.patient
        )
