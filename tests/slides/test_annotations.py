import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.errors import CohortError
from hnm.slides.annotations import Region, check_inside, covered_shares, read_annotation, write_annotation

SQUARE = [[[10, 20], [40, 20], [40, 50], [10, 50], [10, 20]]]


def feature(coordinates, kind="Polygon", name="tumour", **geometry):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": {"classification": {"name": name}}}


def written(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize("wrap", [lambda f: {"type": "FeatureCollection", "features": [f]}, lambda f: [f], lambda f: f])
def test_the_forms_of_geojson(tmp_path, wrap):
    (region,) = read_annotation(written(tmp_path / "a.geojson", wrap(feature(SQUARE))))
    assert region.name == "tumour"
    assert region.geometry.equals(shapely.box(10, 20, 40, 50))


def test_holes_and_parts(tmp_path):
    hole = [*SQUARE, [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]]
    parts = [SQUARE, [[[100, 100], [110, 100], [110, 105], [100, 100]]]]
    first, second = read_annotation(written(tmp_path / "a.geojson", [feature(hole), feature(parts, "MultiPolygon", "stroma")]))
    assert first.geometry.area == 900 - 100
    assert (second.name, second.geometry.area) == ("stroma", 900 + 25)


def test_a_ring_that_crosses_itself_is_mended(tmp_path):
    bow_tie = [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]
    (region,) = read_annotation(written(tmp_path / "a.geojson", [feature(bow_tie)]))
    assert region.geometry.is_valid
    assert region.geometry.area == 50


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "a.geojson is not JSON: "),
        ('"text"', "a.geojson is not GeoJSON: it holds no list of features"),
        ([feature(SQUARE), feature([1, 2], "Point")], r"feature 2 \(tumour\) is a Point, not a Polygon or MultiPolygon; delete it or draw its area"),
        ([{"type": "Feature", "geometry": None, "properties": {}}], "feature 1 has no name of a class in properties.classification.name; classify it"),
        ([feature([[[0, 0], [1, 1]]])], r"feature 1 \(tumour\) has coordinates that make no polygon: "),
        ([feature([[[0, 0], ["x", 1], [2, 2], [0, 0]]])], r"feature 1 \(tumour\) has coordinates that make no polygon: "),
        ([feature([[[0, 0], [5, 5], [9, 9], [0, 0]]])], r"feature 1 \(tumour\) encloses no area; delete it or draw it again"),
        ([feature([[[0, 0], [5, float("nan")], [9, 1], [0, 0]]])], "a.geojson is not JSON: NaN is no number"),
        ([17], "feature 1 has no name of a class"),
        ([feature(SQUARE) | {"geometry": 3}], r"feature 1 \(tumour\) "),
    ],
)
def test_what_is_wrong_with_an_annotation(tmp_path, value, message):
    with pytest.raises(CohortError, match=message):
        read_annotation(written(tmp_path / "a.geojson", value))


def test_a_missing_annotation(tmp_path):
    with pytest.raises(CohortError, match=r"annotation .*none.geojson cannot be read: No such file or directory; correct the manifest's column annotation"):
        read_annotation(tmp_path / "none.geojson")


def test_a_region_outside_the_slide_is_refused():
    regions = [Region("tumour", shapely.box(90, 10, 120, 20)), Region("tumour", shapely.box(500, 10, 520, 30))]
    check_inside(regions[:1], (100, 80), "annotation a.geojson")
    message = r"annotation a.geojson, feature 2 \(tumour\) lies at x 500 to 520, y 10 to 30, outside the slide of 100 x 80; coordinates must be level-0"
    with pytest.raises(CohortError, match=message):
        check_inside(regions, (100, 80), "annotation a.geojson")


def test_one_written_form_for_equal_regions(tmp_path):
    turned = [[[40, 50], [10, 50], [10, 20], [40, 20], [40, 50]]]
    for name, ring in (("a", SQUARE), ("b", turned)):
        write_annotation(read_annotation(written(tmp_path / "source.geojson", [feature(ring)])), tmp_path / f"{name}.geojson")
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()
    (region,) = read_annotation(tmp_path / "a.geojson")
    assert region.geometry.equals(shapely.box(10, 20, 40, 50))


def test_covered_shares_by_hand():
    """Tiles of 20 x 10 at (0, 0), (20, 0) and (100, 0); overlapping lesions count once, and other classes not at all."""
    regions = [
        Region("Tumour", shapely.box(10, 0, 30, 10)),
        Region("tumour", shapely.box(10, 5, 15, 10)),
        Region("metastasis", shapely.box(25, 0, 40, 4)),
        Region("look-alike", shapely.box(0, 0, 200, 200)),
    ]
    x, y = np.array([0, 20, 100]), np.array([0, 0, 0])
    shares = covered_shares(regions, ("tumour", "metastasis"), x, y, 20, 10)
    assert shares.tolist() == [0.5, pytest.approx((10 * 10 + 10 * 4) / 200), 0.0]
    assert covered_shares(regions, ("lesion",), x, y, 20, 10).tolist() == [0.0, 0.0, 0.0]
    assert covered_shares([], ("tumour",), x, y, 20, 10).tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 40)] * 4), min_size=1, max_size=6), st.integers(3, 17), st.integers(3, 17))
def test_covered_shares_as_a_loop_over_pixels(corners, width, height):
    drawn = np.zeros((60, 60), bool)
    regions = []
    for a, b, c, d in corners:
        left, right, top, bottom = min(a, b), max(a, b) + 1, min(c, d), max(c, d) + 1
        drawn[top:bottom, left:right] = True
        regions.append(Region("tumour", shapely.box(left, top, right, bottom)))
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(0, 40, width), np.arange(0, 40, height)))
    expected = [drawn[t : t + height, left : left + width].mean() for left, t in zip(x, y, strict=True)]
    np.testing.assert_allclose(covered_shares(regions, ("tumour",), x, y, width, height), expected, atol=1e-9)
