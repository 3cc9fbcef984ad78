"""Mined tiles as GeoJSON."""

import json
from pathlib import Path

import pandas as pd

from hnm.mining.export import export_mined
from hnm.slides.annotations import read_annotation

MINED = pd.DataFrame(
    {
        "role": ["hard_negative", "hard_negative", "positive"],
        "rank": [1, 2, 1],
        "slide_id": ["b", "b", "a"],
        "tile": [7, 2, 4],
        "x": [700, 200, 400],
        "y": [10, 20, 30],
        "side": [96, 96, 64],
        "score": [0.9, 0.75, 0.5],
    }
)


def test_a_file_a_slide_with_outline_class_and_score(tmp_path: Path) -> None:
    paths = export_mined(MINED, {"a": 1.0, "b": 0.5}, tmp_path)
    assert [path.name for path in paths] == ["a.geojson", "b.geojson"]
    features = json.loads(paths[1].read_text())["features"]
    assert [feature["properties"]["name"] for feature in features] == ["tile 2", "tile 7"]
    assert features[1]["geometry"]["coordinates"] == [[[700, 10], [796, 10], [796, 58], [700, 58], [700, 10]]]
    assert features[1]["properties"]["classification"]["name"] == "hard_negative"
    assert features[1]["properties"]["measurements"] == {"score": 0.9, "rank": 1}


def test_what_is_exported_can_be_read_back_as_vetoes(tmp_path: Path) -> None:
    path = export_mined(MINED, {"a": 1.0, "b": 1.0}, tmp_path)[0]
    (region,) = read_annotation(path)
    assert region.name == "positive" and region.geometry.bounds == (400, 30, 464, 94)
