import io
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from hnm.evidence.pages.heatmap import BACKGROUND, shrunk, slide_picture, tile_picture
from hnm.slides.annotations import Region
from hnm.slides.cutting.pack import Pack, PackTile, encode, write_pack

# three columns and two rows of 10 x 20 level-0 pixels, one place empty; corners as a grid of 10.4
# rounds them
CORNERS = [(100, 50), (110, 50), (121, 50), (100, 70), (121, 70)]
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90), (20, 20, 20)]
SCORES = np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32)


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    tiles = [
        PackTile(x, y, 1.0, encode(np.full((16, 16, 3), colour, np.uint8), 95))
        for (x, y), colour in zip(CORNERS, COLOURS, strict=True)
    ]
    write_pack(tmp_path / "s.h5", tiles, slide_id="s", mpp=0.5, tile_px=16, side=10, planned=5)
    return Pack(tmp_path / "s.h5")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_each_tile_lies_at_its_place(pack: Pack) -> None:
    picture = slide_picture(pack, SCORES, 2.0, [])
    mosaic = pixels(picture.mosaic)
    assert (
        mosaic.shape == (picture.height, picture.width, 3) == (32, 50, 3)
    )  # 31 x 40 level-0 pixels, of which a tile's 10 x 20 are 16 x 16
    centres = {
        (8, 8): COLOURS[0],
        (8, 24): COLOURS[1],
        (8, 42): COLOURS[2],
        (24, 8): COLOURS[3],
        (24, 42): COLOURS[4],
        (24, 25): (BACKGROUND,) * 3,
    }
    for place, colour in centres.items():
        assert mosaic[place].tolist() == pytest.approx(colour, abs=12)


def test_scores_are_ever_darker_and_empty_places_transparent(pack: Pack) -> None:
    heat = pixels(slide_picture(pack, SCORES, 2.0, []).heat)
    assert heat.shape == (32, 50, 4)
    assert heat[24, 25, 3] == 0
    lightness = [
        heat[place][:3].astype(int).sum() for place in ((8, 8), (8, 24), (8, 42), (24, 8), (24, 42))
    ]
    assert lightness == sorted(lightness, reverse=True)
    assert len(set(lightness)) == 5


def test_a_moved_in_column_lies_where_it_is(tmp_path: Path) -> None:
    """Three tiles of 100 px begin at 0, 100 and 130: the third lies on the second, and a lesion's
    outline where the lesion is.
    """
    tiles = [
        PackTile(x, 0, 1.0, encode(np.full((64, 64, 3), colour, np.uint8), 95))
        for x, colour in zip((0, 100, 130), COLOURS, strict=False)
    ]
    write_pack(tmp_path / "s.h5", tiles, slide_id="s", mpp=1.0, tile_px=64, side=100, planned=3)
    picture = slide_picture(
        Pack(tmp_path / "s.h5"), SCORES[:3], 1.0, [Region("tumour", shapely.box(200, 0, 230, 100))]
    )
    assert (picture.width, picture.height) == (147, 64)
    mosaic, heat = pixels(picture.mosaic), pixels(picture.heat)
    for x, colour in ((30, 0), (70, 1), (90, 2), (140, 2)):
        assert mosaic[30, x].tolist() == pytest.approx(COLOURS[colour], abs=12)
    assert heat[30, 70].tolist() != heat[30, 90].tolist() == heat[30, 140].tolist()
    points = {
        tuple(map(float, point.split())) for point in picture.outlines[0][1].strip("MZ").split("L")
    }
    assert points == {(128.0, 0.0), (128.0, 64.0), (147.2, 0.0), (147.2, 64.0)}


def test_outlines_are_in_the_pictures_own_units(pack: Pack) -> None:
    # the picture spans x 100..131 (49.6 units) and y 50..90 (32 units)
    outside = Region("fold", shapely.box(131 - 15.5, 70, 300, 90))
    [(name, path)] = slide_picture(pack, SCORES, 2.0, [outside]).outlines
    assert name == "fold"
    points = {tuple(map(float, point.split())) for point in path.strip("MZ").split("L")}
    assert points == {(24.8, 16.0), (24.8, 32.0), (49.6, 16.0), (49.6, 32.0)}


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
