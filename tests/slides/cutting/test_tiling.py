from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hnm.errors import SlideError
from hnm.params import Tiles
from hnm.slides.cutting.tiling import grid_of, tile_pixels, tissue_shares
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.thumbnails import Thumbnail


def thumbnail_of(width: int, height: int, x: int, y: int, scale: tuple[float, float]) -> Thumbnail:
    return Thumbnail(
        np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool), x, y, scale, 8.0
    )


def grid_along(
    extent: int, tile_px: int = 100, mpp: float = 1.0, tiles_mpp: float = 1.0
) -> list[int]:
    """Where the tiles of a scan of `extent` pixels begin, the same along both axes."""
    grid = grid_of(
        Box(0, 0, extent, extent), (mpp, mpp), (1.0,), Tiles(mpp=tiles_mpp, tile_px=tile_px)
    )
    starts = sorted(set(grid.corners[:, 0].tolist()))
    assert grid.corners.tolist() == [[x, y] for y in starts for x in starts]
    return starts


def test_a_grid_by_hand():
    """Tiles of 20 px at 1 µm/px are 80 x 40 level-0 pixels where x has 0.25 and y 0.5 µm/px.

    Three fit into 250 px across and two into 99 px down. A level whose pixels are 1.9 px has 131 x
    52 of them, and a tile is read as 43 x 22: the last begin 88 and 30 of them behind the first.
    """
    grid = grid_of(Box(1000, 30, 250, 99), (0.25, 0.5), (1.0, 1.9, 8.0), Tiles(mpp=1.0, tile_px=20))
    across = [1000, 1080, 1160, 1167]
    assert grid.corners.tolist() == [[x, y] for y in (30, 70, 87) for x in across]
    assert (grid.size, grid.side, grid.mpp) == ((80.0, 40.0), 80, 1.0)
    assert (grid.level, grid.as_is) == (1, False)  # level 2 is coarser than wanted along both axes
    assert grid.read_px == pytest.approx((80 / 1.9, 40 / 1.9))


@pytest.mark.parametrize(
    ("mpp", "level"),
    [
        ((0.25, 0.5), 1),
        ((0.5, 0.25), 1),
        ((0.25, 0.25), 2),
        ((0.5, 0.5), 1),
        ((0.125, 0.5), 1),
        ((0.6, 0.125), 0),
    ],
)
def test_the_level_is_fine_enough_for_the_axis_that_needs_more(mpp, level):
    """Of pixels of 0.25 x 0.5 µm a tile at 1 µm/px needs every fourth along x, but every second
    along y: a level of every fourth enlarges y.
    """
    grid = grid_of(Box(0, 0, 4000, 4000), mpp, (1.0, 2.0, 4.0), Tiles(mpp=1.0, tile_px=32))
    assert grid.level == level
    assert min(grid.read_px) >= 32


@pytest.mark.parametrize(
    ("extent", "starts"),
    [
        (300, [0, 100, 200]),
        (301, [0, 100, 200, 201]),
        (399, [0, 100, 200, 299]),
        (100, [0]),
        (101, [0, 1]),
        (199, [0, 99]),
        (200, [0, 100]),
    ],
)
def test_the_last_column_and_row_end_at_the_edge(extent, starts):
    assert grid_along(extent) == starts


@pytest.mark.parametrize("extent, starts", [(440, [0]), (880, [0, 440]), (885, [0, 440, 445])])
def test_a_tile_too_large_by_float_error_still_fits(extent, starts):
    """1.1 µm/px over 0.25 µm/px is 4.4, but 100 px of it are 440.00000000000006 as floats are
    multiplied.
    """
    assert grid_along(extent, 100, 0.25, 1.1) == starts


@pytest.mark.parametrize("extent, starts", [(48, [0]), (144, [0, 48, 96]), (145, [0, 48, 96, 97])])
def test_a_tile_too_small_by_float_error_makes_no_tile_more(extent, starts):
    """0.3 µm/px over 0.1 µm/px is 2.9999999999999996: 48 px are more than a tile."""
    assert grid_along(extent, 16, 0.1, 0.3) == starts


def test_a_scan_of_one_tile_has_one_whose_corner_is_its_own():
    """At 0.25 µm/px a tile of 32 px at 1 µm/px has 128 px: of a level of every third pixel it is
    read as 43, and the scan has 42 whole ones.
    """
    grid = grid_of(Box(7, 9, 128, 128), (0.25, 0.25), (1.0, 3.0), Tiles(mpp=1.0, tile_px=32))
    assert (grid.level, grid.corners.tolist()) == (1, [[7, 9]])


def test_a_corner_is_not_rounded_beyond_the_edge():
    """Four tiles of 52.5 px fill 210 px; the last corner, 157.5, would be rounded to 158."""
    assert grid_along(210, 42, 0.8) == [0, 52, 105, 157]


def test_fractional_tiles_do_not_drift():
    """At 0.3 µm/px a tile of 10 px at 0.5 µm/px is 16.67 level-0 pixels: corners are rounded one by
    one, and none sticks out.
    """
    section = Tiles(mpp=0.5, tile_px=16).model_copy(update={"tile_px": 10})
    grid = grid_of(Box(0, 0, 110, 17), (0.3, 0.3), (1.0,), section)
    assert grid.corners[:, 0].tolist() == [0, 17, 33, 50, 67, 83, 93]
    assert grid.side == 17


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(1, 12),
    st.integers(0, 10**6),
    st.fractions(Fraction(1, 4), 1, max_denominator=40),
    st.integers(16, 64),
)
def test_the_number_of_tiles_is_that_of_exact_fractions(start, whole, rest, mpp, tile_px):
    """In fractions, `whole` tiles and a part of one fill the scan: so many tiles there are, and one
    more where a whole pixel is left.
    """
    size = tile_px / mpp
    extent = ceil(whole * size + size * Fraction(rest, 10**6 + 1))
    grid = grid_of(
        Box(start, 0, extent, 999),
        (float(mpp), float(mpp)),
        (1.0,),
        Tiles(mpp=1.0, tile_px=tile_px),
    )
    if abs(1 / mpp - 1) <= Fraction(2, 100):  # taken as they are
        size = Fraction(tile_px)
    last = floor(extent - size)
    regular = [min(round(number * size), last) for number in range(floor(extent / size))]
    expected = regular + [last] * (last > regular[-1])
    found = grid.corners[grid.corners[:, 1] == 0, 0] - start
    assert len(found) == len(expected)
    assert (
        np.abs(found - expected).max() <= 1
    )  # at exactly half a pixel the float may fall on either side


@pytest.mark.parametrize(
    ("slide_mpp", "level", "as_is"),
    [(0.25, 1, True), (0.2525, 1, True), (0.2460, 1, True), (0.2600, 0, False), (0.2440, 1, False)],
)
def test_pixels_within_two_percent_are_taken_as_they_are(slide_mpp, level, as_is):
    grid = grid_of(
        Box(0, 0, 4000, 4000), (slide_mpp, slide_mpp), (1.0, 4.0, 16.0), Tiles(mpp=1.0, tile_px=100)
    )
    assert (grid.level, grid.as_is) == (level, as_is)
    if as_is:
        assert grid.size == (400.0, 400.0)
        assert grid.mpp == 4 * slide_mpp
    else:
        assert grid.size == pytest.approx((100 / slide_mpp, 100 / slide_mpp))
        assert grid.mpp == 1.0


def test_a_slide_coarser_than_wanted_is_refused():
    with pytest.raises(
        SlideError,
        match=r"its finest level has 0.52 µm per pixel, coarser than tiles.mpp=0.5; raise that",
    ) as caught:
        grid_of(Box(0, 0, 4000, 4000), (0.5, 0.52), (1.0,), Tiles(mpp=0.5, tile_px=224))
    assert caught.value.step == "tiles"


@pytest.mark.parametrize(
    ("side", "mpp", "tile_px", "message"),
    [
        (223, 0.5, 224, r"its scan of 223 x 223 pixels is smaller than one tile \(224 x 224\)"),
        (1_000_000, 0.5, 16, r"its grid would have 62500 x 62500 tiles, more than 10000000; raise"),
        (
            1_000_000,
            50.0,
            4096,
            r"one tile would be read from 409600 x 409600 pixels, more than are read at once",
        ),
    ],
)
def test_a_grid_that_cannot_be_cut_is_refused(side, mpp, tile_px, message):
    with pytest.raises(SlideError, match=message) as caught:
        grid_of(Box(0, 0, side, side), (0.5, 0.5), (1.0,), Tiles(mpp=mpp, tile_px=tile_px))
    assert caught.value.step == "tiles"


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Box, st.integers(0, 500), st.integers(0, 500), st.integers(330, 900), st.integers(330, 900)
    ),
    st.floats(0.2, 1.0),
    st.floats(0.2, 1.0),
    st.integers(16, 64),
)
def test_tiles_cover_the_bounds_and_only_the_last_overlap(bounds, mpp_x, mpp_y, tile_px):
    grid = grid_of(bounds, (mpp_x, mpp_y), (1.0, 2.0, 4.0), Tiles(mpp=1.0, tile_px=tile_px))
    for axis, start, extent in ((0, bounds.x, bounds.width), (1, bounds.y, bounds.height)):
        edges = np.unique(grid.corners[:, axis])
        steps = np.diff(edges)
        size = grid.size[axis]
        assert edges[0] == start
        downsample = (1.0, 2.0, 4.0)[grid.level]
        assert (
            start + extent - (1 if downsample == 1 else 2 * downsample)
            < edges[-1] + size
            <= start + extent + 1e-5
        )
        assert (
            edges[-1] - start + downsample * ceil(grid.read_px[axis] - 1e-6) <= extent
            or len(edges) == 1
        )
        assert ((np.abs(steps[:-1] - size) < 1.01) & (steps[-1:] < size + 1.01)).all()
    assert len(np.unique(grid.corners, axis=0)) == len(grid.corners)


def test_tissue_shares_by_hand():
    """Mask pixels are 10 x 5 level-0 pixels; the second tile (20 x 20 at x=120) covers a column
    wholly and the next one to its half.
    """
    grid = grid_of(Box(100, 50, 40, 20), (1.0, 1.0), (1.0,), Tiles(mpp=1.0, tile_px=20))
    mask = np.zeros((4, 4), bool)
    mask[:2, 2] = True
    view = thumbnail_of(4, 4, 100, 50, (10.0, 5.0))
    assert tissue_shares(grid, mask, view).tolist() == [0.0, 0.25]
    assert tissue_shares(grid, mask, replace(view, x=105)).tolist() == pytest.approx([0.0, 0.25])
    assert tissue_shares(grid, mask, replace(view, x=115)).tolist() == pytest.approx([0.0, 0.125])


def test_tiles_beside_tissue_have_exactly_none():
    """Half of the pixels of the upper 30 of 60 rows are tissue, at random: below them, sums of
    floats leave nothing behind.
    """
    mask = np.zeros((60, 60), bool)
    mask[:30] = np.random.default_rng(0).random((30, 60)) < 0.5
    grid = grid_of(Box(5, 9, 426, 426), (0.7, 0.7), (1.0,), Tiles(mpp=1.0, tile_px=16))
    shares = tissue_shares(grid, mask, thumbnail_of(60, 60, 5, 9, (7.1, 7.1)))
    below = grid.corners[:, 1] > 9 + 30 * 7.1
    assert below.sum() == 9 * 19
    assert set(shares[below]) == {0.0}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(3, 9), st.floats(3, 9), st.integers(16, 40))
def test_tissue_shares_as_a_loop_over_pixels(seed, scale_x, scale_y, tile_px):
    mask = np.random.default_rng(seed).random((12, 15)) < 0.5
    bounds = Box(7, 3, int(15 * scale_x), int(12 * scale_y))
    grid = grid_of(
        bounds,
        (0.7, 0.9),
        (1.0,),
        Tiles(mpp=1.0, tile_px=16).model_copy(update={"tile_px": tile_px // 2}),
    )
    shares = tissue_shares(grid, mask, thumbnail_of(15, 12, 7, 3, (scale_x, scale_y)))
    for (x, y), share in list(zip(grid.corners, shares, strict=True))[:: max(1, len(shares) // 5)]:
        covered = 0.0
        for row in range(12):
            for column in range(15):
                if mask[row, column]:
                    left, top = 7 + column * scale_x, 3 + row * scale_y
                    width = max(0, min(x + grid.size[0], left + scale_x) - max(x, left))
                    height = max(0, min(y + grid.size[1], top + scale_y) - max(y, top))
                    covered += width * height
        assert share == pytest.approx(covered / (grid.size[0] * grid.size[1]), abs=1e-5)


def test_pixels_as_they_are():
    grid = grid_of(Box(0, 0, 64, 64), (1.0, 1.0), (1.0,), Tiles(mpp=1.0, tile_px=32))
    region = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert tile_pixels(region, grid) is region


def test_pixels_are_averaged_over_the_tile_and_nothing_else():
    """A tile of 16 px at 1 µm/px is 40 x 40 pixels at 0.4: what was read beyond them does not
    count.
    """
    grid = grid_of(Box(0, 0, 400, 400), (0.4, 0.4), (1.0,), Tiles(mpp=1.0, tile_px=16))
    assert grid.read_px == (40.0, 40.0)
    region = np.full((40, 40, 3), (200, 100, 50), np.uint8)
    region[:, 20:] = (20, 240, 90)
    pixels = tile_pixels(region, grid)
    assert pixels.shape == (16, 16, 3)
    assert (pixels[:, :7] == (200, 100, 50)).all()
    assert (pixels[:, 9:] == (20, 240, 90)).all()
    assert np.abs(pixels.mean((0, 1)) - region.mean((0, 1))).max() < 1


def test_pixels_come_from_the_corner_on():
    grid = grid_of(Box(0, 0, 400, 400), (0.4, 0.4), (1.0,), Tiles(mpp=1.0, tile_px=16))
    region = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    expected = Image.fromarray(region).resize((16, 16), Image.Resampling.HAMMING)
    np.testing.assert_array_equal(tile_pixels(region, grid), np.asarray(expected))
