"""Outlines that others drew: ASAP's XML, and the JSON of the NCRF project, as regions of hnm."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
import shapely

from hnm.errors import CohortError, SlideError
from hnm.files import parse_json, read_bounded
from hnm.names import is_printable, quoted
from hnm.params import LESION_NAMES
from hnm.slides.annotations import (
    MOST_BYTES,
    MOST_CORNERS,
    MOST_NAME,
    MOST_REGIONS,
    Region,
    areal_parts,
    joined,
    member,
    mended,
    names_lesion,
    polygon,
)
from hnm.slides.workers import each

HOLE_GROUPS = frozenset({"_2", "exclusion"})
"""Groups of ASAP, in small letters, whose shapes are cut out of the tumour."""
MOST_LEVELS = 100
"""Of an XML file."""
SECONDS = 300.0
"""Time limit of one file."""
_OUTLINES = "; fetch it again, or take it out of the folder"


@dataclass(frozen=True)
class OutlineFile:
    """The outlines of one slide, which a worker process reads."""

    slide_id: str
    path: Path
    """Absolute, as workers know no working directory."""


def read_outlines(paths: Mapping[str, Path]) -> dict[str, list[Region] | str]:
    """Returns the regions of each slide, by its id, or what is wrong with its file.

    A worker process reads the files, as a stranger's file may hang or crash its reader.
    """
    files = [OutlineFile(slide_id, path.absolute()) for slide_id, path in paths.items()]
    return {
        file.slide_id: f"{file.path}: {regions}" if isinstance(regions, SlideError) else regions
        for file, regions in each(_regions, files, seconds=SECONDS, step="open", here=True)
    }


def _regions(file: OutlineFile) -> list[Region] | str:
    try:
        return outlined(file.path)
    except CohortError as error:
        return str(error)


def outlined(path: Path) -> list[Region]:
    """The tumour of an ASAP XML file, or of NCRF's JSON: its polygons without the excluded ones, as
    regions "tumour".

    Tumour are the groups that `hnm.params.LESION_NAMES` holds, `_0`, `_1` and Tumor among them;
    excluded are `_2` and Exclusion. Other polygons keep their group as their name; those without a
    group have ASAP's name for that, "None", as nobody said what they are. What encloses no area,
    such as a stray click, is left out.
    """
    groups = _grouped(
        _ncrf_polygons(path) if path.suffix.lower() == ".json" else _asap_polygons(path), path
    )
    holes = joined(
        [area for name, areas in groups.items() if name.casefold() in HOLE_GROUPS for area in areas]
    )
    regions = []
    for name, areas in groups.items():
        if names_lesion(name, LESION_NAMES):
            for area in areas:
                rest = joined(areal_parts(np.array([shapely.difference(area, holes)])))
                regions += [Region("tumour", shapely.normalize(rest))] if rest.area else []
        elif name.casefold() not in HOLE_GROUPS:
            regions += [Region(name, area) for area in areas]
    return regions


def _asap_polygons(path: Path) -> list[tuple[str, list[Any]]]:
    """(group, corners) of each shape of an ASAP XML file."""
    drawn: list[tuple[str, list[Any]]] = []
    depth = 0

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MOST_LEVELS:
            raise ValueError(f"it has more than {MOST_LEVELS} levels")
        if tag == "Annotation":
            drawn.append((attributes.get("PartOfGroup", "None"), []))
        elif tag == "Coordinate" and drawn:
            drawn[-1][1].append((float(attributes["X"]), float(attributes["Y"])))

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = _no_doctype
    try:
        parser.Parse(_content(path), True)
    except KeyError as error:
        raise CohortError(
            f"{path} is no XML of ASAP: a Coordinate has no {error.args[0]}{_OUTLINES}"
        ) from None
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise CohortError(f"{path} is no XML of ASAP: {error}{_OUTLINES}") from None
    return drawn


def _no_doctype(*_: object) -> None:
    raise ValueError("it declares a document type, whose entities may be without end")


def _content(path: Path) -> bytes:
    return read_bounded(path, CohortError, what=str(path), cure=_OUTLINES, most=MOST_BYTES)


def _ncrf_polygons(path: Path) -> list[tuple[str, list[Any]]]:
    """(name of ASAP's group, corners) of each shape of NCRF's JSON."""
    value = parse_json(_content(path), CohortError, what=str(path), cure=_OUTLINES)
    drawn = []
    for kind, group in (("positive", "_0"), ("negative", "_2")):
        shapes = member(value, kind)
        if not isinstance(shapes, list):
            raise CohortError(
                f"{path} is no annotation of NCRF: it has no list {kind!r}{_OUTLINES}"
            )
        for shape in shapes:
            corners = member(shape, "vertices")
            if not isinstance(corners, list):
                raise CohortError(
                    f"{path} is no annotation of NCRF: a shape of {kind!r} has no list"
                    f" 'vertices'{_OUTLINES}"
                )
            drawn.append((group, corners))
    return drawn


def _grouped(
    drawn: Sequence[tuple[str, list[Any]]], path: Path
) -> dict[str, list[shapely.Geometry]]:
    """The areas of each group, mended; shapes of fewer than three corners, and those that enclose
    nothing, are none.
    """
    if len(drawn) > MOST_REGIONS or sum(len(corners) for _, corners in drawn) > MOST_CORNERS:
        raise CohortError(
            f"{path} has more than {MOST_REGIONS} shapes or {MOST_CORNERS} corners; simplify it"
        )
    regions = []
    for number, (group, corners) in enumerate(drawn, 1):
        if len(group) > MOST_NAME or not is_printable(group):
            raise CohortError(
                f"{path}, shape {number}: its group {quoted(group)} is no text of one line of at"
                f" most {MOST_NAME} characters; rename it"
            )
        try:
            regions += [Region(group, polygon(corners))] if len(corners) >= 3 else []
        except ValueError as error:
            raise CohortError(
                f"{path}, shape {number} ({group}): {error}; delete it or draw it again"
            ) from None
    groups: dict[str, list[shapely.Geometry]] = defaultdict(list)
    for region in mended(regions, str(path), empty_too=True):
        groups[region.name].append(region.geometry)
    return groups
