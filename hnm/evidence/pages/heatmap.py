"""Pictures of slides and tiles for the report: a slide's tiles put together, where the head looked,
and single tiles.
"""

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
from hnm.slides.cutting.pack import Pack

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
    """PNG of `width` x `height` pixels: the colour of each tile's score, or nothing."""
    outlines: Sequence[tuple[str, str]]
    """(class name, SVG path) of each annotated region."""


def slide_picture(
    pack: Pack, scores: NDArray[np.float32], aspect: float, regions: Sequence[Region]
) -> SlidePicture:
    """The picture of one slide; of tiles that overlap, the later one lies on top.

    Args:
        pack: its tiles.
        scores: `(tiles,)` score of each tile of the pack.
        aspect: height of a tile over its width, in level-0 pixels.
        regions: what is drawn on it; parts outside of the tiles' bounding box are cut off.
    """
    size = pack.side * np.array([1, aspect])
    origin = pack.coords.min(axis=0)
    extent = pack.coords.max(axis=0) - origin + size
    block = int(np.clip(LONGEST_PX // np.max(extent / size), 1, pack.tile_px))
    scale = block / size
    width, height = (int(pixels) for pixels in np.rint(extent * scale))
    mosaic = np.full((height, width, 3), BACKGROUND, np.uint8)
    heat = np.zeros((height, width, 4), np.uint8)
    colours = LinearSegmentedColormap.from_list("scores", COLOURS)(scores, bytes=True)
    for tile, (left, top) in enumerate(np.rint((pack.coords - origin) * scale).astype(int)):
        # corners are rounded to whole pixels: a pixel more closes the gaps between tiles
        place = np.s_[top : top + block + 1, left : left + block + 1]
        rows, columns = heat[place].shape[:2]
        mosaic[place] = shrunk(pack.tiles([tile])[0], block + 1)[:rows, :columns]
        heat[place] = colours[tile]
    return SlidePicture(
        width,
        height,
        jpeg(mosaic),
        bytes(imagecodecs.png_encode(heat)),
        [
            (
                region.name,
                _path(
                    shapely.clip_by_rect(region.geometry, *origin, *(origin + extent)),
                    origin,
                    scale,
                ),
            )
            for region in regions
        ],
    )


def tile_picture(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG of one tile `(height, width, 3)`, at most `TILE_PX` wide."""
    return jpeg(shrunk(pixels, min(TILE_PX, len(pixels))))


def shrunk(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """`pixels` of a square as a square of `side` pixels."""
    return (
        pixels
        if side == len(pixels)
        else np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))
    )


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG bytes of `(height, width, 3)`."""
    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB", fastdct=False
        )
    )


def _path(geometry: shapely.Geometry, origin: NDArray[np.int64], scale: NDArray[np.float64]) -> str:
    """An SVG path around each part of `geometry`, to a tenth of a unit."""
    polygons = [
        part
        for part in shapely.get_parts(geometry)
        if part.geom_type == "Polygon" and not part.is_empty
    ]
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
    return "".join(
        "M"
        + "L".join(f"{x:.1f} {y:.1f}" for x, y in (np.array(ring.coords) - origin) * scale)
        + "Z"
        for ring in rings
    )
