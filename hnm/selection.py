"""The rule by which validation chooses an epoch or a round."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

Row = TypeVar("Row", bound=Mapping[str, float])


def best_row(aucs: Sequence[float | None], log_losses: Sequence[float | None]) -> int:
    """Returns the place of the row with the highest AUC, then the lower log loss, then the earlier.

    A number that is missing (None or NaN) is worse than any other.

    Args:
        aucs: of at least one row, in order.
        log_losses: of the same rows.
    """
    # np.lexsort is stable, takes its last key first, and sorts NaN behind all numbers
    auc = np.array(aucs, dtype=np.float64)
    log_loss = np.array(log_losses, dtype=np.float64)
    return int(np.lexsort((log_loss, -auc))[0])


def best_epoch(history: Sequence[Row]) -> Row:
    """Returns the row of the epoch whose weights a head keeps.

    Args:
        history: rows with `validation_auc` and `validation_loss`, one for each epoch, in order.
    """
    aucs = [row["validation_auc"] for row in history]
    log_losses = [row["validation_loss"] for row in history]
    return history[best_row(aucs, log_losses)]
