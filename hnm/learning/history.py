"""The history of a training: one row an epoch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hnm.files import Refuse, whole
from hnm.tables import read_numbers

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""A function that is called at the end of each epoch with its number, from 1, and its metrics."""


def write_history(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes the rows as CSV, whole or not at all."""
    with whole(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


def read_history(path: Path, refuse: Refuse, cure: str) -> pd.DataFrame:
    """Returns the rows that `write_history` wrote. Counts are whole numbers; an empty cell is NaN.

    `refuse` makes the error where the file is missing, is torn or holds anything but numbers;
    `cure` ends its message.
    """
    history = read_numbers(path, refuse=refuse, cure=cure)
    if history.empty:
        raise refuse(f"{path} holds no epoch{cure}")
    return history


def epochs_of(history: pd.DataFrame) -> list[dict[str, float]]:
    """Returns the rows of a history, each as column -> number."""
    return [
        {str(name): float(value) for name, value in row.items()}
        for row in history.to_dict("records")
    ]
