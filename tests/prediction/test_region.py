import json

import numpy as np
import pandas as pd
import pytest
import shapely

from hnm.prediction.picture import OPACITY, heat_over
from hnm.prediction.region import TOP_TILES, places, positive_region, prediction_geojson, smoothed
from hnm.slides.reading.thumbnails import Thumbnail


def grid(
    scores: list[list[float | None]],
    side: int = 100,
    aspect: float = 1.0,
    x: int = 500,
    y: int = 40,
) -> pd.DataFrame:
    """TILE_SCORES of a slide whose tiles lie as `scores` do; None is no tile."""
    rows = [
        (x + column * side, y + round(row * side * aspect), score)
        for row, line in enumerate(scores)
        for column, score in enumerate(line)
        if score is not None
    ]
    frame = pd.DataFrame(rows, columns=["x", "y", "score"]).astype({"score": "float32"})
    return frame.assign(slide_id="s", tile=np.arange(len(frame), dtype="int32"), side=side)


def test_smoothing_is_the_gaussian_mean_of_the_tiles_that_are_there() -> None:
    scores, columns, rows = (
        np.array([1.0, 0.0, 0.5, 0.25], np.float32),
        np.array([0, 1, 3, 0]),
        np.array([0, 0, 0, 2]),
    )
    weight = np.exp(-((columns[:, None] - columns) ** 2 + (rows[:, None] - rows) ** 2) / 2)
    weight[(np.abs(columns[:, None] - columns) > 3) | (np.abs(rows[:, None] - rows) > 3)] = 0
    np.testing.assert_allclose(
        smoothed(scores, columns, rows),
        (weight * scores).sum(axis=1) / weight.sum(axis=1),
        rtol=1e-6,
    )


def test_a_block_of_high_tiles_is_one_rounded_region() -> None:
    scores = np.full((6, 8), 0.1)
    scores[1:5, 2:6] = 0.95
    region = positive_region(grid(scores.tolist()), 1.0)
    assert len(region.geoms) == 1 and region.is_valid
    block = shapely.box(700, 140, 1101, 541)
    assert region.intersection(block).area / region.area > 0.99
    assert region.area / block.area > 0.7
    assert not region.contains(shapely.Point(701, 141))  # the corner is rounded off


def test_one_high_tile_among_low_ones_is_no_region_and_all_high_tiles_are() -> None:
    scores = np.full((5, 5), 0.05)
    scores[2, 2] = 0.99
    assert positive_region(grid(scores.tolist()), 1.0).is_empty
    everywhere = positive_region(grid([[0.9, 0.8]], aspect=2.0), 2.0)
    assert everywhere.bounds == (500, 40, 701, 241)


def test_a_hole_stays_a_hole() -> None:
    scores: list[list[float | None]] = [[0.9] * 7 for _ in range(7)]
    for row in range(2, 5):
        scores[row][2:5] = [None] * 3
    (part,) = positive_region(grid(scores), 1.0).geoms
    assert len(part.interiors) == 1
    assert part.exterior.is_ccw and not part.interiors[0].is_ccw  # RFC 7946, right-handed


def test_geojson_is_what_rfc_7946_and_qupath_want() -> None:
    scores = np.linspace(0, 1, 48).reshape(6, 8)
    collection = prediction_geojson(grid(scores.tolist()), 1.0, "tumour")
    json.dumps(collection, allow_nan=False)
    assert collection["type"] == "FeatureCollection"
    names = [feature["properties"]["classification"]["name"] for feature in collection["features"]]
    assert (
        names == ["tumour"] * (len(names) - TOP_TILES) + ["top tile"] * TOP_TILES
        and "tumour" in names
    )
    for feature in collection["features"]:
        assert feature["type"] == "Feature" and feature["properties"]["objectType"] == "annotation"
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert len(ring) >= 4 and ring[0] == ring[-1]
            assert all(value == int(value) for point in ring for value in point)
        assert shapely.from_geojson(json.dumps(feature["geometry"])).is_valid
    best = collection["features"][-TOP_TILES]["properties"]
    assert (best["name"], best["measurements"]) == ("tile 47", {"score": 1.0, "rank": 1})
    assert collection["features"][-TOP_TILES]["geometry"]["coordinates"][0][0] == [1200, 540]


def test_qupath_sees_region_and_tiles_from_the_corner_of_the_scan() -> None:
    """The grid begins at x 500, y 40 of level 0; on a scan that begins at x 480, y 30 that is x 20,
    y 10.
    """
    tiles = grid([[0.9, 0.8], [0.9, 0.7]])
    level_0, shifted = (
        prediction_geojson(tiles, 1.0, "tumour", corner) for corner in ((0, 0), (480, 30))
    )
    assert shifted["hnm_origin"] == "bounds"
    for before, after in zip(level_0["features"], shifted["features"], strict=True):
        moved = np.array(after["geometry"]["coordinates"][0]) + np.array([480, 30])
        assert moved.tolist() == np.array(before["geometry"]["coordinates"][0]).tolist()
        assert after["properties"]["metadata"] == {"hnm_origin": "bounds"}
    assert shapely.from_geojson(json.dumps(shifted["features"][1]["geometry"])).bounds[:2] == (
        20,
        10,
    )


def test_the_heat_lies_over_its_tiles_and_leaves_the_rest_alone() -> None:
    overview = Thumbnail(
        np.full((20, 40, 3), 200, np.uint8), np.zeros((20, 40), bool), 480, 20, (10.0, 20.0), 10.0
    )
    pixels = heat_over(overview, grid([[0.0, 1.0]], side=100, aspect=2.0), 2.0)
    low, high = (
        pixels[1, 2],
        pixels[10, 20],
    )  # x 500 is column 2, y 40 row 1, and a tile is 10 x 10 pixels
    assert low.tolist() == pytest.approx(
        [(1 - OPACITY) * 200 + OPACITY * value for value in (244, 238, 231)], abs=1
    )
    assert high.tolist() == pytest.approx(
        [(1 - OPACITY) * 200 + OPACITY * value for value in (87, 26, 14)], abs=1
    )
    changed = (pixels != 200).any(axis=2)
    assert changed[1:11, 2:22].all() and changed.sum() == 200


def test_tiles_that_overlap_are_coloured_once() -> None:
    """The moved-in second tile begins in the middle of the first: where both lie, the slide shows
    through as much as elsewhere.
    """
    overview = Thumbnail(
        np.full((20, 40, 3), 200, np.uint8), np.zeros((20, 40), bool), 480, 20, (10.0, 20.0), 10.0
    )
    tiles = grid([[0.0, 1.0]], side=100, aspect=2.0).assign(x=[500, 550])
    pixels = heat_over(overview, tiles, 2.0)
    low, high = (
        [(1 - OPACITY) * 200 + OPACITY * value for value in colour]
        for colour in ((244, 238, 231), (87, 26, 14))
    )
    assert pixels[5, 6].tolist() == pytest.approx(low, abs=1)
    assert (
        pixels[5, 7].tolist()
        == pixels[5, 11].tolist()
        == pixels[5, 16].tolist()
        == pytest.approx(high, abs=1)
    )


def test_a_moved_in_column_is_one_of_its_own() -> None:
    """However little it lies behind the one before: a column of scores that is none of the
    others'.
    """
    starts = np.array([0, 100, 200, 201])
    assert places(np.tile(starts, 3), 100.0).tolist() == [0, 1, 2, 3] * 3
    assert places(np.array([0, 17, 50, 84]), 16.7).tolist() == [0, 1, 3, 5]
    scores = np.full((3, 4), 0.1)
    scores[:, 3] = 0.99
    tiles = grid(scores.tolist())
    region = positive_region(tiles.assign(x=500 + np.tile(starts, 3)), 1.0)
    assert region.bounds[2] > 790
