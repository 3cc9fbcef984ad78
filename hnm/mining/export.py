"""Mined tiles as a person can see them on their slides: GeoJSON that QuPath opens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hnm.files import write_json

COLOURS = {"positive": [200, 0, 0], "hard_negative": [0, 90, 200]}


def export_mined(mined: pd.DataFrame, aspects: Mapping[str, float], folder: Path) -> list[Path]:
    """Writes `<slide_id>.geojson` for each slide of a `MINED` table into `folder`; returns their paths.

    A tile is an annotation whose outline is in level-0 pixels, whose class is its role and whose measurements are score
    and rank. A person who deletes the good ones in QuPath and exports the rest has a file of vetoes.

    Args:
        mined: the `MINED` table.
        aspects: slide id -> height of a tile over its width, in level-0 pixels.
        folder: where the files go.
    """
    written = []
    for slide_id, own in mined.sort_values(["slide_id", "tile"]).groupby("slide_id"):
        path = folder / f"{slide_id}.geojson"
        features = [_mined_feature(tile, aspects[str(slide_id)]) for tile in own.to_dict("records")]
        write_json({"type": "FeatureCollection", "features": features}, path)
        written.append(path)
    return written


def tile_feature(tile: Mapping[Any, Any], aspect: float, class_name: str, colour: Sequence[int], measurements: Mapping[str, float]) -> dict[str, Any]:
    """A tile as a GeoJSON feature that QuPath shows: its outline in level-0 pixels, its class in `colour` (RGB), its measurements.

    `tile` has the columns `tile`, `x`, `y`, `side`; `aspect` is its height over its width.
    """
    left, top = int(tile["x"]), int(tile["y"])
    right, bottom = left + int(tile["side"]), top + round(tile["side"] * aspect)
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]},
        "properties": {
            "objectType": "annotation",
            "name": f"tile {tile['tile']}",
            "classification": {"name": class_name, "color": list(colour)},
            "measurements": dict(measurements),
        },
    }


def _mined_feature(tile: Mapping[Any, Any], aspect: float) -> dict[str, Any]:
    role = tile["role"]
    return tile_feature(tile, aspect, role, COLOURS[role], {"score": round(float(tile["score"]), 6), "rank": int(tile["rank"])})
