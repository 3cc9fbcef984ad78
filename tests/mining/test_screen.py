"""The artefact screen: measures by hand, invariances, and artefacts drawn over drawn tissue."""

import numpy as np
import pytest
from scipy import ndimage

from hnm import params
from hnm.mining import screen

STROMA, NUCLEUS, BLOOD = (214, 140, 190), (90, 60, 140), (190, 70, 100)
LIMITS = params.Screen(max_pen_share=0.05, max_blur=0.5, max_fold_share=0.15)


def tissue(seed: int, side: int = 96) -> np.ndarray:
    """Stroma with nuclei of 7 px, a few cells of blood, and noise."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    pixels = np.empty((side, side, 3))
    pixels[:] = STROMA
    for colour, count in ((NUCLEUS, 30), (BLOOD, 3)):
        for centre_x, centre_y in draw.uniform(0, side, (count, 2)):
            pixels[(x - centre_x) ** 2 + (y - centre_y) ** 2 < 12] = colour
    return np.clip(pixels + draw.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((32, 32, 3), colour, np.uint8)


@pytest.mark.parametrize(
    ("colour", "inked"),
    [
        ((30, 150, 110), 1.0),  # green
        ((50, 110, 200), 1.0),  # blue
        ((200, 20, 30), 1.0),  # red
        (STROMA, 0.0),
        (NUCLEUS, 0.0),
        (BLOOD, 0.0),
        ((240, 242, 243), 0.0),  # glass
        ((100, 60, 220), 0.0),  # a strong haematoxylin: violet
    ],
)
def test_a_pen_is_known_by_its_colour(colour: tuple[int, int, int], inked: float) -> None:
    assert screen.pen_share(plain(colour)) == inked


def test_the_share_of_a_pen_is_that_of_its_pixels() -> None:
    tile = plain(STROMA)
    tile[:4, :16] = (30, 150, 110)
    assert screen.pen_share(tile) == 64 / 1024


def test_blur_grows_as_focus_is_lost() -> None:
    tile = tissue(1)
    values = [
        screen.blur(tile),
        *(screen.blur(ndimage.gaussian_filter(tile, (sigma, sigma, 0))) for sigma in (1, 2, 4)),
    ]
    assert values == sorted(values) and values[0] < 0.35 and values[-1] > 0.6
    assert screen.blur(plain(STROMA)) == 1.0


def doubled(tile: np.ndarray, width: int) -> np.ndarray:
    """The tile's first `width` columns lie upon its last."""
    folded = tile.copy()
    folded[:, :width] = tile[:, :width] / 255 * (tile[:, ::-1][:, :width] / 255) * 255
    return folded


def test_the_share_of_a_fold_is_that_of_doubled_tissue() -> None:
    tile = np.full((64, 64, 3), (120, 120, 120), np.uint8)  # density 0.75; doubled 1.51
    assert screen.fold_share(tile) == 0.0
    assert screen.fold_share(doubled(tile, 16)) == pytest.approx(0.25, abs=1 / 64)
    assert screen.fold_share(doubled(tile, 64)) == 0.0  # nothing to compare with
    assert screen.fold_share(plain((243, 241, 244))) == 0.0  # glass


@pytest.mark.parametrize("measure", [screen.pen_share, screen.blur, screen.fold_share])
def test_a_turned_tile_measures_the_same(measure: object) -> None:
    tile = doubled(tissue(4), 30)
    tile[60:70] = (30, 150, 110)
    assert measure(np.rot90(tile)) == pytest.approx(measure(tile), abs=1e-3) and measure(tile) > 0  # type: ignore[operator]


def test_drawn_artefacts_are_found_and_good_tiles_pass() -> None:
    good = [tissue(seed) for seed in range(12)]
    inked = [tile.copy() for tile in good]
    for tile in inked:
        tile[20:40] = tile[20:40] * (40 / 255, 160 / 255, 120 / 255)
    blurred = [ndimage.gaussian_filter(tile, (3, 3, 0)) for tile in good]
    darker = [(tile * 0.7).astype(np.uint8) for tile in good]
    found = {
        name: screen.flaws_of(np.stack(tiles), LIMITS)
        for name, tiles in {"": good, "pen": inked, "blur": blurred, "dark": darker}.items()
    }
    assert found == {"": [""] * 12, "pen": ["pen"] * 12, "blur": ["blur"] * 12, "dark": [""] * 12}
    assert (
        screen.flaws_of(np.stack([doubled(tile, 32) for tile in darker]), LIMITS) == ["fold"] * 12
    )


def test_a_limit_of_1_takes_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmeasured(tile: np.ndarray) -> float:
        raise AssertionError

    tiles = np.stack([tissue(0), ndimage.gaussian_filter(tissue(0), (4, 4, 0))])
    for name in ("pen_share", "fold_share"):
        monkeypatch.setattr(screen, name, unmeasured)
    assert screen.flaws_of(tiles, params.Screen(max_blur=0.5)) == ["", "blur"]
