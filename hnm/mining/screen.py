"""Artefacts on the pixels of a tile: out of focus, under a pen, folded. Simple measures, each in
[0, 1], on 8-bit RGB tiles.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.color import rgb2gray, rgb2hsv
from skimage.measure import blur_effect

from hnm import params

Tile = npt.NDArray[np.uint8]
PEN_HUES = (0.25, 0.62)
"""Green to blue, of a turn: no stain of haematoxylin and eosin has them (violet begins at 0.65)."""
PEN_SATURATION = 0.25
RED_HUES = (0.95, 0.03)
"""Across 0: eosin and blood have them too, but paler than a red pen."""
RED_SATURATION = 0.7
RED_VALUE = 0.3
TISSUE_DENSITY = 0.15
"""Smallest optical density (the negative logarithm of grey) of what is not glass."""
FOLD_DENSITY = 1.2
"""Doubled tissue is at least so dense."""
FOLD_FACTOR = 1.6
"""Doubled tissue is so many times denser than the tile's median tissue."""
FOLD_SMOOTHING = 1 / 32
"""Of a tile's side: nuclei are smoothed away, folds are not."""


def flaws_of(tiles: npt.NDArray[np.uint8], section: params.Screen) -> list[str]:
    """Why each of `tiles` (tiles, tile_px, tile_px, 3) is no good: `pen`, `blur`, `fold`, the first
    whose limit it exceeds; "" where it is good.

    A measure whose limit is 1 is not taken.
    """
    return [_flaw_of(tile, section) for tile in tiles]


def _flaw_of(tile: Tile, section: params.Screen) -> str:
    for name, measure, limit in (
        ("pen", pen_share, section.max_pen_share),
        ("blur", blur, section.max_blur),
        ("fold", fold_share, section.max_fold_share),
    ):
        if limit < 1 and measure(tile) > limit:
            return name
    return ""


def pen_share(tile: Tile) -> float:
    """Share of the pixels of `tile` (tile_px, tile_px, 3) in a pen's colour: green to blue, or a
    red that is more saturated than eosin.
    """
    hue, saturation, value = np.moveaxis(rgb2hsv(tile), 2, 0)
    green_to_blue = (hue > PEN_HUES[0]) & (hue < PEN_HUES[1]) & (saturation > PEN_SATURATION)
    red = (
        ((hue > RED_HUES[0]) | (hue < RED_HUES[1]))
        & (saturation > RED_SATURATION)
        & (value > RED_VALUE)
    )
    return float((green_to_blue | red).mean())


def blur(tile: Tile) -> float:
    """How little of the grey edges of `tile` (tile_px, tile_px, 3) a further blur takes away: 0 is
    sharp, 1 has no edges left.

    Crété-Roffet et al., *The blur effect: perception and estimation with a new no-reference
    perceptual blur metric*, 2007.
    """
    grey = rgb2gray(tile)
    return 1.0 if np.ptp(grey) == 0 else float(blur_effect(grey))  # type: ignore[no-untyped-call]


def fold_share(tile: Tile) -> float:
    """Share of `tile` (tile_px, tile_px, 3) that is doubled tissue: dense, and much denser than the
    rest of the tile.

    A tile that lies wholly in a fold has nothing to compare with, and passes.
    """
    grey = ndimage.gaussian_filter(rgb2gray(tile), len(tile) * FOLD_SMOOTHING, mode="nearest")
    density = -np.log(np.clip(grey, 1e-3, 1))
    tissue = density[density > TISSUE_DENSITY]
    if not len(tissue):
        return 0.0
    limit = max(FOLD_DENSITY, FOLD_FACTOR * float(np.median(tissue)))
    return float((density > limit).mean())
