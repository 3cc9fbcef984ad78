"""The rule by which scores are called: one threshold, one comparison, for choosing it and for using
it.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

ABOVE_ALL = float(np.nextafter(np.float32(1), np.float32(2)))
"""The lowest number above every score in single precision, 1 + 2^-23. As a threshold it calls
nothing positive, a score of exactly 1 included.
"""


def called(
    scores: "NDArray[np.floating[Any]] | pd.Series[Any] | float", threshold: float
) -> NDArray[np.bool_]:
    """Whether each score is called positive: it is as high as `threshold` or higher, compared in
    double precision.

    NumPy and pandas would round the threshold to the precision of the scores first.
    """
    return np.asarray(np.asarray(scores, dtype=np.float64) >= threshold)


def midway(lower: float, upper: float) -> float:
    """A threshold midway between two scores that calls `upper` positive and `lower` negative.

    It does so in double precision, in single precision, and for the decimals of both in a CSV file.
    """
    middle = (lower + upper) / 2
    if lower < upper and (middle <= lower or np.float32(middle) <= np.float32(lower)):
        return math.nextafter(
            middle, math.inf
        )  # the middle of two neighbours may round to the lower one
    return middle
