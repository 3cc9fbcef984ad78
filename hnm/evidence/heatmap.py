"""Pictures of slides and tiles for the report: a slide's tiles put together, where the head looked, and single tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import imagecodecs
import numpy as np
import shapely
import simplejpeg
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray
from PIL import Image

from hnm.slides.annotations import Region
from hnm.slides.pack import Pack

LONGEST_PX = 640
"""Longest side of a slide's picture."""
TILE_PX = 112
"""Longest side of a single tile's picture."""
QUALITY = 82
"""Of the JPEG pictures."""
BACKGROUND = 246
COLOURS = ("#f4eee7", "#e3ab82", "#b4552d", "#571a0e")
"""Of scores from 0 to 1; ever darker, so that they survive grey print and colour blindness."""


@dataclass(frozen=True)
class SlidePicture:
    """A slide's tiles put together; one unit of the picture is one of its pixels."""

    width: int
    height: int
    mosaic: bytes
    """JPEG of `width` x `height` pixels."""
    heat: bytes
    """PNG with one pixel for each place of the grid: the colour of its tile's score, or nothing."""
    outlines: Sequence[tuple[str, str]]
    """(class name, SVG path) of each annotated region."""


def slide_picture(pack: Pack, scores: NDArray[np.float32], aspect: float, regions: Sequence[Region]) -> SlidePicture:
    """The picture of one slide.

    Args:
        pack: its tiles.
        scores: `(tiles,)` score of each tile of the pack.
        aspect: height of a tile over its width, in level-0 pixels.
        regions: what is drawn on it; parts outside of the tiles' bounding box are cut off.
    """
    columns, rows = (places(pack.coords[:, axis], pack.side * (aspect if axis else 1)) for axis in (0, 1))
    across, down = int(columns.max()) + 1, int(rows.max()) + 1
    block = int(np.clip(LONGEST_PX // max(across, down), 1, pack.tile_px))
    mosaic = np.full((down * block, across * block, 3), BACKGROUND, np.uint8)
    for tile, (column, row) in enumerate(zip(columns, rows, strict=True)):
        mosaic[row * block : (row + 1) * block, column * block : (column + 1) * block] = shrunk(pack.tiles([tile])[0], block)
    heat = np.zeros((down, across, 4), np.uint8)
    heat[rows, columns] = LinearSegmentedColormap.from_list("scores", COLOURS)(scores, bytes=True)
    origin = pack.coords.min(axis=0)
    extent = pack.coords.max(axis=0) - origin + pack.side * np.array([1, aspect])
    scale = np.array([across, down]) * block / extent
    return SlidePicture(
        across * block,
        down * block,
        jpeg(mosaic),
        bytes(imagecodecs.png_encode(heat)),
        [(region.name, _path(shapely.clip_by_rect(region.geometry, *origin, *(origin + extent)), origin, scale)) for region in regions],
    )


def tile_picture(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG of one tile `(height, width, 3)`, at most `TILE_PX` wide."""
    return jpeg(shrunk(pixels, min(TILE_PX, len(pixels))))


def shrunk(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """`pixels` of a square as a square of `side` pixels."""
    return pixels if side == len(pixels) else np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG bytes of `(height, width, 3)`."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB", fastdct=False))


def places(corners: NDArray[np.int64], step: float) -> NDArray[np.int64]:
    """Column (or row) of each tile from its corners along one axis; `step` may be off by the rounding of corners to whole pixels."""
    distinct = np.unique(corners)
    gaps = np.rint(np.diff(distinct) / step)
    places = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)
    return np.asarray(places[np.searchsorted(distinct, corners)])


def _path(geometry: shapely.Geometry, origin: NDArray[np.int64], scale: NDArray[np.float64]) -> str:
    """An SVG path around each part of `geometry`, to a tenth of a unit."""
    polygons = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and not part.is_empty]
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (np.array(ring.coords) - origin) * scale) + "Z" for ring in rings)
