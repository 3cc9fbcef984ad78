"""A manifest of TCGA's slides, as the GDC's client lays them out (`<File ID>/<File Name>`)."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import CohortError
from hnm.names import quoted
from hnm.rows import is_unknown
from hnm.slides.cohort.draft import DraftManifest, drafted, sheet_rows
from hnm.slides.cohort.folder import SUFFIXES, LeftOut, files_under, is_slide
from hnm.slides.cohort.manifest import ManifestRow
from hnm.slides.cohort.slide_names import slide_ids_of
from hnm.slides.cohort.tcga_samples import NORMAL, TUMOUR, Sample, sample_of

NORMAL_TISSUE = ("leave-out", "negative", "keep")
"""What can become of normal tissue."""
COLUMNS_OF_SAMPLES = frozenset({"sample type", "tissue type"})
"""Columns of a sample sheet, in small letters, that speak of the sample itself."""


@dataclass(frozen=True)
class Labelling:
    """Where the labels of slides come from."""

    source: str
    """Names it in messages."""
    label_of: Callable[[Sample, Mapping[str, str]], str | None]
    """Returns the label of a sample with its row of the sheet; None where there is none."""
    is_of_samples: bool
    """Whether a label speaks of the sample itself, and not of its patient's tumour."""


def tcga(
    folder: Path,
    sheet: Path,
    *,
    labels: Path | None,
    column: str,
    positive: str | None,
    normal: str | None = None,
) -> DraftManifest:
    """Slides of TCGA that a sample sheet (TSV) lists.

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
            or keeps its label as if it were tumour. None keeps the label where that speaks of the
            sample (`COLUMNS_OF_SAMPLES`, labels by slide_id), and leaves the slide out otherwise,
            as the label is then that of the patient's tumour.

    Raises:
        CohortError: the sheet or the labels are no such tables, or no slide is left.
    """
    _check_normal(normal)
    left_out = LeftOut()
    sheet_lines = _slide_lines(sheet, folder, left_out)
    if labels is None:
        labelling = _by_column(sheet, sheet_lines, column, positive)
    else:
        labelling = _by_table(labels, left_out)
    normal = normal or ("keep" if labelling.is_of_samples else "leave-out")
    labelled: dict[str, tuple[Sample, str]] = {}
    for line in sheet_lines:
        sample = sample_of(line)
        label = labelling.label_of(sample, line)
        path = str(_place(folder, line))
        reason = sample.fault or _refusal(sample, label, labelling.source, normal)
        if label is None or reason or path in labelled:
            left_out.add(sample.slide_name, reason or "the sheet lists it twice")
        elif sample.kind == NORMAL and normal == "negative":
            labelled[path] = sample, "0"
        else:
            labelled[path] = sample, label
    names = {path: f"{sample.slide_name}.svs" for path, (sample, _) in labelled.items()}
    rows = [
        ManifestRow(slide_id, path, labelled[path][1], labelled[path][0].patient_id or slide_id)
        for slide_id, path in slide_ids_of(labelled, names=names).items()
    ]
    samples = [sample for sample, _ in labelled.values()]
    notes = _notes_on_files(rows, folder) + _notes(samples, normal)
    nothing = f"{sheet} holds no slides; name the folder and the sheet that do"
    return drafted(rows, notes, left_out, nothing)


def _check_normal(normal: str | None) -> None:
    if normal not in (None, *NORMAL_TISSUE):
        raise CohortError(
            f"--normal {normal!r} is none of {', '.join(NORMAL_TISSUE)}; name one of them, or leave"
            " it out"
        )


def _slide_lines(sheet: Path, folder: Path, left_out: LeftOut) -> list[dict[str, str]]:
    """Returns the lines of a sample sheet that are of slides; slides in `folder` that no line names
    are noted.
    """
    lines = []
    for _, line in sheet_rows(sheet, ("File ID", "File Name", "Case ID"), delimiter="\t"):
        if Path(line["File Name"]).suffix.lower() in SUFFIXES:
            lines.append(line)
        else:
            left_out.add(line["File Name"], "files of the sheet that are no slides")
    listed = {_place(folder, line).absolute() for line in lines}
    for path in files_under(folder, left_out) if folder.is_dir() else []:
        if is_slide(path) and path not in listed:
            left_out.add(path, "slides that the sheet does not list")
    return lines


def _place(folder: Path, line: Mapping[str, str]) -> Path:
    """Returns where the file of a line lies, or should."""
    places = [folder / line["File ID"] / line["File Name"], folder / line["File Name"]]
    return next((place for place in places if place.exists()), places[0])


def _by_column(
    sheet: Path, lines: Sequence[Mapping[str, str]], column: str, positive: str | None
) -> Labelling:
    """Returns the labels of a column of the sheet; `CohortError` where it does not tell slides
    apart.
    """
    if lines and column not in lines[0]:
        raise CohortError(
            f"{sheet} has no column {column!r}; its columns are {', '.join(lines[0])}"
        )
    count = sum(line[column] == positive for line in lines)
    if lines and not 0 < count < len(lines):
        values = ", ".join(sorted({line[column] for line in lines}))
        raise CohortError(
            f"{sheet}: {count} of {len(lines)} slides have {column}={positive!r}; name one of"
            f" several values as positive: {values}"
        )
    return Labelling(
        str(sheet),
        lambda _, line: str(int(line[column] == positive)),
        column.casefold() in COLUMNS_OF_SAMPLES,
    )


def _by_table(path: Path, left_out: LeftOut) -> Labelling:
    """Returns the labels of a table; what has no label, or two, has none here."""
    rows = sheet_rows(path, ("label",))
    key = next((name for name in ("patient_id", "slide_id") if name in rows[0][1]), None)
    if key is None:
        raise CohortError(f"{path} has neither a column patient_id nor slide_id")
    labels_of: dict[str, set[str]] = defaultdict(set)
    for number, row in rows:
        if row["label"] in {"0", "1"} and not is_unknown(row[key]):
            labels_of[row[key]].add(row["label"])
        else:
            left_out.add(
                f"row {number}, {key}={row[key]}, label={quoted(row['label'])}",
                f"rows of {path.name} without a label of 0 or 1, or without a name",
            )
    label_of: dict[str, str] = {}
    for name, labels in labels_of.items():
        if len(labels) > 1:
            left_out.add(f"{key}={name}", f"{path.name} gives it the labels 0 and 1")
        else:
            (label_of[name],) = labels
    by_patient = key == "patient_id"
    return Labelling(
        str(path),
        lambda sample, _: label_of.get(
            (sample.patient_id or "") if by_patient else sample.slide_name
        ),
        not by_patient,
    )


def _refusal(sample: Sample, label: str | None, source: str, normal: str) -> str | None:
    """Returns why a slide is left out for its label or its kind of tissue; None where it is not."""
    if label is None:
        return f"{source} has no label of it"
    if normal == "keep" or sample.kind in (None, TUMOUR):
        return None
    more = ""
    if sample.kind == NORMAL:
        if normal == "negative":
            return None
        more = "; --normal negative takes it as label 0, --normal keep as if it were tumour"
    return f"it is {sample.kind}, of which the label of its patient's tumour does not speak{more}"


def _notes_on_files(rows: Sequence[ManifestRow], folder: Path) -> list[str]:
    missing = sum(not Path(row.path).exists() for row in rows)
    if not missing:
        return []
    return [f"{missing} slides are not under {folder}; fetch them, or they go to quarantine"]


def _notes(samples: Sequence[Sample], normal: str) -> list[str]:
    notes = []
    frozen = sum(bool(re.search(r"-[TBM]S[A-Z0-9]*\Z", sample.slide_name)) for sample in samples)
    if 0 < frozen < len(samples):
        notes.append(
            f"{len(samples) - frozen} slides are diagnostic (DX) and {frozen} frozen sections,"
            " which look otherwise; consider one kind"
        )
    if normals := sum(sample.kind == NORMAL for sample in samples):
        label = "have label 0" if normal == "negative" else "keep the label that is given to them"
        notes.append(f"{normals} slides are of normal tissue (sample types 10 to 19) and {label}")
    codes = Counter(sample.code for sample in samples)
    metastatic = codes[6] + codes[7]
    if codes[2] + metastatic:
        notes.append(
            f"{codes[2] + metastatic} slides are of recurrent (02: {codes[2]}) or metastatic"
            f" tumours (06, 07: {metastatic}), which count as tumour"
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
