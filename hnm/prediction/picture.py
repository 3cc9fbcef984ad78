"""The picture of a prediction: tile scores as colours over the slide's overview."""

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from hnm.evidence.pages.heatmap import COLOURS
from hnm.slides.reading.slide import RGB
from hnm.slides.reading.thumbnails import Thumbnail

OPACITY = 0.55
"""Opacity of the colours over the tissue; at 1 they hide it."""


def heat_over(overview: Thumbnail, tiles: pd.DataFrame, aspect: float) -> RGB:
    """Returns `overview` `(height, width, 3)` with the colour of its score over each tile. High
    scores are dark. Where tiles overlap, the colour of the later one is seen.

    Args:
        overview: the picture of the slide.
        tiles: the table `TILE_SCORES` of the slide.
        aspect: height of a tile over its width, in level-0 pixels.
    """
    pixels = overview.pixels.copy()
    colour_map = LinearSegmentedColormap.from_list("scores", COLOURS)
    colours = colour_map(tiles["score"].to_numpy())[:, :3] * 255
    corners = tiles[["x", "y"]].to_numpy()
    size = np.array([1, aspect]) * int(tiles["side"].iloc[0])
    origin = (overview.x, overview.y)
    upper_left = np.rint((corners - origin) / overview.scale).astype(int)
    lower_right = np.rint((corners + size - origin) / overview.scale).astype(int)
    lower_right = np.maximum(lower_right, upper_left + 1)
    for (left, top), (right, bottom), colour in zip(upper_left, lower_right, colours, strict=True):
        place = np.s_[top:bottom, left:right]
        pixels[place] = np.rint((1 - OPACITY) * overview.pixels[place] + OPACITY * colour)
    return pixels
