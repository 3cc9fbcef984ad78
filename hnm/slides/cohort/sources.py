"""Manifests from what public cohorts look like on a disk: CAMELYON16, TCGA as the GDC's tools fetch
it, one folder a class.

Each function gives entries for a manifest, notes, and what was left out, by reason;
`write_manifest` writes them. One slide that cannot be taken stops none of the others. What a whole
cohort hangs on, such as its sheet, is an error.
"""

import csv
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hnm.errors import CohortError
from hnm.files import read_bounded, whole
from hnm.names import is_printable, quoted
from hnm.params import LESION_NAMES
from hnm.rows import MOST_BYTES, is_unknown, text_lines, text_rows
from hnm.seeds import seed_of
from hnm.slides.annotations import names_lesion, write_annotation
from hnm.slides.cohort.cohort import LONGEST_PATH, OPTIONAL, REQUIRED, Entry, read_manifest
from hnm.slides.cohort.folder import (
    SUFFIXES,
    LeftOut,
    files_under,
    is_dicom,
    is_slide,
    is_visible,
    series_of,
)
from hnm.slides.cohort.outlines import outlined
from hnm.slides.cohort.slide_names import slide_ids_of
from hnm.slides.cohort.tcga_samples import NORMAL, TUMOUR, Sample, sample_of

CAMELYON16_LEFT_OUT = {
    "normal_086": "it holds a metastasis; its makers gave it out again as tumor_111",
    "test_049": "it is a duplicate of another slide of the test set",
}
CAMELYON16_HALF_DRAWN = {
    "test_114": "not all of its metastases are drawn, so that its tiles have no sure truth"
}
NORMAL_TISSUE = ("leave-out", "negative", "keep")
"""What can become of normal tissue."""
OF_SAMPLES = frozenset({"sample type", "tissue type"})
"""Columns of a sample sheet, in small letters, that speak of the sample itself."""


@dataclass(frozen=True)
class Found:
    """What a folder holds."""

    entries: list[Entry]
    """With absolute paths."""
    notes: list[str]
    """What a person should know of them."""
    left_out: LeftOut = field(default_factory=LeftOut)


def camelyon16(folder: Path, annotations: Path, *, validation_share: float, seed: int) -> Found:
    """CAMELYON16 (Ehteshami Bejnordi et al. 2017): slides named normal_001, tumor_001, test_001, …
    anywhere under `folder`.

    A train slide's label is in its name, that of the test slides in reference.csv. Outlines are
    ASAP's XML, or the JSON of the NCRF project, named as their slide; they are written as GeoJSON
    to the folder `annotations`. Patients are not known: each slide counts as one. Where the test
    slides are there, validation is drawn from the train slides, by label. Raises `CohortError`
    where no slide is left, or there are test slides and no reference.csv.
    """
    left_out = LeftOut()
    files = files_under(folder, left_out)
    slides = _by_name(_named_as_camelyon(files, left_out), left_out)
    outlines = _by_name(
        (
            path
            for path in files
            if path.suffix.lower() in (".xml", ".json") and path.stem.lower() in slides
        ),
        left_out,
    )
    for name, why in CAMELYON16_LEFT_OUT.items():
        if slides.pop(name, None):
            left_out.add(name, why)
    known = _reference(folder, files) if any(name.startswith("test") for name in slides) else {}
    entries = []
    notes = []
    for name, path in sorted(slides.items()):
        if name.startswith("test") and known.get(name) is None:
            left_out.add(path, "reference.csv does not say whether it is Tumor or Normal")
            continue
        label = known.get(name, int(name.startswith("tumor")))
        entry = Entry(name, str(path), int(label or 0), name, None, None, None, None)
        if label:
            drawn, note = _camelyon_annotation(name, outlines.get(name), annotations, folder)
            entry = replace(entry, annotation=drawn)
            notes += [note] if note else []
        entries.append(entry)
    if known:
        drawn_for = _drawn_validation(
            [entry for entry in entries if not entry.slide_id.startswith("test")],
            validation_share,
            seed,
        )
        entries = [replace(e, split=_camelyon_split(e.slide_id, drawn_for)) for e in entries]
    return _found(
        entries,
        notes,
        left_out,
        f"{folder} holds no normal_001.tif, tumor_001.tif, test_001.tif; name the folder that does",
    )


def tcga(
    folder: Path,
    sheet: Path,
    *,
    labels: Path | None,
    column: str,
    positive: str | None,
    normal: str | None = None,
) -> Found:
    """Slides of TCGA, as the GDC's client lays them out (`<File ID>/<File Name>`), listed in a
    sample `sheet` (TSV).

    The label is 1 where the sheet's `column` is `positive`, or else comes from `labels`, a CSV with
    `label` (0 or 1) and `patient_id` or `slide_id`; what it does not name is left out. Patient and
    slide come from the barcode of the file's name (TCGA-05-4244 of TCGA-05-4244-01Z-00-DX1);
    without one, the patient is the sheet's Case ID.

    Args:
        folder: of the slides.
        sheet: the GDC's sample sheet.
        labels: table of labels, or None.
        column: of the sheet, for labels.
        positive: its value that is label 1.
        normal: what becomes of normal tissue (sample types 10 to 19): it is left out, is label 0,
        or keeps its label as
            if it were tumour. None keeps the label where that speaks of the sample (`OF_SAMPLES`,
            labels by slide_id), and leaves the slide out otherwise, as the label is then that of
            the patient's tumour.

    Raises:
        CohortError: the sheet or the labels are no such tables, or no slide is left.
    """
    if normal not in (None, *NORMAL_TISSUE):
        raise CohortError(
            f"--normal {normal!r} is none of {', '.join(NORMAL_TISSUE)}; name one of them, or leave"
            " it out"
        )
    left_out = LeftOut()
    rows = _slide_rows(sheet, folder, left_out)
    if labels is None:
        _check_column(sheet, rows, column, positive)
    known, key = _labels(labels, left_out) if labels else ({}, "")
    speaks_of_samples = key == "slide_id" or (labels is None and column.casefold() in OF_SAMPLES)
    normal = normal or ("keep" if speaks_of_samples else "leave-out")
    listed: dict[str, tuple[Sample, int]] = {}
    for row in rows:
        sample = sample_of(row)
        named = sample.patient_id if key == "patient_id" else sample.slide_name
        label = int(row[column] == positive) if labels is None else known.get(named or "")
        reason = sample.fault or (
            f"{labels} has no label of it" if label is None else _kind_refused(sample, normal)
        )
        path = str(_place(folder, row))
        if reason or path in listed:
            left_out.add(sample.slide_name, reason or "the sheet lists it twice")
            continue
        listed[path] = (
            sample,
            (0 if sample.kind == NORMAL and normal == "negative" else int(label or 0)),
        )
    ids = slide_ids_of(
        listed, names={path: f"{sample.slide_name}.svs" for path, (sample, _) in listed.items()}
    )
    entries = []
    for slide_id, path in ids.items():
        sample, label = listed[path]
        entries.append(
            Entry(slide_id, path, label, sample.patient_id or slide_id, None, None, None, None)
        )
    notes = _tcga_notes([sample for sample, _ in listed.values()], entries, folder, normal)
    return _found(
        entries, notes, left_out, f"{sheet} holds no slides; name the folder and the sheet that do"
    )


def directory(folder: Path, *, positive: str) -> Found:
    """One folder a class: `folder`/`positive`/… has the slides of label 1, each other folder those
    of label 0.

    Slides may lie in deeper folders, and behind links. Their ids come from their names as `hnm
    predict` makes them. Each series of DICOM in a folder is a slide: it has the folder's name, and
    eight hexadecimal digits of the SHA-256 of its UID behind that where the folder holds several.
    """
    left_out = LeftOut()
    classes = (
        sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if folder.is_dir()
        else []
    )
    if positive not in {path.name for path in classes}:
        raise CohortError(
            f"{folder} has no folder {positive!r}; its folders are"
            f" {', '.join(path.name for path in classes) or 'none'}"
        )
    slides: dict[str, tuple[str, str]] = {}
    labels_of: dict[str, set[int]] = defaultdict(set)
    for of_class in classes:
        for path, name in _slides_of_class(of_class, left_out):
            real = os.path.realpath(path)
            if real in slides:
                left_out.add(path, "another way to a slide that is found already")
            slides.setdefault(real, (str(path), name))
            labels_of[real].add(int(of_class.name == positive))
    for real, labels in labels_of.items():
        if len(labels) > 1:
            left_out.add(
                slides.pop(real)[0], "it lies in a folder of label 0 and in one of label 1"
            )
    for path in sorted(folder.iterdir()):
        if path not in classes and (path.is_dir() or is_slide(path)) and is_visible(path, left_out):
            left_out.add(path, "slides beside the folders of the classes, which have no label")
    label_of = {
        slides[real][0]: labels.copy().pop() for real, labels in labels_of.items() if real in slides
    }
    ids = slide_ids_of(sorted(label_of), names=dict(slides.values()))
    entries = [
        Entry(slide_id, path, label_of[path], slide_id, None, None, None, None)
        for slide_id, path in ids.items()
    ]
    return _found(
        entries,
        [],
        left_out,
        f"{folder} holds no slides ({', '.join(sorted(SUFFIXES))}); name the folder that does",
    )


def write_manifest(entries: Collection[Entry], path: Path) -> None:
    """The manifest of `entries` at `path`, read back and checked; places under its folder become
    relative to it.
    """
    folder = path.parent.absolute()

    def place(file: str | None) -> str:
        if file is None:
            return ""
        full = Path(file).absolute()
        if not is_printable(str(full)):
            raise CohortError(
                f"{str(full)!r}: this path is not UTF-8 of one line, so that no manifest can hold"
                " it; rename the file or its folders"
            )
        relative = full.relative_to(folder).as_posix() if full.is_relative_to(folder) else str(full)
        return (
            relative if relative == relative.strip() else str(full)
        )  # readers take blanks around a cell away

    rows = [
        {**vars(entry), "path": place(entry.path), "annotation": place(entry.annotation)}
        for entry in entries
    ]
    columns = [*REQUIRED, *(name for name in OPTIONAL if any(row[name] for row in rows))]
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    read_manifest(path)


def _found(entries: list[Entry], notes: list[str], left_out: LeftOut, nothing: str) -> Found:
    """What was found, without slides that no manifest can hold; `CohortError` where nothing is
    left.
    """
    listed = []
    for entry in entries:
        if is_printable(entry.path) and len(entry.path) <= LONGEST_PATH:
            listed.append(entry)
        else:
            left_out.add(
                entry.path, f"its path is no UTF-8 of one line of at most {LONGEST_PATH} characters"
            )
    if not listed:
        raise CohortError("\n  ".join([nothing, *left_out.lines()]))
    labels = {entry.label for entry in listed}
    if len(labels) == 1:
        notes = [*notes, f"all slides have label {labels.pop()}, but a cohort needs both"]
    return Found(listed, notes, left_out)


def _slides_of_class(folder: Path, left_out: LeftOut) -> Iterator[tuple[Path, str]]:
    """The slides below `folder`, and the name that each gets its id from."""
    series: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in files_under(folder, left_out):
        if not is_slide(path):
            left_out.add(path, f"hnm reads no slides of the suffix {path.suffix.lower() or 'none'}")
        elif is_dicom(path):
            series[path.parent][series_of(path)].append(path)
        else:
            yield path, path.name
    for parent, of_uid in series.items():
        if len(of_uid) > 1:
            for path in of_uid.pop("", []):
                left_out.add(path, "the header of a DICOM file names no series")
        for uid, files in of_uid.items():
            digest = f"-{hashlib.sha256(uid.encode()).hexdigest()[:8]}" if len(of_uid) > 1 else ""
            yield files[0], f"{parent.name}{digest}.dcm"


def _named_as_camelyon(files: Iterable[Path], left_out: LeftOut) -> Iterator[Path]:
    """The slides among `files` that are named normal_001, tumor_001 or test_001."""
    for path in files:
        if is_slide(path):
            if re.fullmatch(r"(normal|tumor|test)_\d+", path.stem.lower()):
                yield path
            else:
                left_out.add(
                    path, "slides that are not named normal_, tumor_ or test_ and a number"
                )


def _camelyon_annotation(
    name: str, outlines: Path | None, annotations: Path, folder: Path
) -> tuple[str | None, str | None]:
    """The GeoJSON that was written of a slide's outlines, and what a person should know of it."""
    if name in CAMELYON16_HALF_DRAWN:
        return None, f"{name} has no annotation: {CAMELYON16_HALF_DRAWN[name]}"
    if outlines is None:
        return None, f"{name} has no annotation: there is no {name}.xml under {folder}"
    try:
        regions = outlined(outlines)
    except CohortError as error:
        return None, f"{name} has no annotation: {error}"
    target = annotations / f"{name}.geojson"
    write_annotation(regions, target)
    if any(names_lesion(region.name, LESION_NAMES) for region in regions):
        return str(target.absolute()), None
    groups = ", ".join(sorted({region.name for region in regions})) or "nothing"
    return (
        str(target.absolute()),
        (
            f"{name} has no tumour among its outlines: {groups} is drawn; where that is tumour,"
            " name it in evaluate.lesion_names"
        ),
    )


def _camelyon_split(slide_id: str, validation: Collection[str]) -> str:
    if slide_id.startswith("test"):
        return "test"
    return "validation" if slide_id in validation else "train"


def _slide_rows(sheet: Path, folder: Path, left_out: LeftOut) -> list[dict[str, str]]:
    """The rows of a sample sheet that are of slides; slides in `folder` that no row names are
    noted.
    """
    rows = []
    for _, row in _rows(sheet, "\t", ("File ID", "File Name", "Case ID")):
        if Path(row["File Name"]).suffix.lower() in SUFFIXES:
            rows.append(row)
        else:
            left_out.add(row["File Name"], "files of the sheet that are no slides")
    listed = {_place(folder, row).absolute() for row in rows}
    for path in files_under(folder, left_out) if folder.is_dir() else []:
        if is_slide(path) and path not in listed:
            left_out.add(path, "slides that the sheet does not list")
    return rows


def _place(folder: Path, row: Mapping[str, str]) -> Path:
    """Where the file of a row lies, or should."""
    places = [folder / row["File ID"] / row["File Name"], folder / row["File Name"]]
    return next((place for place in places if place.exists()), places[0])


def _check_column(
    sheet: Path, rows: list[dict[str, str]], column: str, positive: str | None
) -> None:
    """Raises `CohortError` where the sheet's `column` does not tell slides apart."""
    if rows and column not in rows[0]:
        raise CohortError(f"{sheet} has no column {column!r}; its columns are {', '.join(rows[0])}")
    if rows and not 0 < (count := sum(row[column] == positive for row in rows)) < len(rows):
        values = ", ".join(sorted({row[column] for row in rows}))
        raise CohortError(
            f"{sheet}: {count} of {len(rows)} slides have {column}={positive!r}; name one of"
            f" several values as positive: {values}"
        )


def _kind_refused(sample: Sample, normal: str) -> str | None:
    """Why a slide of this kind of tissue is left out; None where it is not."""
    if (
        normal == "keep"
        or sample.kind in (None, TUMOUR)
        or (sample.kind == NORMAL and normal == "negative")
    ):
        return None
    more = (
        "; --normal negative takes it as label 0, --normal keep as if it were tumour"
        if sample.kind == NORMAL
        else ""
    )
    return f"it is {sample.kind}, of which the label of its patient's tumour does not speak{more}"


def _tcga_notes(
    samples: list[Sample], entries: list[Entry], folder: Path, normal: str
) -> list[str]:
    """What a person should know of the slides that are taken."""
    notes = []
    if missing := sum(not Path(entry.path).exists() for entry in entries):
        notes.append(
            f"{missing} slides are not under {folder}; fetch them, or they go to quarantine"
        )
    kinds = Counter(
        "frozen" if re.search(r"-[TBM]S[A-Z0-9]*\Z", sample.slide_name) else "diagnostic"
        for sample in samples
    )
    if len(kinds) > 1:
        notes.append(
            f"{kinds['diagnostic']} slides are diagnostic (DX) and {kinds['frozen']} frozen"
            " sections, which look otherwise; consider one kind"
        )
    if normals := sum(sample.kind == NORMAL for sample in samples):
        said = "have label 0" if normal == "negative" else "keep the label that is given to them"
        notes.append(f"{normals} slides are of normal tissue (sample types 10 to 19) and {said}")
    codes = Counter(sample.code for sample in samples)
    if later := codes[2] + codes[6] + codes[7]:
        notes.append(
            f"{later} slides are of recurrent (02: {codes[2]}) or metastatic tumours (06, 07:"
            f" {codes[6] + codes[7]}), which count as tumour"
        )
    vials: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.patient_id and sample.vial:
            vials[sample.patient_id].add(sample.vial)
    if several := sum(len(of_patient) > 1 for of_patient in vials.values()):
        notes.append(f"{several} patients have slides of several samples, which stay in one split")
    if unknown := sum(sample.patient_id is None for sample in samples):
        notes.append(f"{unknown} slides name no patient: each counts as a patient of its own")
    return notes


def _reference(folder: Path, files: Iterable[Path]) -> dict[str, int | None]:
    """Labels of CAMELYON16's test slides: rows of name, Tumor or Normal, and more; None where it
    says something else, or both.
    """
    paths = sorted(path for path in files if path.name.lower() == "reference.csv")
    if not paths:
        raise CohortError(
            f"{folder} has test slides but no reference.csv, which has their labels; put it there"
        )
    known: dict[str, int | None] = {}
    for _, row in text_lines(paths[0], str(paths[0])):
        if re.fullmatch(r"test_\d+", name := row[0].strip().lower().removesuffix(".tif")):
            kind = row[1].strip().casefold() if len(row) > 1 else ""
            label = {"tumor": 1, "normal": 0}.get(kind)
            known[name] = label if known.get(name, label) == label else None
    return known


def _drawn_validation(entries: Collection[Entry], share: float, seed: int) -> set[str]:
    """`share` of the slides of each label, at least one."""
    drawn: set[str] = set()
    for label in (0, 1):
        ids = sorted(
            (entry.slide_id for entry in entries if entry.label == label),
            key=lambda slide_id: (seed_of(seed, "split", slide_id), slide_id),
        )
        drawn |= set(ids[: max(1, round(share * len(ids)))])
    return drawn


def _labels(path: Path, left_out: LeftOut) -> tuple[dict[str, int], str]:
    """Label by patient or slide, and which of the two; what has no label, or two, has none here."""
    rows = _rows(path, ",", ("label",))
    key = next((name for name in ("patient_id", "slide_id") if name in rows[0][1]), None)
    if key is None:
        raise CohortError(f"{path} has neither a column patient_id nor slide_id")
    labels_of: dict[str, set[int]] = defaultdict(set)
    for number, row in rows:
        if row["label"] in {"0", "1"} and not is_unknown(row[key]):
            labels_of[row[key]].add(int(row["label"]))
        else:
            left_out.add(
                f"row {number}, {key}={row[key]}, label={quoted(row['label'])}",
                f"rows of {path.name} without a label of 0 or 1, or without a name",
            )
    for name in [name for name, labels in labels_of.items() if len(labels) > 1]:
        left_out.add(f"{key}={name}", f"{path.name} gives it the labels 0 and 1")
        del labels_of[name]
    return {name: labels.pop() for name, labels in labels_of.items()}, key


def _rows(path: Path, delimiter: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    content = read_bounded(
        path, CohortError, what=str(path), cure="; name a table of text", most=MOST_BYTES
    )
    header, rows = text_rows(content, str(path), delimiter=delimiter)
    if not rows or not set(columns) <= set(header):
        raise CohortError(
            f"{path} needs rows and the columns {', '.join(columns)}; it has"
            f" {', '.join(header) if rows else 'no rows'}"
        )
    return rows


def _by_name(paths: Iterable[Path], left_out: LeftOut) -> dict[str, Path]:
    """Each path by its stem in lower case, the first where several have one name."""
    named: dict[str, Path] = {}
    for path in paths:
        if named.setdefault(path.stem.lower(), path) != path:
            left_out.add(path, "another file has the same name, and is taken")
    return named
