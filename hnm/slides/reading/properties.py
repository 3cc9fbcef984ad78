"""OpenSlide's properties of a slide: their names, and the values that are read from them.

A file is a stranger's work, so a property that is no number counts as one that is missing.
"""

import math
import re
from collections.abc import Mapping

from hnm.slides.reading.canvas import Box
from hnm.slides.reading.slide import Mpp

VENDOR = "openslide.vendor"
QUICKHASH = "openslide.quickhash-1"
OBJECTIVE_POWER = "openslide.objective-power"
BACKGROUND = "openslide.background-color"
MPP_X = "openslide.mpp-x"
MPP_Y = "openslide.mpp-y"
BOUNDS = (
    "openslide.bounds-x",
    "openslide.bounds-y",
    "openslide.bounds-width",
    "openslide.bounds-height",
)
TILE_WIDTH = "openslide.level[{}].tile-width"
TILE_HEIGHT = "openslide.level[{}].tile-height"
DICOM_SERIES = "dicom.SeriesInstanceUID"
DICOM_COLOURS = "dicom.PhotometricInterpretation"
DICOM_ENCODING = "dicom.TransferSyntaxUID"

Properties = Mapping[str, str]
WHITE = "FFFFFF"


def number(properties: Properties, name: str) -> float | None:
    """Returns the value of a property, or None where it is missing or no finite number."""
    try:
        value = float(properties[name])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def mpp_of(properties: Properties) -> Mpp | None:
    """Returns the resolution that a file states, or None where it states none."""
    x = number(properties, MPP_X)
    y = number(properties, MPP_Y)
    return None if x is None or y is None else Mpp(x, y)


def source_tile(properties: Properties, level: int) -> tuple[float, float]:
    """Returns width and height of a level's tiles in the file, each 0 where the format has none."""
    return (
        number(properties, TILE_WIDTH.format(level)) or 0,
        number(properties, TILE_HEIGHT.format(level)) or 0,
    )


def bounds_of(properties: Properties, dimensions: tuple[int, int]) -> Box:
    """Returns the part of the canvas that the properties call scanned.

    It is all of the canvas where one of the four properties is no number, or where they name a
    part beside the canvas.
    """
    width, height = dimensions
    numbers = [number(properties, name) for name in BOUNDS]
    x, y, scan_width, scan_height = (int(value or 0) for value in numbers)
    left = max(0, x)
    top = max(0, y)
    right = min(width, x + scan_width)
    bottom = min(height, y + scan_height)
    if None in numbers or left >= right or top >= bottom:
        return Box(0, 0, width, height)
    return Box(left, top, right - left, bottom - top)


def background_of(properties: Properties) -> tuple[int, int, int]:
    """Returns the RGB colour of what was not scanned: white where the property is no colour."""
    colour = properties.get(BACKGROUND, "")
    red, green, blue = bytes.fromhex(colour if re.fullmatch("[0-9A-Fa-f]{6}", colour) else WHITE)
    return red, green, blue
