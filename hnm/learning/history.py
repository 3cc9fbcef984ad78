"""The history of a training: one row an epoch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hnm.files import whole

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Told the number of an epoch, counted from 1, and its metrics, when it ends."""


def write_history(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """The rows as CSV, whole or not at all."""
    with whole(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")
