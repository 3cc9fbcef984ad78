"""Thumbnails of slides, made from the pyramid.

A thumbnail that a file brings along may show another scale, or another slide.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from PIL import Image

from hnm.errors import SlideError
from hnm.slides.reading.slide import MOST_REGION_PX, RGB, Mpp, RegionError, Scale, Slide

READ_PX = 2048
"""Side of the largest region that a thumbnail reads at once."""
SMALLEST_BLOCK_PX = 16
"""Side of the smallest block of a thumbnail that is given up as lost."""
MOST_THUMBNAIL_PX = 100_000_000
"""Pixels of the largest thumbnail: at 8 µm per pixel 64 cm², almost twice the largest glass.

Finding tissue takes some 60 bytes for each.
"""

Block = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a thumbnail, in its pixels."""


@dataclass(frozen=True)
class Thumbnail:
    """The scan at a low resolution."""

    pixels: RGB
    lost: npt.NDArray[np.bool_]
    """(height, width): what the file could not give; `pixels` holds the background there."""
    x: int
    """Level-0 pixel of the left edge."""
    y: int
    """Level-0 pixel of the upper edge."""
    scale: Scale
    mpp: float
    """µm per thumbnail pixel."""


def thumbnail(slide: Slide, mpp: float, slide_mpp: Mpp, max_lost_share: float = 1.0) -> Thumbnail:
    """Returns the slide's bounds at `mpp` µm per pixel, each pixel the mean of its area.

    A coarser slide keeps its resolution. The slide is read in blocks, so that memory does not grow
    with it. A block that cannot be read is halved until the unreadable part is small, which is then
    marked as lost.

    Raises:
        SlideError: it would have more than `MOST_THUMBNAIL_PX`, or more than `max_lost_share` of it
            is lost. It ends there, since each failed read has OpenSlide open the file again: a
            slide that claims far more rows than it holds would go on for hours.
    """
    mpp = max(mpp, *slide_mpp)
    bounds = slide.bounds
    width = max(1, round(bounds.width / (mpp / slide_mpp[0])))
    height = max(1, round(bounds.height / (mpp / slide_mpp[1])))
    if width * height > MOST_THUMBNAIL_PX:
        raise SlideError(
            f"its scan would have {width} x {height} pixels at {mpp:g} µm per pixel, more than the"
            f" {MOST_THUMBNAIL_PX} in which tissue is looked for; raise tissue.mpp, or give the"
            " true µm per pixel of the slide in the manifest's column mpp",
            step="tissue",
        )
    scale = Scale(bounds.width / width, bounds.height / height)
    level = coarsest_sufficient_level(slide.level_downsamples, min(scale))
    pixels = np.full((height, width, 3), slide.background, np.uint8)
    lost = np.zeros((height, width), bool)
    lost_px = 0
    waiting = _blocks(width, height, slide.level_downsamples[level], max(scale))
    while waiting:
        block = waiting.pop()
        left, top, right, bottom = block
        try:
            pixels[top:bottom, left:right] = _shrunk(slide, level, scale, block)
        except RegionError:
            if max(right - left, bottom - top) > SMALLEST_BLOCK_PX:
                waiting += _halves(block)
                continue
            lost[top:bottom, left:right] = True
            lost_px += (right - left) * (bottom - top)
            if lost_px > max_lost_share * width * height:
                raise SlideError(
                    f"more than tiles.max_lost_share={max_lost_share:g} of its area cannot be read",
                    step="tiles",
                ) from None
    return Thumbnail(pixels, lost, bounds.x, bounds.y, scale, mpp)


def coarsest_sufficient_level(
    downsamples: tuple[float, ...], wanted: float, tolerance: float = 0.0
) -> int:
    """Returns the coarsest level that is no coarser than `wanted` level-0 pixels per pixel.

    So little is read, and nothing is enlarged beyond `tolerance`.
    """
    return max(
        level
        for level, downsample in enumerate(downsamples)
        if level == 0 or downsample <= wanted * (1 + tolerance)
    )


def _blocks(width: int, height: int, downsample: float, scale: float) -> list[Block]:
    """Returns the blocks that a thumbnail of this size is read in."""
    side = int(READ_PX * downsample / scale)
    largest = int(MOST_REGION_PX**0.5 * downsample / scale) - 2  # a slide of one level, from afar
    side = max(1, min(max(SMALLEST_BLOCK_PX, side), largest))
    return [
        (left, top, min(left + side, width), min(top + side, height))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def _shrunk(slide: Slide, level: int, scale: Scale, block: Block) -> RGB:
    """Returns the pixels of a block of the thumbnail."""
    downsample = slide.level_downsamples[level]
    width = block[2] - block[0]
    height = block[3] - block[1]
    x = int(block[0] * scale.x)
    y = int(block[1] * scale.y)
    left = (block[0] * scale.x - x) / downsample
    top = (block[1] * scale.y - y) / downsample
    right = left + width * scale.x / downsample
    bottom = top + height * scale.y / downsample
    region = slide.read(slide.bounds.x + x, slide.bounds.y + y, level, ceil(right), ceil(bottom))
    box = (left, top, min(right, region.shape[1]), min(bottom, region.shape[0]))
    picture = Image.fromarray(region).resize((width, height), Image.Resampling.BOX, box=box)
    return np.asarray(picture)


def _halves(block: Block) -> list[Block]:
    left, top, right, bottom = block
    if right - left >= bottom - top:
        middle = (left + right) // 2
        return [(left, top, middle, bottom), (middle, top, right, bottom)]
    middle = (top + bottom) // 2
    return [(left, top, right, middle), (left, middle, right, bottom)]
