"""The grid of tiles of one slide, and how a tile's pixels come from the pyramid. Pure: no file, no
slide.

Tiles are squares in µm; where a slide's mpp differs between its axes they are rectangles in its
pixels.
"""

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import numpy.typing as npt
from PIL import Image

from hnm.errors import SlideError
from hnm.params import Tiles
from hnm.slides.cutting.pack import TOLERANCE
from hnm.slides.cutting.tissue import Mask
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.slide import MOST_REGION_PX, RGB, Mpp
from hnm.slides.reading.thumbnails import Thumbnail, coarsest_sufficient_level

MOST_TILES = 10_000_000
"""Of the grid of one slide, which takes some 150 bytes for each; 75 x 50 mm of glass in tiles of
0.056 mm have 1.2 million.
"""
ROUNDING = 1e-6
"""Of a tile or of a pixel, by which floats may miss a whole number: three tiles of
100.00000000000001 px fit into 300 px.
"""


@dataclass(frozen=True)
class Grid:
    """Whole tiles that cover all of a slide's bounds, each behind the other.

    Where tiles do not fill the bounds, one more column ends at the right edge and one more row at
    the lower edge, or less than two pixels of the level before it. Moved in, these alone overlap
    the tiles before them, by anything from a pixel to all but a pixel.
    """

    corners: npt.NDArray[np.int64]
    """(tiles, 2): x, y in level-0 pixels, row by row."""
    size: tuple[float, float]
    """Width and height of a tile in level-0 pixels; corners are rounded, this is not."""
    level: int
    """Pyramid level that is read."""
    read_px: tuple[float, float]
    """Width and height of a tile in that level's pixels."""
    tile_px: int
    """Side of a tile's pixels, after resampling."""
    mpp: float
    """µm per pixel of the tiles along x: `tiles.mpp`, or within `TOLERANCE` of it where pixels are
    taken as they are.
    """

    @property
    def side(self) -> int:
        """Width of a tile in whole level-0 pixels."""
        return round(self.size[0])

    @property
    def as_is(self) -> bool:
        """Whether the level's pixels are the tile's pixels."""
        return self.read_px == (self.tile_px, self.tile_px)


def grid_of(bounds: Box, slide_mpp: Mpp, downsamples: tuple[float, ...], tiles: Tiles) -> Grid:
    """The grid over `bounds` (level-0 pixels) of a slide with `slide_mpp` µm per level-0 pixel
    along x and y.

    Raises `SlideError` (step `tiles`) where the slide is coarser than `tiles.mpp`, smaller than one
    tile, or so large that its grid or one tile would take more memory than there may be.
    """
    if max(slide_mpp) > tiles.mpp * (1 + TOLERANCE):
        raise SlideError(
            f"its finest level has {max(slide_mpp):.4g} µm per pixel, coarser than"
            f" tiles.mpp={tiles.mpp:g}; raise that or leave the slide out",
            step="tiles",
        )
    wanted = (tiles.mpp / slide_mpp[0], tiles.mpp / slide_mpp[1])
    level = coarsest_sufficient_level(downsamples, min(wanted), TOLERANCE)
    downsample = downsamples[level]
    as_is = all(abs(pixels / downsample - 1) <= TOLERANCE for pixels in wanted)
    if as_is:
        wanted = (downsample, downsample)
    size = (tiles.tile_px * wanted[0], tiles.tile_px * wanted[1])
    x, y = (
        _starts(extent, tile, downsample)
        for extent, tile in zip((bounds.width, bounds.height), size, strict=True)
    )
    columns = len(x)
    rows = len(y)
    if not columns * rows:
        raise SlideError(
            f"its scan of {bounds.width} x {bounds.height} pixels is smaller than one tile"
            f" ({size[0]:.0f} x {size[1]:.0f})",
            step="tiles",
        )
    if columns * rows > MOST_TILES:
        raise SlideError(
            f"its grid would have {columns} x {rows} tiles, more than {MOST_TILES}; raise"
            " tiles.tile_px or tiles.mpp",
            step="tiles",
        )
    if np.prod(size) / downsample**2 > MOST_REGION_PX:
        raise SlideError(
            f"one tile would be read from {size[0] / downsample:.0f} x {size[1] / downsample:.0f}"
            " pixels, more than are read at once, as the file has no coarser level; lower"
            " tiles.mpp or tiles.tile_px",
            step="tiles",
        )
    corners = np.stack([np.tile(bounds.x + x, rows), np.repeat(bounds.y + y, columns)], axis=1)
    read_px = (tiles.tile_px * (wanted[0] / downsample), tiles.tile_px * (wanted[1] / downsample))
    return Grid(
        corners,
        size,
        level,
        read_px,
        tiles.tile_px,
        downsample * slide_mpp[0] if as_is else tiles.mpp,
    )


def _starts(extent: int, size: float, downsample: float) -> npt.NDArray[np.int64]:
    """(n,): where tiles of `size` pixels begin that cover `extent` pixels, ascending from 0; none
    where not even one fits.

    A tile is read as whole pixels of a level with `downsample`: the last one ends where the level's
    last pixel does, as what lies beyond is not scanned.
    """
    pixels = floor(extent / downsample + ROUNDING) - ceil(size / downsample - ROUNDING)
    last = max(0, floor(pixels * downsample + ROUNDING))
    starts = np.minimum(
        np.rint(np.arange(int(extent / size + ROUNDING)) * size).astype(np.int64), last
    )
    return np.append(starts, last) if len(starts) and last > starts[-1] else starts


def tissue_shares(grid: Grid, mask: Mask, thumbnail: Thumbnail) -> npt.NDArray[np.float32]:
    """(tiles,): share of each tile's area that `mask`, on the pixels of `thumbnail`, calls tissue,
    to six decimals: no last bit decides.
    """
    below_and_right = np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    scale = np.array(thumbnail.scale)
    upper_left = (grid.corners - (thumbnail.x, thumbnail.y)) / scale
    lower_right = upper_left + np.array(grid.size) / scale
    corners = [
        (left, top)
        for left in (upper_left[:, 0], lower_right[:, 0])
        for top in (upper_left[:, 1], lower_right[:, 1])
    ]
    a, b, c, d = (_between(below_and_right, x, y) for x, y in corners)
    shares = (d - b - c + a) / np.prod(lower_right - upper_left, axis=1)
    return np.asarray(np.clip(shares.round(6), 0, 1), np.float32)


def tile_pixels(region: RGB, grid: Grid) -> RGB:
    """(tile_px, tile_px, 3) from the `region` of `grid.level` that was read for a tile.

    Hamming's filter is sharper than bilinear and does not shift features by parts of a pixel, as
    the box filter does.
    """
    if grid.as_is:
        return region
    return np.asarray(
        Image.fromarray(region).resize(
            (grid.tile_px, grid.tile_px), Image.Resampling.HAMMING, box=(0, 0, *grid.read_px)
        )
    )


def _between(
    table: npt.NDArray[np.float64], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The summed-area `table` at fractional points: bilinear is exact, since the mask is constant
    within a pixel.
    """
    rows, columns = table.shape
    x = np.clip(x, 0, columns - 1)
    y = np.clip(y, 0, rows - 1)
    left = np.minimum(x.astype(int), columns - 2)
    top = np.minimum(y.astype(int), rows - 2)
    fx = x - left
    fy = y - top
    upper = table[top, left] * (1 - fx) + table[top, left + 1] * fx
    lower = table[top + 1, left] * (1 - fx) + table[top + 1, left + 1] * fx
    return np.asarray(upper * (1 - fy) + lower * fy)
