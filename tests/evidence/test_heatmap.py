import io
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from hnm.evidence.heatmap import BACKGROUND, shrunk, slide_picture, tile_picture
from hnm.slides.annotations import Region
from hnm.slides.pack import Pack, PackTile, encode, write_pack

# three columns and two rows of 10 x 20 level-0 pixels, one place empty; corners as a grid of 10.4 rounds them
CORNERS = [(100, 50), (110, 50), (121, 50), (100, 70), (121, 70)]
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90), (20, 20, 20)]
SCORES = np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32)


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    tiles = [PackTile(x, y, 1.0, encode(np.full((16, 16, 3), colour, np.uint8), 95)) for (x, y), colour in zip(CORNERS, COLOURS, strict=True)]
    write_pack(tmp_path / "s.h5", tiles, slide_id="s", mpp=0.5, tile_px=16, side=10, planned=5)
    return Pack(tmp_path / "s.h5")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_each_tile_lies_at_its_place(pack: Pack) -> None:
    picture = slide_picture(pack, SCORES, 2.0, [])
    mosaic = pixels(picture.mosaic)
    assert mosaic.shape == (picture.height, picture.width, 3) == (32, 48, 3)
    centres = {(8, 8): COLOURS[0], (8, 24): COLOURS[1], (8, 40): COLOURS[2], (24, 8): COLOURS[3], (24, 40): COLOURS[4], (24, 24): (BACKGROUND,) * 3}
    for place, colour in centres.items():
        assert mosaic[place].tolist() == pytest.approx(colour, abs=12)


def test_scores_are_ever_darker_and_empty_places_transparent(pack: Pack) -> None:
    heat = pixels(slide_picture(pack, SCORES, 2.0, []).heat)
    assert heat.shape == (2, 3, 4)
    assert heat[1, 1, 3] == 0
    lightness = [heat[place][:3].astype(int).sum() for place in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2))]
    assert lightness == sorted(lightness, reverse=True)
    assert len(set(lightness)) == 5


def test_outlines_are_in_the_pictures_own_units(pack: Pack) -> None:
    # the picture spans x 100..131 (48 units) and y 50..90 (32 units)
    outside = Region("fold", shapely.box(131 - 15.5, 70, 300, 90))
    [(name, path)] = slide_picture(pack, SCORES, 2.0, [outside]).outlines
    assert name == "fold"
    points = {tuple(map(float, point.split())) for point in path.strip("MZ").split("L")}
    assert points == {(24.0, 16.0), (24.0, 32.0), (48.0, 16.0), (48.0, 32.0)}


def test_holes_have_outlines_too(pack: Pack) -> None:
    ring = shapely.box(100, 50, 130, 90) - shapely.box(110, 60, 120, 70)
    [(_, path)] = slide_picture(pack, SCORES, 2.0, [Region("tumour", ring)]).outlines
    assert path.count("M") == path.count("Z") == 2


def test_large_tiles_are_shrunk_and_small_ones_kept() -> None:
    large = np.zeros((224, 224, 3), np.uint8)
    large[:, 112:] = 250
    assert pixels(tile_picture(large)).shape == (112, 112, 3)
    assert pixels(tile_picture(large[:96, :96])).shape == (96, 96, 3)
    assert shrunk(large, 2)[:, :, 0].tolist() == [[0, 250], [0, 250]]
