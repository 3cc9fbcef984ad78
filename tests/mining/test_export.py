"""Mined tiles as GeoJSON."""

import json
from pathlib import Path

import pandas as pd
import pytest

from hnm.mining.export import export_mined
from hnm.mining.vetoes import vetoed_tiles
from hnm.tables import SLIDES

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


SLIDE = {
    "path": "a",
    "patient_id": "p",
    "split": "train",
    "vendor": "mirax",
    "mpp_x": 0.5,
    "mpp_y": 0.5,
    "fingerprint": "f",
    "mask": "",
    "mask_digest": "",
}
SCAN = {
    "width": 2000,
    "height": 1500,
    "bounds_x": 150,
    "bounds_y": 7,
    "bounds_width": 1600,
    "bounds_height": 1200,
}


def slides_of(aspects: dict[str, float], origin: str = "auto") -> pd.DataFrame:
    """A `SLIDES` table; tiles of a slide are `aspects` times as high as they are wide."""
    rows = [
        {**SLIDE, **SCAN, "origin": origin, "slide_id": slide_id, "mpp_y": 0.5 / aspect}
        for slide_id, aspect in aspects.items()
    ]
    return SLIDES.check(pd.DataFrame(rows), "slides")


def test_a_file_a_slide_with_outline_class_and_score(tmp_path: Path) -> None:
    paths = export_mined(MINED, slides_of({"a": 1.0, "b": 0.5}), tmp_path, "level_0")
    assert [path.name for path in paths] == ["a.geojson", "b.geojson"]
    collection = json.loads(paths[1].read_text())
    features = collection["features"]
    assert collection["hnm_origin"] == "level_0"
    assert [feature["properties"]["name"] for feature in features] == ["tile 2", "tile 7"]
    assert features[1]["geometry"]["coordinates"] == [
        [[700, 10], [796, 10], [796, 58], [700, 58], [700, 10]]
    ]
    assert features[1]["properties"]["classification"]["name"] == "hard_negative"
    assert features[1]["properties"]["measurements"] == {"score": 0.9, "rank": 1}


def test_qupath_sees_the_tiles_from_the_corner_of_the_scan(tmp_path: Path) -> None:
    """The scan begins at x 150, y 7 of level 0; a tile at x 700, y 10 lies 550 and 3 pixels inside
    of it.
    """
    collection = json.loads(
        export_mined(MINED, slides_of({"a": 1.0, "b": 0.5}), tmp_path)[1].read_text()
    )
    assert collection["hnm_origin"] == "bounds"
    assert collection["features"][1]["geometry"]["coordinates"] == [
        [[550, 3], [646, 3], [646, 51], [550, 51], [550, 3]]
    ]


def through_qupath(path: Path) -> None:
    """Reads and writes a file as QuPath does: it knows nothing of the collection's other members,
    and gives each feature an id.
    """
    features = json.loads(path.read_text())["features"]
    for number, feature in enumerate(features):
        feature["id"] = f"12345678-1234-1234-1234-{number:012x}"
        feature["properties"] = {
            name: feature["properties"][name]
            for name in ("objectType", "name", "classification", "measurements", "metadata")
        }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.mark.parametrize("origin", ["auto", "level_0", "bounds"])
def test_what_is_exported_is_a_file_of_vetoes(tmp_path: Path, origin: str) -> None:
    """Whatever cohort.origin says of files that do not: each of the very tiles is vetoed, and no
    neighbour.
    """
    slides = slides_of({"a": 1.0, "b": 1.0}, origin)
    others = [
        MINED.assign(tile=MINED["tile"] + 100, x=MINED["x"] + MINED["side"]),
        MINED.assign(tile=MINED["tile"] + 200, y=MINED["y"] + MINED["side"]),
    ]
    tiles = pd.concat([MINED, *others])[["slide_id", "tile", "x", "y", "side"]]
    for path in export_mined(MINED, slides, tmp_path):
        through_qupath(path)
    (tmp_path / "vetoes.csv").write_text("slide_id,tile,x,y,reason\n")
    assert vetoed_tiles(tmp_path, tiles, slides).to_numpy().tolist() == [
        ["a", 4, "positive"],
        ["b", 2, "hard_negative"],
        ["b", 7, "hard_negative"],
    ]
