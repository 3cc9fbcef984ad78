"""No tile that is mostly glass is cut, wherever the glass lies: in a hole, in a notch that the
scan's edge closes, in a ring.

The oracle is the painted glass itself. One pixel of a slide is 8 µm, as fine as the mask; a tile of
16 px has 128 µm.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.errors import SlideError
from hnm.params import Tiles, Tissue
from hnm.slides.cutting.cut import Layout, Plan, plan_of
from hnm.slides.reading.canvas import Box

MPP, TILE_PX, SIDE = 8.0, 16, 96
STROMA, GLASS, UNSCANNED = (225, 150, 190), (243, 241, 244), (255, 255, 255)
HOLE = (17, 18)
"""Height and width in pixels of a hole of 19,584 µm²: a whole tile fits into it."""
BLUR = 0.2
"""The mask is smoothed by a pixel, so that it takes up to two pixels along a border for tissue: so
much of a tile.
"""


class Painted:
    """A slide of one level, in memory."""

    vendor = "painted"
    level_downsamples = (1.0,)
    background = UNSCANNED

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.dimensions = (pixels.shape[1], pixels.shape[0])
        self.bounds = Box(0, 0, *self.dimensions)
        self.mpp = (MPP, MPP)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        region = np.full((height, width, 3), self.background, np.uint8)
        part = self._pixels[y : y + height, x : x + width]
        region[: part.shape[0], : part.shape[1]] = part
        return region

    def check_unchanged(self) -> None:
        """It never changes."""


def plan(
    is_glass: npt.NDArray[np.bool_], colour: tuple[int, int, int] = GLASS, min_tissue: float = 0.5
) -> Plan:
    pixels = np.where(is_glass[:, :, None], np.array(colour), np.array(STROMA)).astype(np.uint8)
    section = Tiles(mpp=MPP, tile_px=TILE_PX, min_tissue=min_tissue)
    return plan_of(
        Painted(pixels), Layout("s", "s", (MPP, MPP), "", None, "", Tissue(mpp=MPP), section)
    )


def glass_shares(is_glass: npt.NDArray[np.bool_], made: Plan) -> list[float]:
    """Of each tile that is kept."""
    return [
        float(is_glass[y : y + TILE_PX, x : x + TILE_PX].mean())
        for x, y in made.grid.corners[made.with_tissue]
    ]


def glass_at(*boxes: tuple[int, int, int, int], side: int = SIDE) -> npt.NDArray[np.bool_]:
    """(side, side): where the boxes (top, left, height, width) lie."""
    is_glass = np.zeros((side, side), bool)
    for top, left, height, width in boxes:
        is_glass[top : top + height, left : left + width] = True
    return is_glass


@pytest.mark.parametrize("top", range(TILE_PX))
def test_a_hole_in_the_middle_wherever_the_grid_lies(top):
    for left in range(TILE_PX):
        is_glass = glass_at((32 + top, 32 + left, *HOLE))
        assert (
            max(glass_shares(is_glass, plan(is_glass, UNSCANNED if top == left else GLASS)))
            <= 0.5 + BLUR
        )


@pytest.mark.parametrize("colour", [GLASS, UNSCANNED])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("along", [0, 5, 16, 21, 40, 47])
def test_a_notch_at_each_edge(along, turns, colour):
    """From 0, where it lies in a corner, to the middle of an edge: tissue closes it on all other
    sides.
    """
    is_glass = np.rot90(glass_at((0, along, *HOLE), (0, 70, 5, 3)), turns)
    made = plan(is_glass, colour)
    assert max(glass_shares(is_glass, made)) <= 0.5 + BLUR
    assert len(made.with_tissue) >= 30  # of 36: the notch takes few


def test_a_ring_of_tissue_around_glass():
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot(y - SIDE / 2, x - SIDE / 2)
    is_glass = (radius > 30) | (radius < 9)  # the disc within has 16,286 µm²
    made = plan(is_glass)
    assert max(glass_shares(is_glass, made)) <= 0.5 + BLUR
    assert not made.mask[radius < 6].any()
    assert made.mask[(radius > 12) & (radius < 28)].all()


def test_a_lumen_costs_no_tile_that_is_mostly_tissue():
    is_glass = glass_at((34, 34, 9, 9))  # a third of the tile at (32, 32)
    made = plan(is_glass)
    assert len(made.with_tissue) == 36
    assert made.shares.min() == made.shares[2 * 6 + 2] < 0.9


def test_each_tile_of_the_grid_is_kept_or_too_little_or_glass():
    """Tissue is the left half and a strip of the next column of tiles: 24 of 36 tiles, 6 of which
    hold a quarter of it.
    """
    is_glass = glass_at((0, 52, SIDE, 44))
    made = plan(is_glass)
    assert [len(made.with_tissue), len(made.too_little), int((made.shares == 0).sum())] == [
        18,
        6,
        12,
    ]
    assert np.unique(made.grid.corners[made.too_little, 0]).tolist() == [48]
    assert len(plan(is_glass, min_tissue=0.2).with_tissue) == 24


def test_tissue_at_the_right_and_lower_edge_is_cut():
    """Of 90 pixels five tiles of 16 take 80: the tissue in the corner beyond is seen by the
    moved-in column and row alone.
    """
    is_glass = np.ones((90, 90), bool)
    is_glass[78:, 78:] = False
    made = plan(is_glass)
    assert made.grid.corners[made.with_tissue].tolist() == [[74, 74]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(8, 30), st.integers(8, 30)),
        max_size=12,
    ),
    st.integers(SIDE, SIDE + TILE_PX),
)
def test_no_tile_is_mostly_glass(boxes, side):
    is_glass = glass_at(*boxes, side=side)
    try:
        made = plan(is_glass)
    except SlideError:  # hardly any tissue is left
        assert is_glass.mean() > 0.3
        return
    assert max(glass_shares(is_glass, made)) < 0.8


def test_a_mask_from_elsewhere_stands_as_it_is(tmp_path: Path):
    """A person's outline takes in a hole: what is drawn is cut."""
    outline = tmp_path / "m.geojson"
    outline.write_text(
        '{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [96, 0], [96,'
        " 96], [0, 96], [0, 0]]]}}"
    )
    is_glass = glass_at((32, 32, *HOLE))
    pixels = np.where(is_glass[:, :, None], np.array(GLASS), np.array(STROMA)).astype(np.uint8)
    layout = Layout(
        "s", "s", (MPP, MPP), "", outline, None, Tissue(mpp=MPP), Tiles(mpp=MPP, tile_px=TILE_PX)
    )
    assert len(plan_of(Painted(pixels), layout).with_tissue) == 36
