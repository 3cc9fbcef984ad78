"""Tile scores and labels of a few slides, for the tests of mining."""

import math

import numpy as np
import pandas as pd

from hnm.mining.similarity import TileReader
from hnm.tables import TILE_SCORES


def scores_of(slides: dict[str, list[float]]) -> pd.DataFrame:
    """A `TILE_SCORES` table; tile n of a slide lies at x = 10 n, y = 7."""
    rows = [
        {
            "slide_id": slide_id,
            "tile": tile,
            "x": 10 * tile,
            "y": 7,
            "side": 96,
            "logit": math.log(score / (1 - score)),
            "score": score,
            "attention": 0.1,
        }
        for slide_id, values in slides.items()
        for tile, score in enumerate(values)
    ]
    frame = pd.DataFrame(rows).astype(
        {
            "tile": "int32",
            "logit": "float32",
            "score": "float32",
            "attention": "float32",
            "side": "int64",
        }
    )
    return TILE_SCORES.check(frame, "scores")


def labels_of(labels: dict[str, int]) -> pd.DataFrame:
    """A `LABELS` table."""
    return pd.DataFrame({"slide_id": list(labels), "label": list(labels.values())})


def chosen(mined: pd.DataFrame, role: str) -> list[tuple[str, int]]:
    """(slide id, tile) of the mined tiles of one role, best first."""
    of_role = mined[mined["role"] == role].sort_values("rank")
    return list(zip(of_role["slide_id"], of_role["tile"], strict=True))


def features_of(degrees: dict[str, list[float]]) -> TileReader:
    """Reads features of two numbers: tile n of a slide points to its n-th angle, and is as long as
    n + 1.
    """
    angles = {slide_id: np.radians(values) for slide_id, values in degrees.items()}

    def read(slide_id: str, tiles: np.ndarray) -> np.ndarray:
        chosen = angles[slide_id][tiles]
        directions = np.stack([np.cos(chosen), np.sin(chosen)], axis=1)
        return np.asarray(directions * (tiles[:, None] + 1), np.float32)

    return read
