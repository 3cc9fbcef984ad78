"""The history of a training: one row an epoch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hnm.files import Refuse, whole
from hnm.tables import read_numbers

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Told the number of an epoch, counted from 1, and its metrics, when it ends."""


def write_history(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """The rows as CSV, whole or not at all."""
    with whole(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


def read_history(path: Path, refuse: Refuse, cure: str) -> pd.DataFrame:
    """The rows that `write_history` wrote; counts are whole numbers, and an empty cell is NaN.

    `refuse` makes the error where the file is missing, torn or holds what is no number; `cure` ends
    its message.
    """
    history = read_numbers(path, refuse=refuse, cure=cure)
    if history.empty:
        raise refuse(f"{path} holds no epoch{cure}")
    return history


def epochs_of(history: pd.DataFrame) -> list[dict[str, float]]:
    """The rows of a history, each as numbers by column."""
    return [
        {str(name): float(value) for name, value in row.items()}
        for row in history.to_dict("records")
    ]
