"""The cohort: which slides there are, what they are called, and which split they belong to.

The manifest is a person's work, so everything about it is checked, and every message names the row.
"""

import difflib
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from hnm.causes import keys_of
from hnm.errors import CohortError, SlideError
from hnm.files import read_bounded, write_json
from hnm.names import ID_WORDS, clash, is_id, is_printable, quoted
from hnm.params import Split
from hnm.rows import MOST_BYTES, is_unknown, number, text_rows
from hnm.seeds import seed_of
from hnm.slides.cutting.masks import Placement, mask_bytes, placement_of
from hnm.slides.reading.canvas import Box, Canvas, OriginParam
from hnm.slides.reading.failures import StorageError, one_line
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.reading.remote import fetched, version_of
from hnm.slides.reading.urls import checked_url, is_url, kept_form, lacks_query
from hnm.store import Store
from hnm.tables import QUARANTINE, SPLITS

REQUIRED = ("slide_id", "path", "label")
OPTIONAL = ("patient_id", "split", "mpp", "annotation", "mask")
MOST_STATEMENT_BYTES = 1 << 16
LONGEST_PATH = 4096
NAMED_ROWS = 10
"""Rows that an error names at most."""
_UNKNOWN_PATIENTS = (
    "leave the cell empty where the patient is not known: the slide then counts as a patient of"
    " its own"
)
PLAUSIBLE_MPP = (0.05, 20.0)
"""µm per pixel: finer than any objective resolves, and coarser than any slide scanner."""
OBJECTIVE_MPP = {40.0: 0.25, 20.0: 0.5, 10.0: 1.0}
"""Objective power -> the µm per pixel that scanners have with it, within about a tenth."""


@dataclass(frozen=True)
class Entry:
    """One row of the manifest."""

    slide_id: str
    path: str
    """As written: a URL, or a path; a relative one counts from the manifest's folder."""
    label: int
    patient_id: str
    split: str | None
    """None where the manifest has no column `split`."""
    mpp: float | None
    """µm per pixel that override the file's."""
    annotation: str | None
    """GeoJSON file; a relative path counts from the manifest's folder."""
    mask: str | None
    """Tissue mask, an image or GeoJSON; a relative path counts from the manifest's folder."""


@dataclass(frozen=True)
class Opening:
    """One slide to open."""

    slide_id: str
    source: str
    """Absolute path or URL of its file."""
    mpp: float | None
    """µm per pixel that override the file's."""
    mask: Path | None = None
    mpp_from_objective: bool = False
    """Whether the objective power may tell the µm per pixel of a file that does not."""
    known: Store | None = None
    """Where what a URL's file states is kept, so that a slide that did not change is not fetched
    again.
    """
    origin: OriginParam = "auto"
    """As `cohort.origin`."""


@dataclass(frozen=True)
class Stated:
    """What a slide's file says of itself, without a look at pixels."""

    vendor: str
    mpp: tuple[float, float] | None
    objective_power: float | None
    dimensions: tuple[int, int]
    bounds: Box
    fingerprint: str


@dataclass(frozen=True)
class Identity:
    """What can be known of a slide's file without reading pixels."""

    vendor: str
    mpp: tuple[float, float]
    objective_power: float | None
    """Where `mpp` comes from it, and not from the file or the manifest."""
    canvas: Canvas
    fingerprint: str
    mask_digest: str
    """"" where the slide has no mask from elsewhere."""
    mask_placement: Placement


def read_manifest(path: Path) -> list[Entry]:
    """The rows of a manifest, in its order; `CohortError` names row, column, value and cure."""
    cure = "; correct cohort.manifest, which counts from the repository's root"
    content = read_bounded(
        path, CohortError, what=f"the manifest {path}", cure=cure, most=MOST_BYTES
    )
    columns, rows = text_rows(content, f"the manifest {path}")
    _check_columns(columns, path)
    entries = [_entry(row, f"{path}, row {number}") for number, row in rows]
    if not entries:
        raise CohortError(f"the manifest {path} lists no slides")
    _check_unique(entries, path)
    _check_known_patients(entries, [number for number, _ in rows], path)
    for name, values in (
        ("slide_id", [entry.slide_id for entry in entries]),
        ("patient_id", [entry.patient_id for entry in entries]),
    ):
        if two := clash(values):
            raise CohortError(
                f"{path}: {name}={two[0]} and {name}={two[1]} differ only in capitals, which some"
                " file systems take for one name; rename one of them"
            )
    _check_patients(entries, path)
    return entries


def splits_of(entries: Collection[Entry], split: Split) -> dict[str, str]:
    """Slide id -> split: the manifest's, or drawn by patient, stratified by label.

    A patient is positive if any of its slides is. Within each class the patients are ordered by a
    seeded hash of their id: the first are test, the last validation, those between train. So the
    order of rows does not matter, and one patient more moves at most one other into or out of each
    of test and validation.
    """
    if all(entry.split is not None for entry in entries):
        return {entry.slide_id: str(entry.split) for entry in entries}
    positive: dict[str, bool] = defaultdict(bool)
    for entry in entries:
        positive[entry.patient_id] |= entry.label == 1
    assigned: dict[str, str] = {}
    for label in (False, True):
        patients = sorted(
            (patient for patient, is_positive in positive.items() if is_positive == label),
            key=lambda p: (seed_of(split.seed, "split", p), p),
        )
        assigned |= _drawn(patients, split, "positive" if label else "negative")
    return {entry.slide_id: assigned[entry.patient_id] for entry in entries}


def with_queries(slides: pd.DataFrame, manifest: Path) -> pd.DataFrame:
    """`slides`, a `SLIDES` table, with the queries of its URLs: they may be signed tokens, so the
    manifest alone holds them.

    Raises:
        CohortError: the manifest names another place than the table does.
    """
    lacking = [
        slide_id
        for slide_id, path in zip(slides["slide_id"], slides["path"], strict=True)
        if lacks_query(path)
    ]
    if not lacking:
        return slides
    paths = {entry.slide_id: entry.path for entry in read_manifest(manifest)}
    for slide_id, path in zip(slides["slide_id"], slides["path"], strict=True):
        if slide_id in lacking and kept_form(paths.get(slide_id, "")) != path:
            raise CohortError(
                f"{manifest} names another place for slide_id={slide_id} than when its cohort was"
                " checked; run dvc repro"
            )
    return slides.assign(
        path=[
            paths[slide_id] if slide_id in lacking else path
            for slide_id, path in zip(slides["slide_id"], slides["path"], strict=True)
        ]
    )


def check_classes(labels: Mapping[str, int], splits: Mapping[str, str], where: str) -> None:
    """Raises `CohortError` unless each split has slides of both labels; `where` says in what."""
    for name in SPLITS:
        found = {label for slide_id, label in labels.items() if splits[slide_id] == name}
        if found != {0, 1}:
            has = "has no slides" if not found else f"has only slides of label {found.pop()}"
            raise CohortError(
                f"{where}: split {name} {has}, but each of {', '.join(SPLITS)} needs both labels;"
                " add slides or move patients"
            )


def identify(opening: Opening) -> Identity:
    """Opens a slide and takes its identity.

    Raises:
        SlideError: what is wrong with it, of step `open`, `mpp` or, where its mask is none,
        `tissue`. MachineError: the machine or the storage does not give the slide or its mask.
    """
    stated = (
        _stated_at_url(opening.source, opening.known)
        if is_url(opening.source) and opening.known
        else _stated(opening.source)
    )
    mpp, power = (opening.mpp, opening.mpp) if opening.mpp is not None else stated.mpp, None
    if mpp is None:
        power, mpp = _power_and_mpp(stated, opening)
    if not all(PLAUSIBLE_MPP[0] <= value <= PLAUSIBLE_MPP[1] for value in mpp):
        raise SlideError(
            f"its file states {mpp[0]:.4g} x {mpp[1]:.4g} µm per pixel, not within"
            f" {PLAUSIBLE_MPP[0]:g} and {PLAUSIBLE_MPP[1]:g}; give the true value in the manifest's"
            " column mpp",
            step="mpp",
        )
    canvas = Canvas(*stated.dimensions, stated.bounds, opening.origin)
    mask = b"" if opening.mask is None else mask_bytes(opening.mask)
    return Identity(
        stated.vendor,
        mpp,
        power,
        canvas,
        stated.fingerprint,
        "" if opening.mask is None else hashlib.sha256(mask).hexdigest(),
        (
            Placement()
            if opening.mask is None
            else placement_of(mask, opening.mask, canvas, f"slide {opening.slide_id}")
        ),
    )


def _power_and_mpp(stated: Stated, opening: Opening) -> tuple[float, tuple[float, float]]:
    """The objective power of a file that states no µm per pixel, and those that scanners have with
    it.
    """
    power = stated.objective_power
    if power is None or not opening.mpp_from_objective:
        allow = (
            f", or set cohort.mpp_from_objective: its objective has power {power:g}"
            if power
            else ""
        )
        raise SlideError(
            f"its file states no µm per pixel; give them in the manifest's column mpp{allow}",
            step="mpp",
        )
    if power not in OBJECTIVE_MPP:
        plausible = ", ".join(f"{known:g}" for known in OBJECTIVE_MPP)
        raise SlideError(
            f"its file states no µm per pixel, and its objective power {power:g} is none of"
            f" {plausible}; give the µm per pixel in the manifest's column mpp",
            step="mpp",
        )
    return power, (OBJECTIVE_MPP[power], OBJECTIVE_MPP[power])


def _stated(source: str) -> Stated:
    with fetched(source, stays=True) as path, OpenSlideReader(path) as slide:  # it is cut next
        return Stated(
            slide.vendor,
            slide.mpp,
            slide.objective_power,
            slide.dimensions,
            slide.bounds,
            slide.fingerprint(),
        )


def _stated_at_url(url: str, store: Store) -> Stated:
    """As `_stated`, from `store` where the URL has the size and entity tag that it had."""
    version = version_of(url)
    if not version.etag:  # a file that was replaced by one of equal size could not be told from it
        return _stated(url)
    kept = store.path(
        "stated",
        keys_of("hnm.slides.reading.reader")(url=url, size=version.size, etag=version.etag),
        ".json",
    )
    if (stated := _kept_statement(kept)) is None:
        stated = _stated(url)
        if (
            version_of(url) != version
            # then it may be the later file that was fetched, and would be kept under the earlier
            # one's
            # name
        ):
            raise StorageError(f"{version.name} changed while it was read")
        write_json(asdict(stated), kept)
    return stated


def _kept_statement(path: Path) -> Stated | None:
    """What was kept of a slide's file; None where nothing was, or it is damaged and must be read
    anew.
    """
    if not path.exists():
        return None
    try:
        return TypeAdapter(Stated).validate_json(
            read_bounded(path, SlideError, what=str(path), most=MOST_STATEMENT_BYTES)
        )
    except (SlideError, ValidationError):
        return None


def check_twins(fingerprints: Mapping[str, str]) -> None:
    """Raises `CohortError` where two slide ids are copies of one file: they would count twice, or
    cross the splits.
    """
    first: dict[str, str] = {}
    for slide_id, fingerprint in sorted(fingerprints.items()):
        if (twin := first.setdefault(fingerprint, slide_id)) != slide_id:
            raise CohortError(
                f"slides {twin} and {slide_id} are copies of one file (equal fingerprints); list"
                " one of them"
            )


def check_quarantine(reasons: Mapping[str, str], slides: int, max_share: float) -> None:
    """Raises `CohortError` with the reasons where more than `max_share` of the manifest's `slides`
    are in quarantine.
    """
    if len(reasons) > max_share * slides:
        listed = "".join(
            f"\n  {slide_id}: {reason}" for slide_id, reason in sorted(reasons.items())
        )
        raise CohortError(
            f"{len(reasons)} of {slides} slides are in quarantine, more than"
            f" cohort.max_quarantined_share={max_share:g} allows:{listed}"
        )


def quarantine_frame(refused: Mapping[str, SlideError]) -> pd.DataFrame:
    """Rows of the table QUARANTINE."""
    rows = [(slide_id, error.step, one_line(str(error))) for slide_id, error in refused.items()]
    return pd.concat(
        [QUARANTINE.empty(), pd.DataFrame(rows, columns=list(QUARANTINE.columns), dtype=str)]
    )


def _drawn(patients: list[str], split: Split, kind: str) -> dict[str, str]:
    """Split of each patient of one class, given in their order of drawing."""
    if len(patients) < len(SPLITS):
        raise CohortError(
            f"{len(patients)} {kind} patients cannot be split into {', '.join(SPLITS)}; each needs"
            " one at least: add patients"
        )
    test = max(1, math.floor(split.test_share * len(patients) + 0.5))
    validation = max(1, math.floor(split.validation_share * len(patients) + 0.5))
    while test + validation >= len(patients):
        test, validation = (test - 1, validation) if test >= validation else (test, validation - 1)
    names = (
        ["test"] * test
        + ["train"] * (len(patients) - test - validation)
        + ["validation"] * validation
    )
    return dict(zip(patients, names, strict=True))


def _check_columns(columns: list[str], path: Path) -> None:
    known = REQUIRED + OPTIONAL
    if len(columns) == 1 and (other := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        raise CohortError(f"{path}: its columns are separated by {other!r}; save it with commas")
    for column in columns:
        if column not in known:
            close = difflib.get_close_matches(column, known, n=1)
            raise CohortError(
                f"{path}: unknown column {quoted(column)}; "
                + (f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}")
            )
    if missing := [column for column in REQUIRED if column not in columns]:
        raise CohortError(
            f"{path}: column {missing[0]} is missing; required are {', '.join(REQUIRED)}"
        )


def _entry(cells: dict[str, str], where: str) -> Entry:
    slide_id = _identifier(cells["slide_id"], "slide_id", where)
    where = f"{where} (slide_id={slide_id})"
    if not cells["path"]:
        raise CohortError(f"{where}: path is empty")
    if is_url(cells["path"]):
        try:
            checked_url(cells["path"])
        except SlideError as error:
            raise CohortError(f"{where}: path: {error}") from None
    for name in ("path", "annotation", "mask"):
        if not is_printable(cells.get(name, "")) or len(cells.get(name, "")) > LONGEST_PATH:
            raise CohortError(
                f"{where}: {name}={quoted(cells[name])} is no path of one line, of at most"
                f" {LONGEST_PATH} characters; correct it"
            )
    for column in ("annotation", "mask"):
        if cells.get(column) and is_unknown(cells[column]):
            raise CohortError(
                f"{where}: {column}={quoted(cells[column])} names no file; leave the cell empty"
                " where there is none"
            )
        if is_url(cells.get(column) or ""):
            raise CohortError(
                f"{where}: {column} is a URL, which only slides are fetched by; fetch the file and"
                " give its path"
            )
    if cells["label"] not in {"0", "1"}:
        raise CohortError(
            f"{where}: label={quoted(cells['label'])} is not 0 or 1; the pipeline tells two classes"
            " apart: make one class 1 and the rest 0"
        )
    if "split" in cells and cells["split"] not in SPLITS:
        raise CohortError(
            f"{where}: split={quoted(cells['split'])} is not one of {', '.join(SPLITS)}; leave the"
            " whole column out to have it drawn"
        )
    return Entry(
        slide_id,
        cells["path"],
        int(cells["label"]),
        _patient(cells.get("patient_id", ""), slide_id, where),
        cells.get("split"),
        _mpp(cells["mpp"], where) if cells.get("mpp") else None,
        cells.get("annotation") or None,
        cells.get("mask") or None,
    )


def _identifier(value: str, name: str, where: str) -> str:
    if not is_id(value):
        raise CohortError(f"{where}: {name}={quoted(value)} must be {ID_WORDS}")
    return value


def _patient(cell: str, slide_id: str, where: str) -> str:
    """The patient of a row; where the cell is empty, the slide counts as a patient of its own."""
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
    if mpp is None or not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        point = ", written with a point" if "," in value else ""
        raise CohortError(
            f"{where}: mpp={quoted(value)} is no number of µm per pixel between"
            f" {PLAUSIBLE_MPP[0]:g} and {PLAUSIBLE_MPP[1]:g}{point}"
        )
    return mpp


def _check_unique(entries: Iterable[Entry], path: Path) -> None:
    ids: set[str] = set()
    files: dict[str, str] = {}
    for entry in entries:
        if entry.slide_id in ids:
            raise CohortError(
                f"{path}: slide_id={entry.slide_id} stands there twice; give each slide its own"
            )
        ids.add(entry.slide_id)
        file = entry.path if is_url(entry.path) else os.path.realpath(path.parent / entry.path)
        if file in files:
            raise CohortError(
                f"{path}: slides {files[file]} and {entry.slide_id} are the same file"
                f" {kept_form(entry.path)}; list it once"
            )
        files[file] = entry.slide_id


def _check_known_patients(entries: Sequence[Entry], numbers: Sequence[int], path: Path) -> None:
    """Raises `CohortError` where slides share a patient whose name says that nobody knows who it
    is.
    """
    of_word: dict[str, list[int]] = defaultdict(list)
    for entry, row in zip(entries, numbers, strict=True):
        if is_unknown(entry.patient_id):
            of_word[entry.patient_id.casefold()].append(row)
    for word, rows in of_word.items():
        if len(rows) > 1:
            first = ", ".join(map(str, rows[:NAMED_ROWS]))
            more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
            raise CohortError(
                f"{path}: {len(rows)} slides have patient_id={word!r} (rows {first}{more}), which"
                f" would make one patient of all unknown ones; {_UNKNOWN_PATIENTS}. If it is one"
                f" patient's name, write it otherwise (p-{word})"
            )


def _check_patients(entries: Iterable[Entry], path: Path) -> None:
    seen: dict[str, str | None] = {}
    for entry in entries:
        if seen.setdefault(entry.patient_id, entry.split) != entry.split:
            raise CohortError(
                f"{path}: patient_id={entry.patient_id} is in the splits {seen[entry.patient_id]}"
                f" and {entry.split}; put all its slides into one"
            )
