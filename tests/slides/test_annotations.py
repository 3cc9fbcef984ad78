import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.errors import CohortError
from hnm.slides import annotations
from hnm.slides.annotations import (
    Drawn,
    Region,
    check_inside,
    covered_shares,
    joined,
    read_annotation,
    regions_of,
    write_annotation,
)
from hnm.slides.reading.canvas import Box, Canvas

SQUARE = [[[10, 20], [40, 20], [40, 50], [10, 50], [10, 20]]]


def feature(coordinates, kind="Polygon", name="tumour", **geometry):
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"classification": {"name": name}},
    }


def written(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize(
    "wrap", [lambda f: {"type": "FeatureCollection", "features": [f]}, lambda f: [f], lambda f: f]
)
def test_the_forms_of_geojson(tmp_path, wrap):
    (region,) = read_annotation(written(tmp_path / "a.geojson", wrap(feature(SQUARE))))
    assert region.name == "tumour"
    assert region.geometry.equals(shapely.box(10, 20, 40, 50))


def test_holes_and_parts(tmp_path):
    hole = [*SQUARE, [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]]
    parts = [SQUARE, [[[100, 100], [110, 100], [110, 105], [100, 100]]]]
    first, second = read_annotation(
        written(tmp_path / "a.geojson", [feature(hole), feature(parts, "MultiPolygon", "stroma")])
    )
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
        (
            [feature(SQUARE), feature([1, 2], "Point")],
            (
                r"feature 2 \(tumour\) is a Point, not a Polygon or MultiPolygon; delete it or draw"
                r" its area"
            ),
        ),
        (
            [{"type": "Feature", "geometry": None, "properties": {}}],
            "feature 1 has no name of a class in properties.classification.name; classify it",
        ),
        (
            [feature([[[0, 0], [1, 1]]])],
            r"feature 1 \(tumour\) has coordinates that make no polygon: ",
        ),
        (
            [feature([[[0, 0], ["x", 1], [2, 2], [0, 0]]])],
            r"feature 1 \(tumour\) has coordinates that make no polygon: ",
        ),
        (
            [feature([[[0, 0], [5, 5], [9, 9], [0, 0]]])],
            r"feature 1 \(tumour\) encloses no area; delete it or draw it again",
        ),
        (
            [feature([[[0, 0], [5, float("nan")], [9, 1], [0, 0]]])],
            "a.geojson is not JSON: NaN is no number",
        ),
        ([17], "feature 1 has no name of a class"),
        ([feature(SQUARE) | {"geometry": 3}], r"feature 1 \(tumour\) "),
    ],
)
def test_what_is_wrong_with_an_annotation(tmp_path, value, message):
    with pytest.raises(CohortError, match=message):
        read_annotation(written(tmp_path / "a.geojson", value))


def test_a_missing_annotation(tmp_path):
    with pytest.raises(
        CohortError,
        match=(
            r"annotation .*none.geojson cannot be read: No such file or directory; correct the"
            r" manifest's column annotation"
        ),
    ):
        read_annotation(tmp_path / "none.geojson")


def test_a_region_outside_the_slide_is_refused():
    regions = [
        Region("tumour", shapely.box(90, 10, 120, 20)),
        Region("tumour", shapely.box(500, 10, 520, 30)),
    ]
    canvas = Canvas(100, 80, Box(0, 0, 100, 80))
    (note,) = check_inside(
        Drawn(regions[:1], "level_0", "shape"), canvas, "annotation a.geojson", "slide s"
    )
    assert note.startswith(
        "annotation a.geojson, feature 1 (tumour) reaches 20 pixels beyond the scan of slide s,"
        " with 67% of its box; coordinates must be"
    )
    message = (
        r"annotation a.geojson, feature 2 \(tumour\) lies at x 500 to 520, y 10 to 30, 400 pixels"
        r" outside the scan of slide s, which has x 0 to 100,"
        r" y 0 to 80 of level 0; coordinates must be level-0 pixels"
    )
    with pytest.raises(CohortError, match=message):
        check_inside(Drawn(regions, "level_0", "shape"), canvas, "annotation a.geojson", "slide s")


def test_one_written_form_for_equal_regions(tmp_path):
    turned = [[[40, 50], [10, 50], [10, 20], [40, 20], [40, 50]]]
    for name, ring in (("a", SQUARE), ("b", turned)):
        write_annotation(
            read_annotation(written(tmp_path / "source.geojson", [feature(ring)])),
            tmp_path / f"{name}.geojson",
        )
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()
    (region,) = read_annotation(tmp_path / "a.geojson")
    assert region.geometry.equals(shapely.box(10, 20, 40, 50))


def test_covered_shares_by_hand():
    """Tiles of 20 x 10 at (0, 0), (20, 0) and (100, 0); overlapping lesions count once, and other
    classes not at all.
    """
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
@given(
    st.lists(st.tuples(*[st.integers(0, 40)] * 4), min_size=1, max_size=6),
    st.integers(3, 17),
    st.integers(3, 17),
)
def test_covered_shares_as_a_loop_over_pixels(corners, width, height):
    drawn = np.zeros((60, 60), bool)
    regions = []
    for a, b, c, d in corners:
        left, right, top, bottom = min(a, b), max(a, b) + 1, min(c, d), max(c, d) + 1
        drawn[top:bottom, left:right] = True
        regions.append(Region("tumour", shapely.box(left, top, right, bottom)))
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(0, 40, width), np.arange(0, 40, height)))
    expected = [
        drawn[t : t + height, left : left + width].mean() for left, t in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(
        covered_shares(regions, ("tumour",), x, y, width, height), expected, atol=1e-9
    )


def positions(corners):
    return feature([corners])


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ([[0, 0], [10**400, 1], [2, 2]], "'10*'… .401 characters. is no pixel of a slide"),
        ([[0, 0], [2.0**31 + 1, 1], [2, 2]], "'2147483649.0' is no pixel of a slide"),
        ([[0, 0], [1], [2, 2]], r"'\[1\]' is no corner of x and y"),
        ([[0, 0], [1, 2, 3, 4], [2, 2]], r"'\[1, 2, 3, 4\]' is no corner"),
        ([[0, 0], [None, 1], [2, 2]], "'None' is no number"),
        ([[0, 0], [True, 1], [2, 2]], "'True' is no number"),
        ([[0, 0], [[1], 1], [2, 2]], r"'\[1\]' is no number"),
        ([[0, 0], "ab", [2, 2]], "'ab' is no corner"),
        ("abc", "'abc' is no list of corners"),
        (None, "'None' is no list of corners"),
        ([[0, 0], [1, 1]], "a ring has 2 corners, but needs three"),
    ],
)
@pytest.mark.parametrize("kind", ["Polygon", "MultiPolygon"])
def test_corners_that_make_no_polygon(corners, message, kind):
    coordinates = [corners] if kind == "Polygon" else [[corners]]
    with pytest.raises(
        CohortError,
        match=(
            r"annotation a, feature 1 \(tumour\) has coordinates that make no polygon:"
            rf" {message}.*; delete it or draw it again"
        ),
    ):
        regions_of(json.dumps([feature(coordinates, kind)]).encode(), "annotation a", named=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"[1e999]",
            (
                "annotation a is not JSON: 1e999 is too large for a number; correct the manifest's"
                " column annotation, or the file"
            ),
        ),
        (b"[" * 100_000, "annotation a is nested too deep to be read; correct"),
        (b"", "annotation a is not JSON: Expecting value"),
        ('{"a": 1}'.encode("utf-16"), "annotation a is not JSON: 'utf-8' codec"),
        (b"\xe9", "annotation a is not JSON: 'utf-8' codec"),
        (b'{"type": []}', "feature 1 has no name of a class"),
        (
            json.dumps([feature([], kind=[])]).encode(),
            r"feature 1 \(tumour\) is a '\[\]', not a Polygon",
        ),
        (
            json.dumps([feature([])]).encode(),
            (
                r"feature 1 \(tumour\) has coordinates that make no polygon: '\[\]' is no list of"
                r" rings"
            ),
        ),
        (
            json.dumps([feature(SQUARE, name="a\nb")]).encode(),
            r"feature 1 has the class 'a\\nb', which is no text of one line",
        ),
        (
            json.dumps([feature(SQUARE, name="\ud800")]).encode(),
            "feature 1 has the class .*no text of one line",
        ),
        (
            json.dumps([feature(SQUARE, name="x" * 257)]).encode(),
            r"feature 1 has the class 'x+'… \(257 characters\), which is no text",
        ),
    ],
)
def test_files_that_are_no_annotation(content, message):
    with pytest.raises(CohortError, match=message):
        regions_of(content, "annotation a", named=True)


def test_a_byte_order_mark_returns_and_a_third_number_do_no_harm():
    (region,) = regions_of(
        b"\xef\xbb\xbf"
        + json.dumps([feature([[[0, 0, 7], [4, 0, 7], [4, 3, 7]]])], indent=1)
        .replace("\n", "\r\n")
        .encode(),
        "a",
        named=True,
    )
    assert (region.geometry.area, region.geometry.has_z) == (6, False)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.geojson")
    (tmp_path / "circle.geojson").symlink_to(tmp_path / "circle.geojson")
    for name, message in (
        ("pipe.geojson", "is no regular file"),
        ("", "is no regular file"),
        ("circle.geojson", "cannot be read: Too many levels"),
    ):
        with pytest.raises(
            CohortError, match=f"annotation .*{message}.*; correct the manifest's column annotation"
        ):
            read_annotation(tmp_path / name)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.geojson").open("wb") as stream:
        stream.truncate(600 << 20)
    with pytest.raises(
        CohortError, match=r"a.geojson has 629145600 bytes, more than the 134217728 that are read"
    ):
        read_annotation(tmp_path / "a.geojson")


def test_a_ring_of_thousands_of_crossings_is_refused_at_once():
    """Mending this one took minutes: its time grows with the square of the crossings."""
    ring = (np.random.default_rng(0).random((1000, 2)) * 1000).tolist()
    before = time.monotonic()
    with pytest.raises(
        CohortError,
        match=(
            r"a, feature 2 \(tumour\) touches or crosses itself too often \(more than 2000 places"
            r" in this file\); delete it"
        ),
    ):
        regions_of(json.dumps([feature(SQUARE), positions(ring)]).encode(), "a", named=True)
    assert time.monotonic() - before < 20


def test_outlines_that_cross_each_other_too_often_are_refused():
    """Two combs, each valid by itself; the parts of a multipolygon count too."""
    x = np.arange(800)
    comb = [*np.stack([x, np.where(x % 2, 0, 800)], 1).tolist(), [800, -5], [0, -5]]
    turned = [[y, x] for x, y in comb]
    assert len(regions_of(json.dumps([positions(comb)]).encode(), "a", named=True)) == 1
    for features in (
        [positions(comb), positions(turned)],
        [feature([[comb], [turned]], "MultiPolygon")],
    ):
        with pytest.raises(
            CohortError, match=r"in more than 100000 places|touches or crosses itself too often"
        ):
            regions_of(json.dumps(features).encode(), "a", named=True)


def test_bounds_on_features_and_corners(monkeypatch):
    content = json.dumps([feature(SQUARE)] * 3).encode()
    monkeypatch.setattr(annotations, "MOST_CORNERS", 14)
    with pytest.raises(CohortError, match="a has more than the 14 corners that are read; simplify"):
        regions_of(content, "a", named=True)
    monkeypatch.setattr(annotations, "MOST_REGIONS", 2)
    with pytest.raises(CohortError, match="a has 3 features, more than the 2 that are read"):
        regions_of(content, "a", named=True)


def test_parts_that_overlap_count_once():
    parts = [[[[0, 0], [10, 0], [10, 10], [0, 10]]], [[[5, 0], [15, 0], [15, 10], [5, 10]]]]
    (region,) = regions_of(json.dumps([feature(parts, "MultiPolygon")]).encode(), "a", named=True)
    assert region.geometry.area == 150


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 25), st.integers(0, 25), st.integers(1, 6), st.integers(1, 6)),
        max_size=12,
    )
)
def test_polygons_are_joined_as_by_geos(corners):
    boxes = [shapely.box(x, y, x + width, y + height) for x, y, width, height in corners]
    assert shapely.normalize(joined(boxes)).wkb == shapely.normalize(shapely.union_all(boxes)).wkb


numbers = st.one_of(
    st.integers(-50, 50),
    st.floats(),
    st.integers(),
    st.sampled_from([2**31, 1e308, True, None, "1"]),
)
corner_lists = st.lists(
    st.lists(numbers, min_size=1, max_size=4)
    | st.lists(st.integers(-9, 9), min_size=2, max_size=2),
    max_size=7,
)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | corner_lists,
    lambda inner: st.lists(inner, max_size=3),
)
kinds = st.sampled_from(["Polygon", "MultiPolygon", "Point", []])
geometries = st.fixed_dictionaries(
    {"type": kinds, "coordinates": st.lists(corner_lists, max_size=2) | values}
)
classes = st.just({"classification": {"name": "tumour"}}) | values
one = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["Feature", None, []]),
        "geometry": geometries | values,
        "properties": classes,
    }
)
collection = st.fixed_dictionaries(
    {"type": st.just("FeatureCollection"), "features": st.lists(one, max_size=3) | values}
)


@settings(max_examples=200, deadline=None)
@given(one | st.lists(one, max_size=3) | collection | values)
def test_any_json_gives_sound_regions_or_one_error(value):
    try:
        regions = regions_of(json.dumps(value).encode(), "annotation a", named=True)
    except CohortError as error:
        assert str(error).startswith("annotation a")
    else:
        for region in regions:
            assert region.name == "tumour"
            assert region.geometry.is_valid and region.geometry.area > 0
            assert np.abs(region.geometry.bounds).max() <= 2**31
