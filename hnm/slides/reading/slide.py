"""What every reader gives of a slide: its size, its resolution, and the pixels of its regions."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hnm.errors import SlideError
from hnm.slides.reading.canvas import Box

RGB = npt.NDArray[np.uint8]
"""Pixels, (height, width, 3)."""

MOST_REGION_PX = 1 << 27
"""Pixels of the largest region that is read at once. OpenSlide needs 512 MiB for it."""


class RegionError(SlideError):
    """One region of a slide cannot be read; others can."""


class Mpp(NamedTuple):
    """µm per level-0 pixel along each axis."""

    x: float
    y: float


class Scale(NamedTuple):
    """Level-0 pixels per pixel of a picture along each axis."""

    x: float
    y: float


class Slide(Protocol):
    """The members of a slide that tiling needs. Any reader that has them will do."""

    dimensions: tuple[int, int]
    """Width and height of level 0 in pixels."""
    bounds: Box
    """The part of level 0 that was scanned. There is no tissue outside of it."""
    mpp: Mpp | None
    """The resolution that the file states, or None where it states none."""
    level_downsamples: tuple[float, ...]
    """Level-0 pixels per pixel of each level, ascending from 1."""
    background: tuple[int, int, int]
    """The RGB colour of what was not scanned."""

    def read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        """Returns `width` x `height` pixels of `level`; their corner is the level-0 pixel (x, y).

        Raises:
            RegionError: the file is damaged there.
        """

    def check_unchanged(self) -> None:
        """Raises `ChangedError` where the file is no longer the one that was opened."""


def check_region(x: int, y: int, level: int, width: int, height: int) -> None:
    """Raises `RegionError` where a region has more pixels than are read at once."""
    if width * height > MOST_REGION_PX:
        raise RegionError(
            f"region {x=} {y=} {level=} {width=} {height=} has more than {MOST_REGION_PX} pixels",
            step="tiles",
        )
