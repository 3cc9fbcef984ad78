"""Tissue masks from elsewhere, in place of the classical one: an image or GeoJSON of one slide.

An image (PNG, TIFF or JPEG) covers the whole of level 0, or the scan alone as QuPath exports it, at
any scale, and is not 0 where there is tissue; GeoJSON has polygons, whatever they are called.

A mask's bytes are read once, within bounds: what is decoded is what was digested, and its size is
held against a bound before it is decoded.
"""

import hashlib
import io
import sys
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from hnm.errors import CohortError, HnmError, SlideError
from hnm.files import read_bounded
from hnm.slides.annotations import Region, check_inside, drawn_in, joined, unmended_in
from hnm.slides.reading.canvas import Box, By, Canvas
from hnm.slides.reading.failures import ChangedError, check_file, error_of, printable_name
from hnm.slides.reading.thumbnails import Thumbnail

if TYPE_CHECKING:  # the stage `cohort`, which always runs, need not wait for its libraries
    from hnm.slides.cutting.tissue import Mask

GEOJSON = frozenset({".geojson", ".json"})
FORMATS = ("PNG", "TIFF", "JPEG")
"""Of images, in Pillow's words; of others it would start programs, as Ghostscript for PostScript,
whatever the suffix says.
"""
MOST_BYTES = 512 << 20
"""Of a mask's file; an image of as many pixels as Pillow takes for no bomb (89 million) has at most
358 million.
"""
CURE = "; correct the manifest's column mask, or --mask"
ASPECT_TOLERANCE = 0.02
"""Relative difference of an image's aspect to that of what it covers: more is another slide's mask,
or one of a part of it.
"""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Placement:
    """Where a mask lies on its slide."""

    by: By = "file"
    """What decided that."""
    notes: tuple[str, ...] = ()
    """A sentence for each region that reaches beyond the scan."""


def mask_bytes(path: Path, digest: str | None = None) -> bytes:
    """The bytes of the mask at `path`.

    Args:
        path: of the image or GeoJSON.
        digest: SHA-256 that they must have.

    Raises:
        SlideError: there is no such file, or it is too large, or none (step `tissue`).
        ChangedError: it has another digest.
        MachineError: the machine or the storage does not give it.
    """
    thing = f"its mask {printable_name(path)}"
    check_file(path, thing, step="tissue", cure=CURE)

    def refused(message: str) -> HnmError:
        cause = sys.exception()  # of the system, where it is the system that did not give the bytes
        return (
            error_of(cause, path, thing, step="tissue", cure=CURE)
            if isinstance(cause, OSError)
            else SlideError(message, step="tissue")
        )

    content = read_bounded(path, refused, what=thing, cure=CURE, most=MOST_BYTES)
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ChangedError(
            f"{thing} changed since its digest was taken; nothing of the slide is kept. Run the"
            " same command again (dvc repro), which reads it anew"
        )
    return content


def read_mask(content: bytes, path: Path, canvas: Canvas, view: Thumbnail) -> "Mask":
    """(height, width): which pixels of the thumbnail `view` are tissue, of a slide with this
    `canvas`.

    A thumbnail pixel is tissue where at least half of the image's pixels under it are, or where its
    centre lies in a polygon. `content` are the bytes of the file at `path`. Raises `SlideError`
    (step `tissue`) where they are no mask of this slide, or have no tissue.
    """
    mask = (
        _of_polygons(content, path, canvas, view)
        if _is_geojson(path)
        else _of_image(content, path, canvas, view)
    )
    if not mask.any():
        raise SlideError(
            f"its mask {printable_name(path)} has no tissue within the scan", step="tissue"
        )
    return mask


def placement_of(content: bytes, path: Path, canvas: Canvas, slide: str) -> Placement:
    """Where the mask in `content` lies on `slide`; of one that `read_mask` will refuse it tells
    nothing.
    """
    where = f"mask {printable_name(path)}"
    try:
        if not _is_geojson(path):
            return Placement(
                _opened(content, where, lambda image: covered_box(image.size, canvas, where)[1])
            )
        drawn = unmended_in(content, where, canvas, named=False, cure=CURE)
        return Placement(drawn.by, tuple(check_inside(drawn, canvas, where, slide)))
    except (CohortError, SlideError):
        return Placement()


def covered_box(size: tuple[int, int], canvas: Canvas, thing: str) -> tuple[Box, By]:
    """What an image of `size` (columns, rows) covers, all of level 0 or the scan, and what decides
    that.

    Its aspect and then its size decide where they fit but one of both: its sides are, to a pixel,
    those of one at some scale, or it has no more pixels than one. `cohort.origin` decides between
    two that fit alike. Raises `SlideError` where neither fits; `thing` names the image.
    """
    columns, rows = size
    tolerance = ASPECT_TOLERANCE + 1 / min(size)
    boxes = [canvas.whole, *([canvas.bounds] if canvas.bounds != canvas.whole else [])]
    fitting = [
        box for box in boxes if abs((columns / rows) / (box.width / box.height) - 1) <= tolerance
    ]
    if not fitting:
        scan = (
            f" nor of its scan of {canvas.bounds.width} x {canvas.bounds.height}"
            if len(boxes) > 1
            else ""
        )
        raise SlideError(
            f"{thing} has {columns} x {rows} pixels, which is not the aspect of the slide's"
            f" {canvas.width} x {canvas.height}{scan}; it must cover all of level 0, or the scan"
            " alone",
            step="tissue",
        )
    for test in (_is_scaled, _is_no_finer):
        fitting = [box for box in fitting if test(size, box)] or fitting
    if len(fitting) == 1:
        return fitting[0], "shape"
    if canvas.origin == "auto":
        return canvas.whole, "nothing"
    return (canvas.bounds if canvas.origin == "bounds" else canvas.whole), "param"


def _is_scaled(size: tuple[int, int], box: Box) -> bool:
    """Whether the sides of an image are those of `box` at one scale, each rounded up or down."""
    sides = list(zip((box.width, box.height), size, strict=True))
    least = max(side / (pixels + 1) for side, pixels in sides)
    most = min(side / max(pixels - 1, 1e-9) for side, pixels in sides)
    return least < most


def _is_no_finer(size: tuple[int, int], box: Box) -> bool:
    """Whether an image of `box` has no more pixels than level 0 has there."""
    return size[0] <= box.width and size[1] <= box.height


def _is_geojson(path: Path) -> bool:
    return path.suffix.lower() in GEOJSON


def rasterised(regions: Collection[Region], view: Thumbnail) -> "Mask":
    """(height, width): the pixels of `view` whose centres lie in one of `regions`; holes are left
    out.
    """
    height, width = view.lost.shape
    union = joined([region.geometry for region in regions])
    mask = np.zeros((height, width), bool)
    x = view.x + (np.arange(width) + 0.5) * view.scale[0]
    y = view.y + (np.arange(height) + 0.5) * view.scale[1]
    for part in shapely.get_parts(union):
        shapely.prepare(part)
        left, top, right, bottom = part.bounds
        columns, rows = (
            slice(*np.searchsorted(axis, ends))
            for axis, ends in ((x, (left, right)), (y, (top, bottom)))
        )
        mask[rows, columns] |= shapely.contains_xy(part, x[None, columns], y[rows, None])
    return mask


def _of_polygons(content: bytes, path: Path, canvas: Canvas, view: Thumbnail) -> "Mask":
    where = f"its mask {printable_name(path)}"
    try:
        drawn = drawn_in(content, where, canvas, named=False, cure=CURE)
        check_inside(drawn, canvas, where)
    except CohortError as error:
        raise SlideError(error, step="tissue") from None
    return rasterised(drawn.regions, view)


def _of_image(content: bytes, path: Path, canvas: Canvas, view: Thumbnail) -> "Mask":
    thing = f"its mask {printable_name(path)}"
    pixels = _image_of(content, thing)
    rows, columns = pixels.shape
    covered, _ = covered_box((columns, rows), canvas, thing)
    height, width = view.lost.shape
    across = columns / covered.width
    down = rows / covered.height
    left = (view.x - covered.x) * across
    top = (view.y - covered.y) * down
    right = min(left + width * view.scale[0] * across, columns)
    lower = min(top + height * view.scale[1] * down, rows)
    tissue = Image.fromarray(pixels.astype(np.uint8) * 255)
    return (
        np.asarray(
            tissue.resize((width, height), Image.Resampling.BOX, box=(left, top, right, lower))
        )
        >= 128
    )


def _image_of(content: bytes, thing: str) -> "Mask":
    """(height, width): where the image is not 0; of a JPEG image, which has no exact 0, where it is
    at least half of white.
    """

    def decoded(image: Image.Image) -> tuple[npt.NDArray[np.uint8], bool]:
        _check_mode(image, thing)
        return np.asarray(image), image.format == "JPEG"

    pixels, is_jpeg = _opened(content, thing, decoded)
    if pixels.ndim == 3:
        pixels = _grey(pixels, thing)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise SlideError(
            f"{thing} holds values that are no numbers; save it with one channel that is 0 on"
            " glass",
            step="tissue",
        )
    return np.asarray(pixels >= 128 if is_jpeg else pixels != 0)


def _opened(content: bytes, thing: str, use: Callable[[Image.Image], Result]) -> Result:
    """What `use` makes of the image in `content`; `SlideError` where it is none that can be
    read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter(
                "error", UserWarning
            )  # Pillow would go on without a tag that it cannot read
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return use(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise SlideError(
            f"{thing} has more than {Image.MAX_IMAGE_PIXELS} pixels; shrink it", step="tissue"
        ) from None
    except (SlideError, MemoryError):
        raise
    # of a damaged image Pillow raises whatever its bytes lead it to: SyntaxError, struct.error,
    # ValueError, …
    except Exception as error:
        raise SlideError(
            f"{thing} cannot be read: it is no image (PNG, TIFF, JPEG), or not a whole one"
            f" ({type(error).__name__}){CURE}",
            step="tissue",
        ) from None


def _check_mode(image: Image.Image, thing: str) -> None:
    """Raises `SlideError` where an image's numbers may not be what a person sees in it."""
    photometric = 262
    if (
        isinstance(image, TiffImageFile)
        and image.tag_v2.get(photometric) == 0
        and image.mode not in {"1", "L"}
    ):
        raise SlideError(
            f"{thing} is a TIFF image whose 0 is white; save it as PNG with one channel that is 0"
            " on glass",
            step="tissue",
        )
    if image.mode == "P" or "transparency" in image.info:
        colours = np.asarray(image.convert("RGBA"))
        if image.mode == "P" and not np.array_equal(
            np.asarray(image) != 0, colours[..., :3].any(axis=2)
        ):
            raise SlideError(
                f"{thing} has a palette whose colour 0 is not the only black; save it with one"
                " channel that is 0 on glass",
                step="tissue",
            )
        if (colours[..., 3] != 255).any():
            raise SlideError(_TRANSPARENT.format(thing=thing), step="tissue")


_TRANSPARENT = (
    "{thing} is transparent in places; save it without transparency, with one channel that is 0 on"
    " glass"
)


def _grey(pixels: npt.NDArray[np.uint8], thing: str) -> npt.NDArray[np.uint8]:
    """(height, width): the one channel of an image of equal ones."""
    channels = pixels.shape[2]
    if channels in {2, 4}:  # grey or colours with alpha
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise SlideError(_TRANSPARENT.format(thing=thing), step="tissue")
        pixels = pixels[..., :-1]
    if channels > 4 or not (pixels == pixels[..., :1]).all():
        raise SlideError(
            f"{thing} is a picture in colour; save it with one channel that is 0 on glass",
            step="tissue",
        )
    return pixels[..., 0]
