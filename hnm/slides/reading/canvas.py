"""From where coordinates count: the corner of level 0, or that of the scan on it.

OpenSlide and hnm count from the corner of level 0. QuPath counts from the corner of the scan
(`openslide.bounds-x` and `-y`), which lies elsewhere on slides of MIRAX and Leica. Every coordinate
inside of hnm is a level-0 pixel: what people draw is shifted by `hnm.slides.annotations` on its way
in and on its way out, and images by `hnm.slides.cutting.masks`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Origin = Literal["level_0", "bounds"]
"""What coordinates count from."""
OriginParam = Literal["auto", "level_0", "bounds"]
"""As `cohort.origin`; `auto` leaves it to what a file says, or looks like."""
By = Literal["file", "shape", "param", "qupath", "nothing"]
"""What decides from where a file counts: itself, a shape that leaves no choice, `cohort.origin`,
its looks, or nothing (then it is level 0).
"""


@dataclass(frozen=True)
class Box:
    """A rectangle in level-0 pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def ends(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom."""
        return self.x, self.y, self.x + self.width, self.y + self.height


@dataclass(frozen=True)
class Canvas:
    """Level 0 of a slide, and where the scan lies on it."""

    width: int
    height: int
    bounds: Box
    """Of the scan: `openslide.bounds-*`, or all of level 0 where the slide has none."""
    origin: OriginParam = "auto"
    """What a drawing counts from that does not say so itself."""

    @property
    def whole(self) -> Box:
        """All of level 0."""
        return Box(0, 0, self.width, self.height)

    @property
    def is_offset(self) -> bool:
        """Whether it makes a difference what a drawing counts from."""
        return self.corner("bounds") != (0, 0)

    def corner(self, origin: Origin) -> tuple[int, int]:
        """The level-0 pixel that is (0, 0) where coordinates count from `origin`."""
        return (self.bounds.x, self.bounds.y) if origin == "bounds" else (0, 0)


def canvases_of(slides: "pd.DataFrame") -> dict[str, Canvas]:
    """The canvas of each slide of a `SLIDES` table, by its id."""
    columns = [
        "slide_id",
        "width",
        "height",
        "bounds_x",
        "bounds_y",
        "bounds_width",
        "bounds_height",
        "origin",
    ]
    return {
        slide_id: Canvas(width, height, Box(x, y, bounds_width, bounds_height), origin)
        for slide_id, width, height, x, y, bounds_width, bounds_height, origin in slides[
            columns
        ].itertuples(index=False)
    }


def aspects_of(slides: "pd.DataFrame") -> dict[str, float]:
    """Height of a tile over its width, in level-0 pixels, of each slide of a `SLIDES` table, by its
    id.
    """
    return dict(zip(slides["slide_id"], slides["mpp_x"] / slides["mpp_y"], strict=True))
