"""Mined tiles as a person can see them on their slides: GeoJSON that QuPath opens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import shapely

from hnm.files import write_json
from hnm.slides.annotations import Feature, feature_collection
from hnm.slides.reading.canvas import Origin, aspects_of, canvases_of

COLOURS = {"positive": [200, 0, 0], "hard_negative": [0, 90, 200]}


def export_mined(
    mined: pd.DataFrame, slides: pd.DataFrame, folder: Path, origin: Origin = "bounds"
) -> list[Path]:
    """Writes `<slide_id>.geojson` for each slide of a `MINED` table into `folder`; returns their
    paths.

    A tile is an annotation whose class is its role and whose measurements are score and rank. A
    person who deletes the good ones in QuPath and exports the rest has a file of vetoes, which
    still says what it counts from.

    Args:
        mined: the `MINED` table.
        slides: the `SLIDES` table.
        folder: where the files go.
        origin: what coordinates count from; QuPath counts from the bounds of the scan.
    """
    aspects = aspects_of(slides)
    canvases = canvases_of(slides)
    written = []
    for slide_id, tiles in mined.sort_values(["slide_id", "tile"]).groupby("slide_id"):
        path = folder / f"{slide_id}.geojson"
        features = [
            _mined_feature(tile, aspects[str(slide_id)]) for tile in tiles.to_dict("records")
        ]
        write_json(
            feature_collection(features, origin, canvases[str(slide_id)].corner(origin)), path
        )
        written.append(path)
    return written


def tile_feature(
    tile: Mapping[Any, Any],
    aspect: float,
    class_name: str,
    colour: Sequence[int],
    measurements: Mapping[str, float],
) -> Feature:
    """Returns a tile as a feature that QuPath shows: its outline, and its class in `colour` (RGB)
    with its measurements.

    `tile` has the columns `tile`, `x`, `y`, `side`; `aspect` is its height over its width.
    """
    left = int(tile["x"])
    top = int(tile["y"])
    right = left + int(tile["side"])
    bottom = top + round(tile["side"] * aspect)
    outline = shapely.Polygon([(left, top), (right, top), (right, bottom), (left, bottom)])
    name = f"tile {tile['tile']}"
    return Feature(outline, class_name, name, colour, measurements)


def _mined_feature(tile: Mapping[Any, Any], aspect: float) -> Feature:
    role = tile["role"]
    return tile_feature(
        tile,
        aspect,
        role,
        COLOURS[role],
        {"score": round(float(tile["score"]), 6), "rank": int(tile["rank"])},
    )
