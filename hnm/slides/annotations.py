"""Polygons that people drew on slides: GeoJSON, checked, and the share of each tile that they cover."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import shape

from hnm.errors import CohortError
from hnm.files import write_json


@dataclass(frozen=True)
class Region:
    """One annotated area."""

    name: str
    """Its class, as the annotator wrote it."""
    geometry: shapely.Polygon | shapely.MultiPolygon
    """In level-0 pixels."""


def read_annotation(path: Path) -> list[Region]:
    """The regions of a GeoJSON file: a FeatureCollection, a list of features or one feature, as QuPath and ASAP's converters write them.

    A feature is a Polygon or MultiPolygon with `properties.classification.name`. A ring that crosses itself, as
    hand-drawn ones do, is mended. Raises `CohortError` naming the feature.
    """
    return read_regions(path, "annotation", named=True)


def read_regions(path: Path, column: str, *, named: bool) -> list[Region]:
    """As `read_annotation`, of a file that the manifest's `column` names; unless they must be `named`, features without a class have the name ""."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise CohortError(f"{column} {path} does not exist; correct the manifest's column {column}") from None
    except ValueError as error:  # of JSON or of UTF-8
        raise CohortError(f"{column} {path} is not GeoJSON: {error}") from None
    if isinstance(value, dict):
        value = value.get("features") if value.get("type") == "FeatureCollection" else [value]
    if not isinstance(value, list):
        raise CohortError(f"{column} {path} is not GeoJSON: it holds no list of features")
    return [_region(feature, f"{column} {path}, feature {number}", named) for number, feature in enumerate(value, 1)]


def check_inside(regions: Collection[Region], dimensions: tuple[int, int], where: str) -> None:
    """Raises `CohortError` where a region misses the slide of `dimensions` (level-0 pixels): its unit is another, or the slide is."""
    for number, region in enumerate(regions, 1):
        left, top, right, bottom = region.geometry.bounds
        if left >= dimensions[0] or top >= dimensions[1] or right <= 0 or bottom <= 0:
            raise CohortError(
                f"{where}, feature {number} ({region.name}) lies at x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}, outside the slide"
                f" of {dimensions[0]} x {dimensions[1]}; coordinates must be level-0 pixels of this slide"
            )


def write_annotation(regions: Collection[Region], path: Path) -> None:
    """`regions` as a GeoJSON FeatureCollection, one form for all sources."""
    features = [
        {"type": "Feature", "geometry": json.loads(shapely.to_geojson(region.geometry)), "properties": {"classification": {"name": region.name}}}
        for region in regions
    ]
    write_json({"type": "FeatureCollection", "features": features}, path)


def covered_shares(
    regions: Collection[Region], names: Collection[str], x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], width: float, height: float
) -> npt.NDArray[np.float64]:
    """(tiles,): share of each tile that regions of the classes `names` cover, whatever the case; regions that overlap count once.

    `x`, `y` (tiles,) are the corners, `width` and `height` the size of all tiles, in level-0 pixels.
    """
    wanted = {name.casefold() for name in names}
    union = shapely.union_all([region.geometry for region in regions if region.name.casefold() in wanted])
    parts = shapely.get_parts(union)
    boxes = shapely.box(x, y, x + width, y + height)
    tile, part = shapely.STRtree(parts).query(boxes, predicate="intersects")
    areas = shapely.area(shapely.intersection(boxes[tile], parts[part]))
    return np.clip(np.bincount(tile, areas, minlength=len(x)) / (width * height), 0, 1)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no coordinate")


def _region(feature: Any, where: str, named: bool) -> Region:
    try:
        name = feature["properties"]["classification"]["name"]
    except (TypeError, KeyError):
        name = None
    name = name if isinstance(name, str) else ""
    if named and not name:
        raise CohortError(f"{where} has no name of a class in properties.classification.name; classify it and export again")
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in {"Polygon", "MultiPolygon"}:
        raise CohortError(f"{where} ({name}) is a {kind}, not a Polygon or MultiPolygon; delete it or draw its area")
    try:
        drawn = shape(geometry)
    except (TypeError, ValueError, IndexError, KeyError, shapely.errors.ShapelyError) as error:
        raise CohortError(f"{where} ({name}) has coordinates that make no polygon: {error}") from None
    areal = [part for part in shapely.get_parts(shapely.make_valid(drawn)) if part.geom_type in {"Polygon", "MultiPolygon"}]
    if not areal:
        raise CohortError(f"{where} ({name}) encloses no area; delete it or draw it again")
    return Region(name, shapely.normalize(shapely.union_all(areal)))
