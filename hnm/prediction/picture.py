"""The picture of a prediction: tile scores as colours over the slide's overview."""

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from hnm.evidence.pages.heatmap import COLOURS
from hnm.slides.reading.slide import RGB
from hnm.slides.reading.thumbnails import Thumbnail

OPACITY = 0.55
"""Of the colours over tissue; at 1 nothing of it shows."""


def heat_over(overview: Thumbnail, tiles: pd.DataFrame, aspect: float) -> RGB:
    """(height, width, 3): `overview` with the colour of its score over each tile, dark for high.

    Of tiles that overlap, the later one's colour is seen.

    Args:
        overview: the slide.
        tiles: the table `TILE_SCORES` of the slide.
        aspect: height of a tile over its width, in level-0 pixels.
    """
    pixels = overview.pixels.copy()
    colours = (
        LinearSegmentedColormap.from_list("scores", COLOURS)(tiles["score"].to_numpy())[:, :3] * 255
    )
    corners = tiles[["x", "y"]].to_numpy()
    size = np.array([1, aspect]) * int(tiles["side"].iloc[0])
    scale, origin = np.array(overview.scale), (overview.x, overview.y)
    upper_left = np.rint((corners - origin) / scale).astype(int)
    lower_right = np.maximum(np.rint((corners + size - origin) / scale).astype(int), upper_left + 1)
    for (left, top), (right, bottom), colour in zip(upper_left, lower_right, colours, strict=True):
        place = np.s_[top:bottom, left:right]
        pixels[place] = np.rint((1 - OPACITY) * overview.pixels[place] + OPACITY * colour)
    return pixels
