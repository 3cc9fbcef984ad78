"""Tiles that show nearly the same place: the last column and row of a grid are moved in, and
overlap those before them.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

REACH = 0.5 - 1e-9
"""Tiles whose corners lie at most so far apart, in tiles, share more than half of their width and
of their height.
"""


def twins(tiles: pd.DataFrame, aspects: Mapping[str, float]) -> pd.DataFrame:
    """slide_id and tile of each tile that shares more than half of its width and of its height with
    one before it.

    It goes by place and not by score, so that a policy that draws at random draws the same tiles
    whatever the head.

    Args:
        tiles: slide_id, tile, x, y and side.
        aspects: slide id -> height of a tile over its width, in level-0 pixels.
    """
    parts = [tiles.iloc[:0]]
    for slide_id, of_slide in tiles.sort_values(["slide_id", "tile"]).groupby(
        "slide_id", sort=False
    ):
        side = of_slide["side"].to_numpy()[:, None]
        corners = of_slide[["x", "y"]].to_numpy() / (side * [1, aspects[str(slide_id)]])
        pairs = cKDTree(corners).query_pairs(REACH, p=np.inf, output_type="ndarray")
        parts.append(of_slide.iloc[np.unique(pairs.max(axis=1))])
    return pd.concat(parts)[["slide_id", "tile"]].reset_index(drop=True)
