"""Where the tissue is: a classical mask on a thumbnail.

Stain absorbs one colour more than the others, glass, dust, shadows and cover-slip edges do not: the
mask is a threshold on the colourfulness of the optical density (Otsu 1979, held between a floor, so
that empty glass stays empty, and a ceiling, so that pale tissue is not lost to dense tissue). Pen
is colourful too, but absorbs the three colours in proportions that no stain does. Areas are in µm²,
so that they mean the same on every scanner.

No hole is filled, however small: what shows no stain is glass to the tile that holds it, be it a
lumen, a crack, fat, or a notch that the edge of the scan closes.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from hnm.errors import SlideError
from hnm.params import Tissue
from hnm.slides.reading.slide import RGB

Mask = npt.NDArray[np.bool_]
Density = npt.NDArray[np.float32]
"""Optical density relative to the glass, natural logarithm, at least 0; (height, width, 3) for red,
green, blue.
"""

FLOOR = 0.05
"""Lowest threshold on colourfulness: glass and its compression noise stay below 0.03."""
CEILING = 0.10
"""Highest threshold on colourfulness: pale stroma lies above."""
DARK = 60
"""A scan whose median pixel value is lower was not made with transmitted light."""
CORE_UM = 8.0
"""Ink thinner than twice this is not taken for ink: single pixels of an odd colour occur in any
tissue.
"""
RIM_UM = 24.0
"""Around ink so much is its blurred rim."""
GLASS = 245.0
"""Value of the glass where a thumbnail shows too little of it to measure."""


def tissue_mask(pixels: RGB, mpp: float, tissue: Tissue) -> Mask:
    """(height, width): which pixels of a thumbnail at `mpp` µm per pixel show tissue.

    Raises `SlideError` (step `tissue`) for a dark scan and for one without tissue.
    """
    _check_light(pixels)
    density = density_of(pixels)
    colourfulness = np.ptp(density, axis=2)
    threshold = np.clip(threshold_otsu(colourfulness), FLOOR, CEILING)  # type: ignore[no-untyped-call]
    ink = pen_mask(density, mpp)
    mask = _without_small((colourfulness > threshold) & ~ink, tissue.min_area_um2 / mpp**2)
    if not mask.any():
        raise SlideError(
            f"it has no tissue of at least tissue.min_area_um2={tissue.min_area_um2:g}",
            step="tissue",
        )
    return mask


def density_of(pixels: RGB) -> Density:
    """Optical density of a thumbnail, smoothed by about one pixel."""
    density = np.log(_glass(pixels) + 1) - np.log(pixels.astype(np.float32) + 1)
    return np.asarray(np.maximum(ndimage.gaussian_filter(density, (1, 1, 0)), 0), np.float32)


def pen_mask(density: Density, mpp: float) -> Mask:
    """(height, width): which pixels are green, blue, red or black ink, with its blurred rim.

    Haematoxylin and eosin absorb green most, red less, and blue less than three quarters of green;
    blood about three quarters, and red a fifth; DAB absorbs blue most and red about half of that.
    """
    red, green, blue = np.moveaxis(density, 2, 0)
    coloured = np.ptp(density, axis=2) > FLOOR
    green_ink = (red > 1.1 * green) & (blue > 0.75 * green)
    blue_ink = (red > green) & (red > 1.2)
    red_ink = (blue > 0.74 * green) & (red < 0.18 * green)
    low = density.min(axis=2)
    high = density.max(axis=2)
    black_ink = ((low > 1.2) & (low > 0.65 * high)) | (density.mean(axis=2) > 1.7)
    ink = coloured & (green_ink | blue_ink | red_ink | black_ink)
    cores: Mask = ndimage.distance_transform_edt(ink) > CORE_UM / mpp
    if not cores.any():
        return cores
    return np.asarray(
        ndimage.distance_transform_edt(~cores) <= max(1, (CORE_UM + RIM_UM) / mpp), bool
    )


def _check_light(pixels: RGB) -> None:
    red, green, blue = np.median(pixels.reshape(-1, 3), axis=0)
    if max(red, green, blue) < DARK:
        raise SlideError(
            f"its background is dark (median {red:.0f}, {green:.0f}, {blue:.0f} of 255), as in"
            " fluorescence; only transmitted light can be read",
            step="tissue",
        )
    if red > 200 and abs(green - 128) < 6 and abs(blue - 128) < 6:
        raise SlideError(
            "its glass is salmon: the file holds YCbCr that it, or its reader, calls RGB; convert"
            " it anew",
            step="tissue",
        )


def _glass(pixels: RGB) -> npt.NDArray[np.float32]:
    """(3,): colour of the light that passed no tissue. Pure white is left out: it fills what was
    not scanned.
    """
    flat = pixels.reshape(-1, 3)
    bright = flat[(flat.min(axis=1) > 200) & (flat.min(axis=1) < 255)]
    if len(bright) < 0.01 * len(flat):
        return np.full(3, GLASS, np.float32)
    return np.asarray(np.median(bright, axis=0), np.float32)


def _without_small(mask: Mask, pixels: float) -> Mask:
    """`mask` without its parts of fewer than `pixels` pixels."""
    parts, _ = ndimage.label(mask)
    large = np.bincount(parts.ravel()) >= max(pixels, 1)
    large[0] = False
    return np.asarray(large[parts], bool)
