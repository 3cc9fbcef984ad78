"""Scores of slides or tiles, beside their labels and patients."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """Scores of slides or tiles, and their truth: one entry for each slide or tile."""

    labels: Labels
    """`(items,)` 0 or 1"""
    scores: Floats
    """`(items,)` in [0, 1]"""
    patients: NDArray[np.str_]
    """`(items,)` ids"""

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Predictions":
        """Returns the columns label, score and patient_id of `table`."""
        return cls(
            table["label"].to_numpy(np.int64),
            table["score"].to_numpy(np.float64),
            table["patient_id"].to_numpy(str),
        )

    @property
    def missing_class(self) -> str | None:
        """A sentence about the class that has no item; None where both have one."""
        if not len(self.labels):
            return "there is nothing to evaluate"
        if not self.labels.any():
            return "there is no positive"
        return "there is no negative" if self.labels.all() else None

    def patients_with(self, label: int) -> int:
        """Returns the number of patients who have an item of this label."""
        return len(np.unique(self.patients[self.labels == label]))
