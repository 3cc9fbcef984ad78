import numpy as np
import pytest

from hnm.errors import SlideError
from hnm.params import Tissue
from hnm.slides.cutting.tissue import density_of, pen_mask, tissue_mask

HAEMATOXYLIN, EOSIN, DAB, ERYTHROCYTES = (
    (120, 80, 160),
    (225, 130, 180),
    (170, 120, 80),
    (197, 71, 102),
)
GREEN_PEN, BLUE_PEN, RED_PEN, BLACK_PEN, THIN_RED_PEN = (
    (45, 160, 135),
    (25, 30, 100),
    (205, 25, 30),
    (28, 24, 30),
    (235, 130, 140),
)
SETTINGS = Tissue(mpp=8.0, min_area_um2=10_000.0)


def inner(mask):
    """A mask's rectangle of interest without the rim that smoothing touches."""
    return mask[43:77, 53:107]


@pytest.mark.parametrize("colour", [HAEMATOXYLIN, EOSIN, DAB, ERYTHROCYTES, (235, 210, 228)])
def test_stained_tissue_is_found(tiny, colour):
    mask = tissue_mask(tiny.painted(120, 160, (50, 40, 60, 40, colour)), 8.0, SETTINGS)
    assert inner(mask).all()
    assert abs(int(mask.sum()) - 60 * 40) < 0.1 * 60 * 40


@pytest.mark.parametrize("colour", [GREEN_PEN, BLUE_PEN, RED_PEN, BLACK_PEN, THIN_RED_PEN])
def test_ink_is_no_tissue(tiny, colour):
    both = tiny.painted(
        120, 160, (50, 40, 60, 40, EOSIN), (0, 90, 160, 12, colour), (70, 40, 12, 40, colour)
    )
    mask = tissue_mask(both, 8.0, SETTINGS)
    assert not mask[88:104].any()
    assert not mask[42:78, 68:84].any()
    assert mask[43:77, 53:65].all()
    assert mask[43:77, 88:107].all()


@pytest.mark.parametrize("colour", [HAEMATOXYLIN, EOSIN, DAB, ERYTHROCYTES])
def test_stain_is_no_ink(tiny, colour):
    assert not pen_mask(density_of(tiny.painted(120, 160, (50, 40, 60, 40, colour))), 8.0).any()


@pytest.mark.parametrize("grey", [(120, 120, 121), (60, 60, 60), (200, 199, 200)])
def test_grey_is_no_tissue(tiny, grey):
    line_and_tissue = tiny.painted(120, 160, (0, 10, 160, 12, grey), (50, 40, 60, 40, EOSIN))
    mask = tissue_mask(line_and_tissue, 8.0, SETTINGS)
    assert not mask[:30].any()
    assert inner(mask).all()


@pytest.mark.parametrize(
    "glass", [(243, 241, 244), (250, 240, 225), (230, 230, 230), (255, 255, 255), (214, 222, 220)]
)
def test_the_glass_may_have_a_tint(glass):
    pixels = np.empty((120, 160, 3), np.uint8)
    pixels[:] = glass
    with pytest.raises(SlideError, match=r"no tissue of at least tissue.min_area_um2=10000"):
        tissue_mask(pixels, 8.0, SETTINGS)
    pixels[40:80, 50:110] = EOSIN
    mask = tissue_mask(pixels, 8.0, SETTINGS)
    assert inner(mask).all()
    assert mask.mean() < 0.15


def test_a_thumbnail_full_of_tissue_is_all_tissue(tiny):
    half = (0, 0, 80, 120, EOSIN)
    assert tissue_mask(
        tiny.painted(120, 160, (0, 0, 160, 120, HAEMATOXYLIN), half), 8.0, SETTINGS
    ).all()


def test_pale_tissue_beside_dense_tissue_is_kept(tiny):
    mask = tissue_mask(
        tiny.painted(120, 160, (0, 0, 100, 120, HAEMATOXYLIN), (110, 40, 40, 40, (232, 205, 224))),
        8.0,
        SETTINGS,
    )
    assert mask[43:77, 113:147].all()


@pytest.mark.parametrize(("mpp", "side"), [(8.0, 9), (8.0, 14), (4.0, 18), (4.0, 28)])
def test_areas_are_in_square_micrometres(tiny, mpp, side):
    """A speck of 72 µm side is dropped and one of 112 µm kept (10,000 µm²), whatever the
    resolution; a hole of either size is none of the tissue.
    """
    pixels = tiny.painted(
        400,
        400,
        (20, 20, 300, 250, EOSIN),
        (100, 100, side, side, tiny.GLASS),
        (350, 350, side, side, EOSIN),
    )
    mask = tissue_mask(pixels, mpp, SETTINGS)
    assert not mask[100 + side // 2, 100 + side // 2]
    assert mask[350 + side // 2, 350 + side // 2] == (side * mpp > 100)


def test_a_large_hole_stays_open(tiny):
    mask = tissue_mask(
        tiny.painted(400, 400, (20, 20, 300, 250, EOSIN), (100, 100, 40, 40, tiny.GLASS)),
        8.0,
        SETTINGS,
    )
    assert not mask[105:135, 105:135].any()


def test_the_mask_turns_with_the_slide(tiny):
    pixels = tiny.painted(
        120, 160, (50, 40, 60, 40, EOSIN), (0, 90, 160, 12, RED_PEN), (20, 10, 25, 30, HAEMATOXYLIN)
    )
    mask = tissue_mask(pixels, 8.0, SETTINGS)
    np.testing.assert_array_equal(
        tissue_mask(np.rot90(pixels).copy(), 8.0, SETTINGS), np.rot90(mask)
    )
    np.testing.assert_array_equal(tissue_mask(pixels[:, ::-1].copy(), 8.0, SETTINGS), mask[:, ::-1])


def test_light_that_is_not_transmitted_is_refused(tiny):
    fluorescence = 255 - tiny.painted(120, 160, (50, 40, 60, 40, EOSIN))
    with pytest.raises(
        SlideError, match=r"its background is dark \(median 12, 14, 11 of 255\), as in fluorescence"
    ) as caught:
        tissue_mask(fluorescence, 8.0, SETTINGS)
    assert caught.value.step == "tissue"
    salmon = np.full((50, 50, 3), (244, 128, 128), np.uint8)
    with pytest.raises(SlideError, match="its glass is salmon: the file holds YCbCr"):
        tissue_mask(salmon, 8.0, SETTINGS)


@pytest.mark.parametrize("glass", [(243, 241, 250), (250, 240, 225), (214, 222, 205)])
def test_glass_of_any_tint_has_no_density(glass):
    pixels = np.empty((120, 160, 3), np.uint8)
    pixels[:] = glass
    assert (density_of(pixels) == 0).all()
    pixels[40:80, 50:110] = EOSIN
    expected = np.log(np.array(glass) + 1) - np.log(np.array(EOSIN) + 1)
    assert density_of(pixels)[60, 80] == pytest.approx(np.maximum(expected, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("density", "is_ink"),
    [
        ((1.12, 1.0, 0.76), True),  # green: red above 1.1 of green, blue above 0.75 of it
        ((1.08, 1.0, 0.76), False),
        ((1.12, 1.0, 0.74), False),
        ((1.22, 1.2, 0.3), True),  # blue: red above green, and above 1.2
        ((1.22, 1.24, 0.3), False),
        ((1.18, 1.1, 0.3), False),
        ((0.17, 1.0, 0.75), True),  # red: blue above 0.74 of green, red below 0.18 of it
        ((0.19, 1.0, 0.75), False),
        ((0.17, 1.0, 0.73), False),
        ((1.22, 1.8, 1.8), True),  # black: all above 1.2, and the least above 0.65 of the greatest
        ((1.18, 1.75, 1.75), False),
        ((1.22, 1.9, 1.9), False),
        ((1.0, 2.1, 2.05), True),  # black: the mean above 1.7
        ((1.0, 2.05, 2.0), False),
        ((1.75, 1.79, 1.81), True),  # whatever has a colour: a range above 0.05
        ((1.75, 1.78, 1.79), False),
    ],
)
def test_ink_begins_where_its_definition_says(density, is_ink):
    pixels = np.zeros((40, 40, 3), np.float32)
    pixels[10:30, 10:30] = density
    assert pen_mask(pixels, 8.0)[20, 20] == is_ink


def test_a_part_of_just_the_least_area_is_tissue(tiny):
    pixels = tiny.painted(120, 160, (50, 40, 60, 40, EOSIN))
    mask = tissue_mask(pixels, 8.0, SETTINGS)
    area_um2 = float(mask.sum()) * 8.0**2
    same = tissue_mask(pixels, 8.0, Tissue(mpp=8.0, min_area_um2=area_um2))
    np.testing.assert_array_equal(same, mask)
    with pytest.raises(SlideError, match="no tissue of at least"):
        tissue_mask(pixels, 8.0, Tissue(mpp=8.0, min_area_um2=area_um2 + 1))
