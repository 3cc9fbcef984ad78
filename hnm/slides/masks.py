"""Tissue masks from elsewhere, in place of the classical one: an image or GeoJSON of one slide.

An image covers the whole of level 0, at any scale, and is not 0 where there is tissue; GeoJSON has polygons in level-0
pixels, whatever they are called.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image

from hnm.errors import CohortError, SlideError
from hnm.slides.annotations import Region, check_inside, read_regions
from hnm.slides.reader import Thumbnail
from hnm.slides.storage import may_pass
from hnm.slides.tissue import Mask

GEOJSON = frozenset({".geojson", ".json"})
ASPECT_TOLERANCE = 0.02
"""Relative difference of an image's aspect to its slide's: more is another slide's mask, or one of the scanned area alone."""


def read_mask(path: Path, dimensions: tuple[int, int], view: Thumbnail) -> Mask:
    """(height, width): which pixels of the thumbnail `view` are tissue, of a slide of `dimensions` (level-0 pixels).

    A thumbnail pixel is tissue where at least half of the image's pixels under it are, or where its centre lies in a polygon.
    Raises `SlideError` (step `tissue`) where the file is no mask of this slide, or has no tissue.
    """
    try:
        mask = _of_polygons(path, dimensions, view) if path.suffix.lower() in GEOJSON else _of_image(path, dimensions, view)
    except OSError as error:
        if may_pass(error):
            raise
        raise SlideError(
            f"its mask {path.name} cannot be read: {error.strerror or 'it is no image, or not a whole one'}; correct the manifest's column mask, or --mask",
            step="tissue",
        ) from None
    if not mask.any():
        raise SlideError(f"its mask {path.name} has no tissue within the scan", step="tissue")
    return mask


def rasterised(regions: Collection[Region], view: Thumbnail) -> Mask:
    """(height, width): the pixels of `view` whose centres lie in one of `regions`; holes are left out."""
    height, width = view.lost.shape
    union = shapely.union_all([region.geometry for region in regions])
    mask = np.zeros((height, width), bool)
    x = view.x + (np.arange(width) + 0.5) * view.scale[0]
    y = view.y + (np.arange(height) + 0.5) * view.scale[1]
    for part in shapely.get_parts(union):
        shapely.prepare(part)
        left, top, right, bottom = part.bounds
        columns, rows = (slice(*np.searchsorted(axis, ends)) for axis, ends in ((x, (left, right)), (y, (top, bottom))))
        mask[rows, columns] |= shapely.contains_xy(part, x[None, columns], y[rows, None])
    return mask


def _of_polygons(path: Path, dimensions: tuple[int, int], view: Thumbnail) -> Mask:
    try:
        regions = read_regions(path, "mask", named=False)
        check_inside(regions, dimensions, f"mask {path.name}")
    except CohortError as error:
        raise SlideError(f"its {str(error).replace(f'{path.parent}/', '')}", step="tissue") from None
    return rasterised(regions, view)


def _of_image(path: Path, dimensions: tuple[int, int], view: Thumbnail) -> Mask:
    pixels = _image_of(path)
    rows, columns = pixels.shape
    if abs((columns / rows) / (dimensions[0] / dimensions[1]) - 1) > ASPECT_TOLERANCE + 1 / min(rows, columns):
        raise SlideError(
            f"its mask {path.name} has {columns} x {rows} pixels, which is not the aspect of the slide's {dimensions[0]} x {dimensions[1]}; it must cover"
            " all of level 0",
            step="tissue",
        )
    height, width = view.lost.shape
    scale = columns / dimensions[0], rows / dimensions[1]
    left, top = view.x * scale[0], view.y * scale[1]
    box = (left, top, min(left + width * view.scale[0] * scale[0], columns), min(top + height * view.scale[1] * scale[1], rows))
    tissue = Image.fromarray(pixels.astype(np.uint8) * 255)
    return np.asarray(tissue.resize((width, height), Image.Resampling.BOX, box=box)) >= 128


def _image_of(path: Path) -> npt.NDArray[np.bool_]:
    """(height, width): where the image is not 0."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except Image.DecompressionBombError:
        raise SlideError(f"its mask {path.name} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; shrink it", step="tissue") from None
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise SlideError(f"its mask {path.name} is a picture in colour; save it with one channel that is 0 on glass", step="tissue")
    return np.asarray(pixels != 0)
