"""The canvas of a slide, and the corner that coordinates count from: level 0's or the scan's.

OpenSlide and hnm count from the corner of level 0. QuPath counts from the corner of the scan
(`openslide.bounds-x` and `-y`), which lies elsewhere on slides of MIRAX and Leica. Every coordinate
inside of hnm is a level-0 pixel. `hnm.slides.annotations` shifts what people draw on its way in and
out, and `hnm.slides.cutting.masks` shifts images.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Origin = Literal["level_0", "bounds"]
"""The corner that coordinates count from."""
OriginParam = Literal["auto", "level_0", "bounds"]
"""A value of `cohort.origin`; `auto` follows what a file says of itself, or looks like."""
By = Literal["file", "shape", "param", "qupath", "nothing"]
"""The reason for the origin of a file: its own word, a shape that leaves no choice,
`cohort.origin`, the looks of QuPath's files, or none (then it is level 0).
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
        """The left, top, right and bottom edge."""
        return self.x, self.y, self.x + self.width, self.y + self.height


@dataclass(frozen=True)
class Canvas:
    """Level 0 of a slide, and where the scan lies on it."""

    width: int
    height: int
    bounds: Box
    """The box of the scan: OpenSlide's bounds, or all of level 0 where the slide has none."""
    origin: OriginParam = "auto"
    """The origin of drawings that do not state theirs."""

    @property
    def whole(self) -> Box:
        """All of level 0."""
        return Box(0, 0, self.width, self.height)

    @property
    def is_offset(self) -> bool:
        """Whether the two origins differ."""
        return self.corner("bounds") != (0, 0)

    def corner(self, origin: Origin) -> tuple[int, int]:
        """Returns the level-0 pixel that is (0, 0) where coordinates count from `origin`."""
        return (self.bounds.x, self.bounds.y) if origin == "bounds" else (0, 0)


def canvases_of(slides: "pd.DataFrame") -> dict[str, Canvas]:
    """Returns the canvas of each slide of a `SLIDES` table, by its id."""
    columns = [
        "slide_id",
        "width",
        "height",
        "origin",
        "bounds_x",
        "bounds_y",
        "bounds_width",
        "bounds_height",
    ]
    return {
        slide_id: Canvas(width, height, Box(*bounds), origin)
        for slide_id, width, height, origin, *bounds in slides[columns].itertuples(index=False)
    }


def aspects_of(slides: "pd.DataFrame") -> dict[str, float]:
    """Returns a tile's height over its width, in level-0 pixels, by the id of a `SLIDES` slide."""
    return dict(zip(slides["slide_id"], slides["mpp_x"] / slides["mpp_y"], strict=True))
