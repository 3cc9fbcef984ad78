import json

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hnm.errors import SlideError
from hnm.slides.annotations import Region
from hnm.slides.masks import rasterised, read_mask
from hnm.slides.reader import Thumbnail


def view_of(width: int, height: int, x: int = 0, y: int = 0, scale: tuple[float, float] = (10.0, 10.0)) -> Thumbnail:
    return Thumbnail(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool), x, y, scale, 8.0)


def geojson(path, *rings, name=None):
    features = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": ring}, "properties": {}} for ring in rings]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_an_image_covers_level_0_at_any_scale(tmp_path):
    """A mask of 6 x 4 pixels for 600 x 400: its pixel (4, 1) is x 400 to 500, y 100 to 200, whatever not-zero value it has."""
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1, 4] = 3
    Image.fromarray(pixels).save(tmp_path / "m.png")
    whole = read_mask(tmp_path / "m.png", (600, 400), view_of(12, 8, scale=(50.0, 50.0)))
    assert np.argwhere(whole).tolist() == [[2, 8], [2, 9], [3, 8], [3, 9]]
    scan = read_mask(tmp_path / "m.png", (600, 400), view_of(4, 4, x=350, y=50, scale=(50.0, 25.0)))  # x 350 to 550, y 50 to 150
    assert np.argwhere(scan).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]


def test_half_of_the_pixels_under_a_thumbnail_pixel_make_it_tissue(tmp_path):
    pixels = np.zeros((4, 8), np.uint8)
    pixels[0, 0] = pixels[0:2, 4] = pixels[1, 5] = 255  # 1 of 4, 3 of 4
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (80, 40), view_of(4, 2, scale=(20.0, 20.0))).tolist() == [[False, False, True, False], [False] * 4]


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB"])
def test_images_of_any_depth(tmp_path, mode):
    image = Image.fromarray(np.array([[0, 255], [0, 0]], np.uint8))
    image = Image.fromarray(np.array([[0, 700], [0, 0]], np.uint16)) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (20, 20), view_of(2, 2)).tolist() == [[False, True], [False, False]]


def test_polygons_with_and_without_names(tmp_path):
    """A square of x, y 0 to 50 with a hole of 20 to 40, and a triangle; pixel centres are 5, 15, 25, …"""
    square = [[[0, 0], [50, 0], [50, 50], [0, 50], [0, 0]], [[20, 20], [40, 20], [40, 40], [20, 40], [20, 20]]]
    triangle = [[[60, 0], [80, 0], [60, 20], [60, 0]]]
    mask = read_mask(geojson(tmp_path / "m.geojson", square, triangle), (80, 60), view_of(8, 6))
    expected = np.zeros((6, 8), bool)
    expected[:5, :5] = True
    expected[2:4, 2:4] = False
    expected[0, 6] = True
    np.testing.assert_array_equal(mask, expected)


@given(st.integers(0, 2**32), st.integers(-20, 60), st.floats(2, 9), st.floats(2, 9))
def test_rasterised_as_a_loop_over_centres(seed, x, scale_x, scale_y):
    corners = np.random.default_rng(seed).uniform(0, 100, (2, 7, 2))
    regions = [Region("", shapely.MultiPoint(points).convex_hull) for points in corners]
    mask = rasterised(regions, view_of(9, 7, x=x, y=11, scale=(scale_x, scale_y)))
    for row in range(7):
        for column in range(9):
            centre = shapely.Point(x + (column + 0.5) * scale_x, 11 + (row + 0.5) * scale_y)
            assert mask[row, column] == any(region.geometry.contains(centre) for region in regions)


def test_what_is_wrong_with_a_mask(tmp_path):
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "empty.png")
    Image.fromarray(np.ones((60, 40), np.uint8)).save(tmp_path / "turned.png")
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no image")
    geojson(tmp_path / "other.geojson", [[[900, 0], [950, 0], [950, 50], [900, 0]]])
    (tmp_path / "torn.geojson").write_text("{")
    for name, message in (
        ("empty.png", "its mask empty.png has no tissue within the scan"),
        ("turned.png", r"its mask turned.png has 40 x 60 pixels, which is not the aspect of the slide's 600 x 400; it must cover all of level 0"),
        ("colour.png", "its mask colour.png is a picture in colour; save it with one channel that is 0 on glass"),
        ("text.png", "its mask text.png cannot be read: it is no image, or not a whole one; correct the manifest's column mask, or --mask"),
        ("none.png", "its mask none.png cannot be read: No such file or directory; correct"),
        ("none.geojson", "its mask none.geojson does not exist; correct the manifest's column mask"),
        ("other.geojson", r"its mask other.geojson, feature 1 \(\) lies at x 900 to 950, y 0 to 50, outside the slide of 600 x 400"),
        ("torn.geojson", "its mask torn.geojson is not GeoJSON: "),
    ):
        with pytest.raises(SlideError, match=f"^{message}") as caught:
            read_mask(tmp_path / name, (600, 400), view_of(60, 40))
        assert caught.value.step == "tissue"
