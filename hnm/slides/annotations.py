"""Polygons that people drew on slides: GeoJSON, checked, and the share of each tile that they
cover.

Regions are in level-0 pixels. A file may count from the scan's bounds, as QuPath does: `drawn_in`
shifts what comes in, and `feature_collection` what goes out and says so.

A file may come from anybody: bytes, features, corners and crossings are bounded, so that neither
its reading nor what is computed of it later goes on without end. Where a file may be large, it is
read in a worker all the same (`hnm.slides.drawings`).
"""

import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import shapely

from hnm.errors import CohortError
from hnm.files import parse_json, read_bounded, write_json
from hnm.names import is_printable, quoted
from hnm.slides.reading.canvas import By, Canvas, Origin

MOST_BYTES = 128 << 20
MOST_REGIONS = 100_000
MOST_CORNERS = 500_000
"""Of all regions of one file."""
MOST_NAME = 256
"""Characters of a class name."""
LARGEST = 2**31
"""Largest coordinate, in level-0 pixels and to both sides of 0; no slide is so large."""
MOST_SELF_CROSSINGS = 2_000
"""Places where the rings of one file's mended polygons touch or cross themselves; the time to mend
grows with their square, to some 2 s.
"""
MOST_CROSSINGS = 100_000
"""Crossings of all outlines of one file, with those of other regions too."""
MOST_HOLES = 4_000
"""Of a polygon that is to be mended; the time grows with their square, to some 2 s."""
ORIGIN = "hnm_origin"
"""Member that says what a file counts from: of a FeatureCollection, and of `properties.metadata`,
which QuPath keeps when it reads features and exports them again."""
MOST_BEYOND = 0.01
"""Share of a region's bounding box that may lie beside the scan before somebody is told."""
_QUPATH_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|PathAnnotationObject")
"""What QuPath calls an annotation in a feature's `id`: a UUID, or its class before version 0.4."""
_BLOCK = 16
"""Segments that are held against all others at once; so many times `MOST_CORNERS` is what memory is
needed for.
"""
_CURE = "; correct the manifest's column annotation, or the file"
_DRAW = "delete it or draw it again"


@dataclass(frozen=True)
class Region:
    """One annotated area."""

    name: str
    """Its class, as the annotator wrote it."""
    geometry: shapely.Polygon | shapely.MultiPolygon
    """In level-0 pixels."""


@dataclass(frozen=True)
class Feature:
    """One area of a GeoJSON file that hnm writes."""

    geometry: shapely.Geometry
    """In level-0 pixels."""
    class_name: str
    name: str = ""
    """What QuPath calls this one; a feature with a name is an annotation of QuPath's."""
    colour: Sequence[int] = ()
    """Of the class, RGB."""
    measurements: Mapping[str, float] = field(default_factory=dict)

    def properties(self) -> dict[str, Any]:
        """Returns the properties in QuPath's words."""
        properties: dict[str, Any] = {"classification": {"name": self.class_name}}
        if self.colour:
            properties["classification"]["color"] = list(self.colour)
        if self.name:
            properties |= {"objectType": "annotation", "name": self.name}
        if self.measurements:
            properties["measurements"] = dict(self.measurements)
        return properties


@dataclass(frozen=True)
class Drawn:
    """What a file of regions holds."""

    regions: list[Region]
    origin: Origin
    """What the file counts from; `regions` are in level-0 pixels all the same."""
    by: By
    """What decided that."""


def read_annotation(path: Path) -> list[Region]:
    """Returns the regions of a GeoJSON file in level-0 pixels, as `write_annotation` leaves them.

    Raises:
        CohortError: as `drawn_in`.
    """
    where = f"annotation {path}"
    content = read_bounded(path, CohortError, what=where, cure=_CURE, most=MOST_BYTES)
    return regions_of(content, where, named=True)


def regions_of(content: bytes, where: str, *, named: bool, cure: str = _CURE) -> list[Region]:
    """Returns the regions in the bytes of a GeoJSON file, where they are drawn; the arguments are
    those of `drawn_in`.
    """
    features = _features(parse_json(content, CohortError, what=where, cure=cure), where, cure)
    return mended(_regions(features, where, named, (0, 0)), where)


def drawn_in(
    content: bytes, where: str, canvas: Canvas, *, named: bool, cure: str = _CURE
) -> Drawn:
    """Returns the regions in the bytes of a GeoJSON file in level-0 pixels, whatever it counts
    from.

    It is a FeatureCollection, a list of features or one feature. A feature is a Polygon or
    MultiPolygon with `properties.classification.name`. A ring that crosses itself, as hand-drawn
    ones do, is mended.

    Args:
        content: of the file, so that a digest can be of the bytes that were read.
        where: names the file in errors.
        canvas: of its slide.
        named: whether each feature must have a class; the name of one without is "" otherwise.
        cure: ends the message where the file as a whole is wrong; the others tell what to do with
        the feature.

    Raises:
        CohortError: it is no GeoJSON, or names the feature that is no polygon, or the bound that is
        exceeded; or it says two things about what it counts from.
    """
    drawn = unmended_in(content, where, canvas, named=named, cure=cure)
    return replace(drawn, regions=mended(drawn.regions, where))


def unmended_in(
    content: bytes, where: str, canvas: Canvas, *, named: bool, cure: str = _CURE
) -> Drawn:
    """As `drawn_in`, with outlines that may cross themselves: enough to see where they lie."""
    value = parse_json(content, CohortError, what=where, cure=cure)
    features = _features(value, where, cure)
    origin, by = _origin_of(value, features, canvas, where)
    return Drawn(_regions(features, where, named, canvas.corner(origin)), origin, by)


def _features(value: Any, where: str, cure: str) -> list[Any]:
    if isinstance(value, dict):
        value = value.get("features") if value.get("type") == "FeatureCollection" else [value]
    if not isinstance(value, list):
        raise CohortError(f"{where} is not GeoJSON: it holds no list of features{cure}")
    if len(value) > MOST_REGIONS:
        raise CohortError(
            f"{where} has {len(value)} features, more than the {MOST_REGIONS} that are read; merge"
            " or remove some"
        )
    return value


def _regions(
    features: Sequence[Any], where: str, named: bool, corner: tuple[int, int]
) -> list[Region]:
    """The region of each feature as it is drawn, shifted by `corner` before anything is computed of
    it.
    """
    left = MOST_CORNERS
    drawn = []
    for number, feature in enumerate(features, 1):
        region = _region(feature, f"{where}, feature {number}", named)
        left -= shapely.get_num_coordinates(region.geometry)
        if left < 0:
            raise CohortError(
                f"{where} has more than the {MOST_CORNERS} corners that are read; simplify its"
                " outlines"
            )
        drawn.append(Region(region.name, shifted(region.geometry, *corner)))
    return drawn


def shifted(geometry: Any, x: int, y: int) -> Any:
    """`geometry`, moved by `x` and `y` pixels."""
    if (x, y) == (0, 0):
        return geometry
    return shapely.transform(geometry, lambda corners: corners + np.array([x, y]))


def _origin_of(
    value: Any, features: Sequence[Any], canvas: Canvas, where: str
) -> tuple[Origin, By]:
    """What a file counts from, and what decides that.

    What it says itself comes first, then `cohort.origin`. A file that QuPath exported says nothing,
    but looks it, and QuPath counts from the bounds.
    """
    marked = [value, *(member(member(feature, "properties"), "metadata") for feature in features)]
    said = [origin for origin in (member(thing, ORIGIN) for thing in marked) if origin is not None]
    if strange := [origin for origin in said if origin not in get_args(Origin)]:
        raise CohortError(
            f"{where} has {ORIGIN}={quoted(strange[0])}, which is none of"
            f" {', '.join(get_args(Origin))}; correct it"
        )
    if len(set(said)) > 1:
        raise CohortError(
            f"{where} holds features that count from level_0, and others that count from bounds"
            f" ({ORIGIN}); keep them in two files"
        )
    if said:
        return said[0], "file"
    if not canvas.is_offset:
        return "level_0", "shape"
    if canvas.origin != "auto":
        return canvas.origin, "param"
    if features and all(_is_qupaths(feature) for feature in features):
        return "bounds", "qupath"
    return "level_0", "nothing"


def _is_qupaths(feature: Any) -> bool:
    """Whether QuPath wrote a feature, by its looks."""
    identifier = member(feature, "id")
    kind = member(member(feature, "properties"), "objectType")
    return (
        isinstance(identifier, str)
        and bool(_QUPATH_ID.fullmatch(identifier))
        and kind in ("annotation", None)
    )


def member(value: Any, name: str) -> Any:
    """The member of a JSON object; None where there is none, or `value` is no object."""
    return value.get(name) if isinstance(value, dict) else None


def mended(drawn: Sequence[Region], where: str, *, empty_too: bool = False) -> list[Region]:
    """`drawn` polygons as they may be, valid and normalised; `CohortError` where outlines cross too
    often, or one encloses no area.

    Where `empty_too`, those that enclose no area are left out in place of refused. A part that
    crosses itself encloses what lies inside of an odd number of its windings; parts that overlap
    count as one.
    """
    _check_crossings(drawn, where)
    regions = []
    for number, region in enumerate(drawn, 1):
        areal = areal_parts(shapely.get_parts(region.geometry))
        if not len(areal) and empty_too:
            continue
        if not len(areal):
            raise CohortError(
                f"{where}, feature {number} ({region.name}) encloses no area; {_DRAW}"
            )
        regions.append(Region(region.name, shapely.normalize(joined(areal))))
    return regions


def _check_crossings(drawn: Sequence[Region], where: str) -> None:
    """Raises `CohortError` where outlines touch or cross so often that mending or joining them
    would take minutes and more.
    """
    left = MOST_SELF_CROSSINGS
    for number, region in enumerate(drawn, 1):
        feature = f"{where}, feature {number} ({region.name})"
        parts = shapely.get_parts(region.geometry)
        for part in parts[~shapely.is_valid(parts)]:
            if shapely.get_num_interior_rings(part) > MOST_HOLES:
                raise CohortError(
                    f"{feature} has more than {MOST_HOLES} holes, and its rings cross or lie"
                    f" outside of each other; {_DRAW}"
                )
            if (left := left - _crossings([part], left, "intersects")) < 0:
                raise CohortError(
                    f"{feature} touches or crosses itself too often (more than"
                    f" {MOST_SELF_CROSSINGS} places in this file); {_DRAW}"
                )
    outlines = [region.geometry for region in drawn]
    if _crossings(outlines, MOST_CROSSINGS, "crosses") > MOST_CROSSINGS:
        raise CohortError(
            f"{where} has outlines that cross each other in more than {MOST_CROSSINGS} places;"
            " remove some, or draw them again"
        )


def joined(polygons: Iterable[shapely.Geometry]) -> shapely.Geometry:
    """The union of valid `polygons`. Those that lie apart are set beside each other; GEOS alone
    takes minutes for thousands that stand in a row.
    """
    parts = np.array(shapely.get_parts(list(polygons)), dtype=object)
    near = _near(parts)
    if near is None:
        return shapely.union_all(parts)
    # the stage `cohort`, which always runs, seldom comes here and need not wait for scipy
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups, group_of = connected_components(
        coo_array((np.ones(len(near[0]), np.int8), near), shape=(len(parts), len(parts))),
        directed=False,
    )
    order = np.argsort(group_of, kind="stable")
    members = np.split(parts[order], np.cumsum(np.bincount(group_of, minlength=groups))[:-1])
    unions = shapely.get_parts([shapely.union_all(group) for group in members])
    return unions[0] if len(unions) == 1 else shapely.MultiPolygon(list(unions))


def _near(parts: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The pairs of `parts` whose bounding boxes meet; None where there are more of them than are of
    use.
    """
    tree = shapely.STRtree(parts)
    pairs = []
    count = 0
    for first in range(0, len(parts), _BLOCK):
        one, other = tree.query(parts[first : first + _BLOCK])
        count += len(one)
        if count > MOST_CROSSINGS + _BLOCK * len(parts):
            return None
        pairs.append((one + first, other))
    if not pairs:
        return None
    ones, others = zip(*pairs, strict=True)
    return np.concatenate(ones), np.concatenate(others)


def areal_parts(polygons: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The polygons that `polygons`, made valid, consist of, without their points and lines."""
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(polygons)))
    areal: npt.NDArray[Any] = parts[
        np.isin(shapely.get_type_id(parts), (3, 6)) & (shapely.area(parts) > 0)
    ]
    return areal


def check_inside(drawn: Drawn, canvas: Canvas, where: str, slide: str = "the slide") -> list[str]:
    """What somebody should know of the regions that lie partly beside the scan: a sentence for
    each.

    Args:
        drawn: what was drawn on the slide.
        canvas: of the slide.
        where: names the file.
        slide: names the slide.

    Raises:
        CohortError: a region misses the scan: its unit or its origin is another, or the slide is.
    """
    notes = []
    scan = canvas.bounds.ends
    for number, region in enumerate(drawn.regions, 1):
        left, top, right, bottom = box = region.geometry.bounds
        called = f"{where}, feature {number} ({region.name})"
        far = max(scan[0] - right, scan[1] - bottom, left - scan[2], top - scan[3])
        if far >= 0:
            raise CohortError(
                f"{called} lies at x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f},"
                f" {far:.0f} pixels outside the scan of {slide}, which has x {scan[0]} to"
                f" {scan[2]}, y {scan[1]} to {scan[3]} of level 0; "
                + _cure_outside(box, drawn, canvas)
            )
        width, height = (
            max(0.0, min(box[axis + 2], scan[axis + 2]) - max(box[axis], scan[axis]))
            for axis in (0, 1)
        )
        beyond = 1 - width * height / max((right - left) * (bottom - top), 1e-9)
        if beyond > MOST_BEYOND:
            reach = max(scan[0] - left, scan[1] - top, right - scan[2], bottom - scan[3])
            notes.append(
                f"{called} reaches {reach:.0f} pixels beyond the scan of {slide}, with {beyond:.0%}"
                " of its box; " + _cure_outside(box, drawn, canvas)
            )
    return notes


def _cure_outside(box: tuple[float, float, float, float], drawn: Drawn, canvas: Canvas) -> str:
    """What to do with a region whose bounding `box`, in level-0 pixels, does not lie in the
    scan.
    """
    other: Origin = "level_0" if drawn.origin == "bounds" else "bounds"
    move = [
        there - here
        for there, here in zip(canvas.corner(other), canvas.corner(drawn.origin), strict=True)
    ]
    scan = canvas.bounds.ends
    fits = all(
        scan[axis] <= box[axis] + move[axis] and box[axis + 2] + move[axis] <= scan[axis + 2]
        for axis in (0, 1)
    )
    if fits and canvas.is_offset and drawn.by != "file":
        return (
            f"counted from {other} it lies in the scan: set cohort.origin (of hnm predict --origin)"
            f" to {other}"
        )
    counted = f", counted here from {drawn.origin}" if canvas.is_offset else ""
    return f"coordinates must be level-0 pixels of this slide{counted}"


def names_lesion(name: str, lesion_names: Collection[str]) -> bool:
    """Whether the class `name` is one of `lesion_names`, or derived from one.

    Case, blanks around a name and how an umlaut is written do not matter. QuPath derives `Tumor:
    Positive` from `Tumor`, so a class counts as the part before its first colon too.
    """
    wanted = set(map(_plain_name, lesion_names))
    return _plain_name(name) in wanted or _plain_name(name.partition(":")[0]) in wanted


def _plain_name(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()


def write_annotation(regions: Collection[Region], path: Path) -> None:
    """`regions` as a GeoJSON FeatureCollection that counts from level 0 and says so, one form for
    all sources.
    """
    write_json(
        feature_collection(Feature(region.geometry, region.name) for region in regions), path
    )


def feature_collection(
    features: Iterable[Feature],
    origin: Origin = "level_0",
    corner: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Returns a GeoJSON FeatureCollection that counts from `origin` and says so.

    RFC 7946 asks for degrees; the unit is QuPath's. QuPath forgets members of the collection, but
    keeps `metadata` of features, so that what it exports of a collection that counts from the
    bounds still says so.

    Args:
        features: in level-0 pixels.
        origin: what coordinates count from.
        corner: the level-0 pixel that is (0, 0) there: `Canvas.corner(origin)`.
    """
    mark = {"metadata": {ORIGIN: origin}} if origin == "bounds" else {}
    collected = []
    for feature in features:
        geometry = shifted(feature.geometry, -corner[0], -corner[1])
        collected.append(
            {
                "type": "Feature",
                "geometry": json.loads(shapely.to_geojson(geometry)),
                "properties": feature.properties() | mark,
            }
        )
    return {"type": "FeatureCollection", ORIGIN: origin, "features": collected}


def covered_shares(
    regions: Collection[Region],
    names: Collection[str],
    x: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    width: float,
    height: float,
) -> npt.NDArray[np.float64]:
    """(tiles,): share of each tile that regions of the classes `names` cover, whatever the case;
    regions that overlap count once.

    `x`, `y` (tiles,) are the corners, `width` and `height` the size of all tiles, in level-0
    pixels.
    """
    wanted = {name.casefold() for name in names}
    union = joined([region.geometry for region in regions if region.name.casefold() in wanted])
    parts = shapely.get_parts(union)
    boxes = shapely.box(x, y, x + width, y + height)
    tile, part = shapely.STRtree(parts).query(boxes, predicate="intersects")
    areas = shapely.area(shapely.intersection(boxes[tile], parts[part]))
    return np.clip(np.bincount(tile, areas, minlength=len(x)) / (width * height), 0, 1)


def polygon(shell: Any, holes: Collection[Any] = ()) -> shapely.Polygon:
    """A polygon of corners that anybody may have written: lists of two or three numbers.
    `ValueError` says what is wrong; it may cross itself.
    """
    return shapely.Polygon(_ring(shell), [_ring(hole) for hole in holes])


def _region(feature: Any, where: str, named: bool) -> Region:
    """The region of one feature, as it is drawn."""
    name = _name(feature)
    if named and not name:
        raise CohortError(
            f"{where} has no name of a class in properties.classification.name; classify it and"
            " export again"
        )
    if len(name) > MOST_NAME or not is_printable(name):
        raise CohortError(
            f"{where} has the class {quoted(name)}, which is no text of one line of at most"
            f" {MOST_NAME} characters; rename the class"
        )
    geometry = member(feature, "geometry")
    kind = member(geometry, "type")
    if kind not in ("Polygon", "MultiPolygon"):
        shown = kind if kind is None or str(kind).isidentifier() else quoted(kind)
        raise CohortError(
            f"{where} ({name}) is a {shown}, not a Polygon or MultiPolygon; delete it or draw its"
            " area"
        )
    try:
        coordinates = member(geometry, "coordinates")
        parts = [coordinates] if kind == "Polygon" else _rings(coordinates)
        polygons = [polygon(rings[0], rings[1:]) for rings in map(_rings, parts)]
    except ValueError as error:
        raise CohortError(
            f"{where} ({name}) has coordinates that make no polygon: {error}; {_DRAW}"
        ) from None
    return Region(name, polygons[0] if kind == "Polygon" else shapely.MultiPolygon(polygons))


def _name(feature: Any) -> str:
    """The class of a feature; "" where it has none."""
    name = member(member(member(feature, "properties"), "classification"), "name")
    return name if isinstance(name, str) else ""


def _rings(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{quoted(value)} is no list of rings")
    return value


def _ring(corners: Any) -> list[tuple[float, float]]:
    if not isinstance(corners, list | tuple):
        raise ValueError(f"{quoted(corners)} is no list of corners")
    if len(corners) < 3:
        raise ValueError(f"a ring has {len(corners)} corners, but needs three")
    return [_corner(corner) for corner in corners]


def _corner(corner: Any) -> tuple[float, float]:
    if not isinstance(corner, list | tuple) or not 2 <= len(corner) <= 3:
        raise ValueError(f"{quoted(corner)} is no corner of x and y")
    for number in corner[:2]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{quoted(number)} is no number")
        if not -LARGEST <= number <= LARGEST or math.isnan(number):
            raise ValueError(f"{quoted(number)} is no pixel of a slide")
    return float(corner[0]), float(corner[1])


def _crossings(geometries: Sequence[shapely.Geometry], most: int, predicate: str) -> int:
    """How many pairs of segments of the outlines are `predicate` to each other, those that follow
    each other on a ring not counted.

    Counting stops where there are more than `most`, and holds a few segments at a time against all,
    whatever the outlines.
    """
    starts, ends, follows = _segments(geometries)
    lines = shapely.linestrings(np.stack([starts, ends], axis=1))
    tree = shapely.STRtree(lines)
    count = 0
    for first in range(0, len(lines), _BLOCK):
        one, other = tree.query(lines[first : first + _BLOCK], predicate=predicate)
        one += first
        later = one < other
        count += int((later & (follows[one] != other) & (follows[other] != one)).sum())
        if count > most:
            break
    return count


def _segments(
    geometries: Sequence[shapely.Geometry],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(segments, 2) start and end of each segment of all rings that is no point, and (segments,)
    the number of the next one on its ring.
    """
    corners, ring = shapely.get_coordinates(
        shapely.get_rings(shapely.get_parts(list(geometries))), return_index=True
    )
    is_segment = (ring[:-1] == ring[1:]) & (corners[:-1] != corners[1:]).any(axis=1)
    starts = corners[:-1][is_segment]
    ends = corners[1:][is_segment]
    ring = ring[:-1][is_segment]
    follows = np.arange(1, len(ring) + 1)
    last = np.flatnonzero(np.diff(ring, append=-1) != 0)
    follows[last] = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    return starts, ends, follows
