"""Manifests from what public cohorts look like on a disk: CAMELYON16, TCGA as the GDC's tools fetch it, one folder a class.

Each function gives entries for a manifest and notes on what was left out, and why; `write_manifest` writes them.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.parsers import expat

import shapely

from hnm.draws import seed_of
from hnm.errors import CohortError
from hnm.files import parse_json, read_bounded, whole
from hnm.names import ID_WORDS, is_id, is_printable, quoted
from hnm.slides.annotations import MOST_BYTES, MOST_CORNERS, MOST_NAME, MOST_REGIONS, Region, joined, mended, polygon, write_annotation
from hnm.slides.cohort import OPTIONAL, REQUIRED, Entry, read_manifest
from hnm.slides.rows import text_lines, text_rows

SUFFIXES = frozenset({".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm"})
"""Of the files that OpenSlide opens, one a slide; DICOM has one a level."""
TUMOUR_GROUPS = frozenset({"_0", "_1", "tumor", "metastases"})
HOLE_GROUPS = frozenset({"_2", "exclusion"})
CAMELYON16_LEFT_OUT = {
    "normal_086": "it holds a metastasis; its makers gave it out again as tumor_111",
    "test_049": "it is a duplicate of another slide of the test set",
}
CAMELYON16_HALF_DRAWN = {"test_114": "not all of its metastases are drawn, so that its tiles have no sure truth"}
MOST_LEVELS = 100
"""Of an XML file."""
_OUTLINES = "; fetch it again, or take it out of the folder"
BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-\d{2}[A-Z]-\d{2}-[A-Z]{2}[A-Z0-9]*")


@dataclass(frozen=True)
class Found:
    """What a folder holds."""

    entries: list[Entry]
    """With absolute paths."""
    notes: list[str]
    """What a person should know: what was left out, and why."""


def camelyon16(folder: Path, annotations: Path, *, validation_share: float, seed: int) -> Found:
    """CAMELYON16 (Ehteshami Bejnordi et al. 2017): slides named normal_001, tumor_001, test_001, … anywhere under `folder`.

    A train slide's label is in its name, that of the test slides in reference.csv. Outlines are ASAP's XML, or the JSON of
    the NCRF project, named as their slide; they are written as GeoJSON to the folder `annotations`. Patients are not
    known: each slide counts as one. Where the test slides are there, validation is drawn from the train slides, by label.
    Raises `CohortError` where a label is missing or a file is not what it should be.
    """
    slides = _by_name(path for path in _slides_under(folder) if re.fullmatch(r"(normal|tumor|test)_\d+", path.stem.lower()))
    outlines = _by_name(path for pattern in ("*.xml", "*.json") for path in sorted(folder.rglob(pattern)) if path.stem.lower() in slides)
    notes = [f"{name} is left out: {why}" for name, why in CAMELYON16_LEFT_OUT.items() if slides.pop(name, None)]
    known = _reference(folder) if any(name.startswith("test") for name in slides) else {}
    entries = []
    for name, path in sorted(slides.items()):
        if name.startswith("test") and name not in known:
            raise CohortError(f"{path}: reference.csv has no label of {name}; put the whole reference.csv beside the test slides")
        label = known.get(name, int(name.startswith("tumor")))
        entry = Entry(name, str(path), label, name, None, None, None, None)
        if name in CAMELYON16_HALF_DRAWN:
            notes.append(f"{name} has no annotation: {CAMELYON16_HALF_DRAWN[name]}")
        elif label and name not in outlines:
            notes.append(f"{name} has no annotation: there is no {name}.xml under {folder}")
        elif label:
            target = annotations / f"{name}.geojson"
            write_annotation(outlined(outlines[name]), target)
            entry = replace(entry, annotation=str(target.absolute()))
        entries.append(entry)
    if known:
        drawn = _drawn_validation([entry for entry in entries if not entry.slide_id.startswith("test")], validation_share, seed)
        entries = [replace(e, split="test" if e.slide_id.startswith("test") else "validation" if e.slide_id in drawn else "train") for e in entries]
    return Found(_some(entries, folder, "normal_001.tif, tumor_001.tif, test_001.tif"), notes)


def tcga(folder: Path, sheet: Path, *, labels: Path | None, column: str, positive: str | None) -> Found:
    """Slides of TCGA, as the GDC's client lays them out (`<File ID>/<File Name>`), listed in a sample `sheet` (TSV).

    The label is 1 where the sheet's `column` is `positive`, or else comes from `labels`, a CSV with `label` (0 or 1) and
    `patient_id` or `slide_id`; what it does not name is left out. Patient and slide come from the barcode of the file's
    name (TCGA-05-4244 of TCGA-05-4244-01Z-00-DX1); without one, the patient is the sheet's Case ID.
    """
    rows = [row for _, row in _rows(sheet, "\t", ("File ID", "File Name", "Case ID")) if Path(row["File Name"]).suffix.lower() in SUFFIXES]
    if labels is None and rows and column not in rows[0]:
        raise CohortError(f"{sheet} has no column {column!r}; its columns are {', '.join(rows[0])}")
    if labels is None and not 0 < (found := sum(row[column] == positive for row in rows)) < len(rows):
        values = ", ".join(sorted({row[column] for row in rows}))
        raise CohortError(f"{sheet}: {found} of {len(rows)} slides have {column}={positive!r}; name one of several values as positive: {values}")
    known, key = _labels(labels) if labels else ({}, "")
    entries, missing, unknown = [], 0, 0
    for row in rows:
        name = row["File Name"]
        barcode = BARCODE.match(name)
        slide_id, patient_id = (barcode[0], barcode[1]) if barcode else (Path(name).stem, row["Case ID"])
        if labels and (patient_id if key == "patient_id" else slide_id) not in known:
            unknown += 1
            continue
        label = known[patient_id if key == "patient_id" else slide_id] if labels else int(row[column] == positive)
        places = [folder / row["File ID"] / name, folder / name]
        path = next((place for place in places if place.exists()), places[0])
        missing += not path.exists()
        entries.append(Entry(slide_id, str(path), label, patient_id, None, None, None, None))
    notes = [f"{unknown} slides are left out: {labels} has no label of them"] if unknown else []
    notes += [f"{missing} slides are not under {folder}; fetch them, or they go to quarantine"] if missing else []
    kinds = Counter("frozen" if re.search(r"-[TBM]S[A-Z0-9]*\Z", entry.slide_id) else "diagnostic" for entry in entries)
    if len(kinds) > 1:
        notes.append(f"{kinds['diagnostic']} slides are diagnostic (DX) and {kinds['frozen']} frozen sections, which look otherwise; consider one kind")
    return Found(_some(entries, sheet, "slides"), notes)


def directory(folder: Path, *, positive: str) -> Found:
    """One folder a class: `folder`/`positive`/… has the slides of label 1, each other folder those of label 0.

    Slides may lie in deeper folders; their names are their ids. A folder with DICOM files is one slide, with the folder's name.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if positive not in {path.name for path in classes}:
        raise CohortError(f"{folder} has no folder {positive!r}; its folders are {', '.join(path.name for path in classes) or 'none'}")
    entries = []
    for of_class in classes:
        slides = _slides_under(of_class)
        alone = [path for path in slides if path.suffix.lower() != ".dcm"]
        first = {path.parent: path for path in reversed(slides) if path.suffix.lower() == ".dcm"}
        named = [(path.stem, path) for path in alone] + [(parent.name, path) for parent, path in sorted(first.items())]
        entries += [Entry(name, str(path), int(of_class.name == positive), name, None, None, None, None) for name, path in named]
    for entry in entries:
        if not is_id(entry.slide_id):
            raise CohortError(f"{entry.path!r}: its name cannot be a slide_id; rename it to {ID_WORDS}")
    return Found(_some(entries, folder, f"slides ({', '.join(sorted(SUFFIXES))})"), [])


def write_manifest(entries: Collection[Entry], path: Path) -> None:
    """The manifest of `entries` at `path`, read back and checked; places under its folder become relative to it."""
    folder = path.parent.absolute()

    def place(file: str | None) -> str:
        if file is None:
            return ""
        full = Path(file).absolute()
        if not is_printable(str(full)):
            raise CohortError(f"{str(full)!r}: this path is not UTF-8 of one line, so that no manifest can hold it; rename the file or its folders")
        return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else str(full)

    rows = [{**vars(entry), "path": place(entry.path), "annotation": place(entry.annotation)} for entry in entries]
    columns = [*REQUIRED, *(name for name in OPTIONAL if any(row[name] for row in rows))]
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    read_manifest(path)


def outlined(path: Path) -> list[Region]:
    """The tumour of an ASAP XML file, or of NCRF's JSON: its polygons without the excluded ones, as regions "tumour".

    Polygons of a group that is neither tumour (`_0`, `_1`, Tumor) nor excluded (`_2`, Exclusion) keep the group as their
    name. What encloses no area, such as a stray click, is left out.
    """
    groups = _grouped(_ncrf_polygons(path) if path.suffix.lower() == ".json" else _asap_polygons(path), path)
    holes = joined([area for name, areas in groups.items() if name.casefold() in HOLE_GROUPS for area in areas])
    regions = []
    for name, areas in groups.items():
        if name.casefold() in TUMOUR_GROUPS:
            regions += [Region("tumour", whole) for area in areas if (whole := _areal(shapely.difference(area, holes))).area]
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
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = begin, end, _no_doctype
    try:
        parser.Parse(_content(path), True)
    except KeyError as error:
        raise CohortError(f"{path} is no XML of ASAP: a Coordinate has no {error.args[0]}{_OUTLINES}") from None
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
        shapes = value.get(kind) if isinstance(value, dict) else None
        if not isinstance(shapes, list):
            raise CohortError(f"{path} is no annotation of NCRF: it has no list {kind!r}{_OUTLINES}")
        for shape in shapes:
            corners = shape.get("vertices") if isinstance(shape, dict) else None
            if not isinstance(corners, list):
                raise CohortError(f"{path} is no annotation of NCRF: a shape of {kind!r} has no list 'vertices'{_OUTLINES}")
            drawn.append((group, corners))
    return drawn


def _grouped(drawn: Sequence[tuple[str, list[Any]]], path: Path) -> dict[str, list[shapely.Geometry]]:
    """The areas of each group, mended; shapes of fewer than three corners, and those that enclose nothing, are none."""
    if len(drawn) > MOST_REGIONS or sum(len(corners) for _, corners in drawn) > MOST_CORNERS:
        raise CohortError(f"{path} has more than {MOST_REGIONS} shapes or {MOST_CORNERS} corners; simplify it")
    regions = []
    for number, (group, corners) in enumerate(drawn, 1):
        if len(group) > MOST_NAME or not is_printable(group):
            raise CohortError(f"{path}, shape {number}: its group {quoted(group)} is no text of one line of at most {MOST_NAME} characters; rename it")
        try:
            regions += [Region(group, polygon(corners))] if len(corners) >= 3 else []
        except ValueError as error:
            raise CohortError(f"{path}, shape {number} ({group}): {error}; delete it or draw it again") from None
    groups: dict[str, list[shapely.Geometry]] = defaultdict(list)
    for region in mended(regions, str(path), empty_too=True):
        groups[region.name].append(region.geometry)
    return groups


def _areal(geometry: shapely.Geometry) -> shapely.Polygon | shapely.MultiPolygon:
    """`geometry` without its points and lines."""
    parts = [part for part in shapely.get_parts(shapely.get_parts(geometry)) if part.geom_type in {"Polygon", "MultiPolygon"}]
    return shapely.normalize(shapely.union_all(parts))


def _reference(folder: Path) -> dict[str, int]:
    """Labels of CAMELYON16's test slides: rows of name, Tumor or Normal, and more."""
    paths = sorted(folder.rglob("reference.csv"))
    if not paths:
        raise CohortError(f"{folder} has test slides but no reference.csv, which has their labels; put it there")
    known = {}
    for number, row in text_lines(paths[0], str(paths[0])):
        if re.fullmatch(r"test_\d+", name := row[0].strip().lower().removesuffix(".tif")):
            kind = row[1].strip().casefold() if len(row) > 1 else ""
            if kind not in {"tumor", "normal"}:
                raise CohortError(f"{paths[0]}, row {number} ({name}): {quoted(kind)} is neither Tumor nor Normal")
            known[name] = int(kind == "tumor")
    return known


def _drawn_validation(entries: Collection[Entry], share: float, seed: int) -> set[str]:
    """`share` of the slides of each label, at least one."""
    drawn: set[str] = set()
    for label in (0, 1):
        ids = sorted((entry.slide_id for entry in entries if entry.label == label), key=lambda slide_id: (seed_of(seed, "split", slide_id), slide_id))
        drawn |= set(ids[: max(1, round(share * len(ids)))])
    return drawn


def _labels(path: Path) -> tuple[dict[str, int], str]:
    """Label by patient or slide, and which of the two."""
    rows = _rows(path, ",", ("label",))
    key = next((name for name in ("patient_id", "slide_id") if name in rows[0][1]), None)
    if key is None:
        raise CohortError(f"{path} has neither a column patient_id nor slide_id")
    known: dict[str, int] = {}
    for number, row in rows:
        if row["label"] not in {"0", "1"}:
            raise CohortError(f"{path}, row {number} ({key}={row[key]}): label={quoted(row['label'])} is not 0 or 1; leave out the rows without a label")
        if known.setdefault(row[key], int(row["label"])) != int(row["label"]):
            raise CohortError(f"{path}, row {number}: {key}={row[key]} has the labels 0 and 1")
    return known, key


def _rows(path: Path, delimiter: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    header, rows = text_rows(path, str(path), delimiter=delimiter, cure="; name a table of text")
    if not rows or not set(columns) <= set(header):
        raise CohortError(f"{path} needs rows and the columns {', '.join(columns)}; it has {', '.join(header) if rows else 'no rows'}")
    return rows


def _slides_under(folder: Path) -> list[Path]:
    return sorted(path.absolute() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Each path by its stem in lower case; a name that is there twice is refused."""
    named: dict[str, Path] = {}
    for path in paths:
        if (other := named.setdefault(path.stem.lower(), path)) != path:
            raise CohortError(f"{other} and {path} have one name; keep one of them")
    return named


def _some(entries: list[Entry], where: Path, what: str) -> list[Entry]:
    if not entries:
        raise CohortError(f"{where} holds no {what}; name the folder that does")
    return entries
