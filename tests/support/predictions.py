"""Small sets of slides with scores, for the tests of metrics."""

import numpy as np
from hypothesis import strategies as st

from hnm.evidence.numbers.intervals import Resampling
from hnm.evidence.numbers.predictions import Predictions

RESAMPLING = Resampling(count=400, confidence=0.95, seed=7)


def predictions(
    labels: list[int], scores: list[float], patients: list[str] | None = None
) -> Predictions:
    names = patients or [f"p{place}" for place in range(len(labels))]
    return Predictions(
        np.array(labels, np.int64), np.array(scores, np.float64), np.array(names, dtype=str)
    )


# label, score: two errors at 0.5, one tie across labels
WORKED = predictions([1, 1, 1, 0, 0, 0, 0], [0.9, 0.6, 0.3, 0.7, 0.3, 0.2, 0.1])


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Predictions, np.ndarray]:
    """Slides of both classes, many ties, and two rows of positive whole weights."""
    count = draw(st.integers(2, 12))
    labels = draw(
        st.lists(st.integers(0, 1), min_size=count, max_size=count).filter(
            lambda drawn: 0 < sum(drawn) < len(drawn)
        )
    )
    scores = [
        step / 8 for step in draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
    ]
    patients = [
        f"p{number}" for number in draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    ]
    weights = [draw(st.lists(st.integers(1, 4), min_size=count, max_size=count)) for _ in range(2)]
    return predictions(labels, scores, patients), np.array(weights, np.float64)
