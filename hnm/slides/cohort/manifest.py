"""The manifest of a cohort: which slides there are, and what is known of them.

The manifest is a person's work, so everything about it is checked, and every message names the row.
"""

import difflib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from hnm.errors import CohortError, SlideError
from hnm.files import read_bounded
from hnm.names import ID_WORDS, clash, is_id, is_printable, quoted, shortlist
from hnm.rows import MOST_BYTES, is_unknown, number, text_rows
from hnm.slides.mpp import PLAUSIBLE_MPP, is_plausible
from hnm.slides.reading.urls import checked_url, is_url, kept_form, lacks_query
from hnm.tables import SPLITS

REQUIRED = ("slide_id", "path", "label")
OPTIONAL = ("patient_id", "split", "mpp", "annotation", "mask")
LONGEST_PATH = 4096
LONGEST_LABEL = 256
NAMED_ROWS = 10
"""Rows that an error names at most."""
_UNKNOWN_PATIENTS = (
    "leave the cell empty where the patient is not known: the slide then counts as a patient of"
    " its own"
)


@dataclass(frozen=True)
class ManifestRow:
    """One slide of the manifest."""

    slide_id: str
    path: str
    """As written: a URL, or a path; a relative one counts from the manifest's folder."""
    label: str
    """As written: 0, 1, or a word."""
    patient_id: str
    split: str | None = None
    """None where the manifest has no column `split`."""
    mpp: float | None = None
    """µm per pixel that override the file's."""
    annotation: str | None = None
    """GeoJSON file; a relative path counts from the manifest's folder."""
    mask: str | None = None
    """Tissue mask, an image or GeoJSON; a relative path counts from the manifest's folder."""
    line: int = field(default=0, compare=False)
    """Number of its line in the manifest."""


def read_manifest(path: Path) -> list[ManifestRow]:
    """Returns the rows of a manifest, in its order.

    Raises:
        CohortError: it is no manifest; the message names row, column, value and cure.
    """
    cure = "; correct cohort.manifest, which counts from the repository's root"
    content = read_bounded(
        path, CohortError, what=f"the manifest {path}", cure=cure, most=MOST_BYTES
    )
    columns, lines = text_rows(content, f"the manifest {path}")
    _check_columns(columns, path)
    rows = [_row(cells, line, f"{path}, row {line}") for line, cells in lines]
    if not rows:
        raise CohortError(f"the manifest {path} lists no slides")
    _check_unique(rows, path)
    _check_unknown_patients(rows, path)
    for column in ("slide_id", "patient_id"):
        if two := clash(getattr(row, column) for row in rows):
            raise CohortError(
                f"{path}: {column}={two[0]} and {column}={two[1]} differ only in capitals, which"
                " some file systems take for one name; rename one of them"
            )
    _check_patients_in_one_split(rows, path)
    return rows


def with_queries(slides: pd.DataFrame, manifest: Path) -> pd.DataFrame:
    """Returns `slides`, a `SLIDES` table, with the queries of its URLs.

    They may be signed tokens, so the manifest alone holds them.

    Raises:
        CohortError: the manifest names another place than the table does.
    """
    places = dict(zip(slides["slide_id"], slides["path"], strict=True))
    if not any(map(lacks_query, places.values())):
        return slides
    manifest_places = {row.slide_id: row.path for row in read_manifest(manifest)}
    for slide_id, place in places.items():
        if lacks_query(place):
            places[slide_id] = manifest_places.get(slide_id, "")
            if kept_form(places[slide_id]) != place:
                raise CohortError(
                    f"{manifest} names another place for slide_id={slide_id} than when its cohort"
                    " was checked; run dvc repro"
                )
    return slides.assign(path=list(places.values()))


def _check_columns(columns: Sequence[str], path: Path) -> None:
    if len(columns) == 1 and (other := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        raise CohortError(f"{path}: its columns are separated by {other!r}; save it with commas")
    for column in columns:
        if column not in REQUIRED + OPTIONAL:
            close = difflib.get_close_matches(column, REQUIRED + OPTIONAL, n=1)
            cure = (
                f"did you mean {close[0]}?"
                if close
                else f"known are {', '.join(REQUIRED + OPTIONAL)}"
            )
            raise CohortError(f"{path}: unknown column {quoted(column)}; {cure}")
    for column in REQUIRED:
        if column not in columns:
            raise CohortError(
                f"{path}: column {column} is missing; required are {', '.join(REQUIRED)}"
            )


def _row(cells: dict[str, str], line: int, where: str) -> ManifestRow:
    slide_id = _identifier(cells["slide_id"], "slide_id", where)
    where = f"{where} (slide_id={slide_id})"
    _check_paths(cells, where)
    label = cells["label"]
    if is_unknown(label) or not is_printable(label) or len(label) > LONGEST_LABEL:
        raise CohortError(
            f"{where}: label={quoted(label)} is not 0 or 1, and no word for a class; correct it, or"
            " take the slide out"
        )
    if "split" in cells and cells["split"] not in SPLITS:
        raise CohortError(
            f"{where}: split={quoted(cells['split'])} is not one of {', '.join(SPLITS)}; leave the"
            " whole column out to have it drawn"
        )
    return ManifestRow(
        slide_id,
        cells["path"],
        label,
        _patient(cells.get("patient_id", ""), slide_id, where),
        cells.get("split"),
        _mpp(cells["mpp"], where) if cells.get("mpp") else None,
        cells.get("annotation") or None,
        cells.get("mask") or None,
        line,
    )


def _check_paths(cells: dict[str, str], where: str) -> None:
    if not cells["path"]:
        raise CohortError(f"{where}: path is empty")
    if is_url(cells["path"]):
        try:
            checked_url(cells["path"])
        except SlideError as error:
            raise CohortError(f"{where}: path: {error}") from None
    for column in ("path", "annotation", "mask"):
        place = cells.get(column, "")
        if not is_printable(place) or len(place) > LONGEST_PATH:
            raise CohortError(
                f"{where}: {column}={quoted(place)} is no path of one line, of at most"
                f" {LONGEST_PATH} characters; correct it"
            )
        if column == "path" or not place:
            continue
        if is_unknown(place):
            raise CohortError(
                f"{where}: {column}={quoted(place)} names no file; leave the cell empty where there"
                " is none"
            )
        if is_url(place):
            raise CohortError(
                f"{where}: {column} is a URL, which only slides are fetched by; fetch the file and"
                " give its path"
            )


def _identifier(value: str, name: str, where: str) -> str:
    if not is_id(value):
        raise CohortError(f"{where}: {name}={quoted(value)} must be {ID_WORDS}")
    return value


def _patient(cell: str, slide_id: str, where: str) -> str:
    """Returns the patient of a row; where the cell is empty, the slide counts as one."""
    if not cell:
        return slide_id
    if is_unknown(cell) and not is_id(cell):
        raise CohortError(
            f"{where}: patient_id={quoted(cell)} says that the patient is unknown;"
            f" {_UNKNOWN_PATIENTS}"
        )
    return _identifier(cell, "patient_id", where)


def _mpp(value: str, where: str) -> float:
    mpp = number(value)
    if mpp is None or not is_plausible(mpp):
        point = ", written with a point" if "," in value else ""
        raise CohortError(
            f"{where}: mpp={quoted(value)} is no number of µm per pixel between"
            f" {PLAUSIBLE_MPP[0]:g} and {PLAUSIBLE_MPP[1]:g}{point}"
        )
    return mpp


def _check_unique(rows: Sequence[ManifestRow], path: Path) -> None:
    ids: set[str] = set()
    slide_of: dict[str, str] = {}
    for row in rows:
        if row.slide_id in ids:
            raise CohortError(
                f"{path}: slide_id={row.slide_id} stands there twice; give each slide its own"
            )
        ids.add(row.slide_id)
        place = row.path if is_url(row.path) else os.path.realpath(path.parent / row.path)
        if (other := slide_of.setdefault(place, row.slide_id)) != row.slide_id:
            raise CohortError(
                f"{path}: slides {other} and {row.slide_id} are the same file"
                f" {kept_form(row.path)}; list it once"
            )


def _check_unknown_patients(rows: Sequence[ManifestRow], path: Path) -> None:
    """Raises `CohortError` where slides share a patient whose name says that nobody knows who it
    is.
    """
    lines_of: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if is_unknown(row.patient_id):
            lines_of[row.patient_id.casefold()].append(str(row.line))
    for word, lines in lines_of.items():
        if len(lines) > 1:
            raise CohortError(
                f"{path}: {len(lines)} slides have patient_id={word!r} (rows"
                f" {shortlist(lines, NAMED_ROWS)}), which would make one patient of all unknown"
                f" ones; {_UNKNOWN_PATIENTS}. If it is one patient's name, write it otherwise"
                f" (p-{word})"
            )


def _check_patients_in_one_split(rows: Sequence[ManifestRow], path: Path) -> None:
    split_of: dict[str, str | None] = {}
    for row in rows:
        if (other := split_of.setdefault(row.patient_id, row.split)) != row.split:
            raise CohortError(
                f"{path}: patient_id={row.patient_id} is in the splits {other} and {row.split};"
                " put all its slides into one"
            )
