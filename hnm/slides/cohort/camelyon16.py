"""A manifest of CAMELYON16, as it lies on a disk."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hnm.errors import CohortError
from hnm.params import LESION_NAMES
from hnm.rows import text_lines
from hnm.slides.annotations import Region, names_lesion, write_annotation
from hnm.slides.cohort.draft import DraftManifest, drafted
from hnm.slides.cohort.folder import LeftOut, files_under, is_slide
from hnm.slides.cohort.manifest import ManifestRow
from hnm.slides.cohort.outlines import read_outlines
from hnm.splits import dealing_order, size_of_share

LEFT_OUT = {
    "normal_086": "it holds a metastasis; its makers gave it out again as tumor_111",
    "test_049": "it is a duplicate of another slide of the test set",
}
HALF_DRAWN = {
    "test_114": "not all of its metastases are drawn, so that its tiles have no sure truth"
}


def camelyon16(
    folder: Path, annotations: Path, *, validation_share: float, seed: int
) -> DraftManifest:
    """CAMELYON16 (Ehteshami Bejnordi et al. 2017): slides named normal_001, tumor_001, test_001, …
    anywhere under `folder`.

    A train slide's label is in its name, that of the test slides in reference.csv. Outlines are
    ASAP's XML, or the JSON of the NCRF project, named as their slide; they are written as GeoJSON
    to the folder `annotations`. Patients are not known: each slide counts as one. Where the test
    slides are there, validation is drawn from the train slides, by label.

    Raises:
        CohortError: no slide is left, or there are test slides and no reference.csv.
    """
    left_out = LeftOut()
    files = files_under(folder, left_out)
    slides = _slides(files, left_out)
    has_test_slides = any(map(_is_test, slides))
    test_labels = _test_labels(folder, files) if has_test_slides else {}
    rows = []
    for name, path in sorted(slides.items()):
        label = test_labels.get(name) if _is_test(name) else str(int(name.startswith("tumor")))
        if label is None:
            left_out.add(path, "reference.csv does not say whether it is Tumor or Normal")
        else:
            rows.append(ManifestRow(name, str(path), label, name))
    drawings = [path for path in files if path.suffix.lower() in (".xml", ".json")]
    outlines = _by_name((path for path in drawings if path.stem.lower() in slides), left_out)
    rows, notes = _with_annotations(rows, outlines, annotations, folder)
    if has_test_slides:
        rows = _with_splits(rows, validation_share, seed)
    return drafted(
        rows,
        notes,
        left_out,
        f"{folder} holds no normal_001.tif, tumor_001.tif, test_001.tif; name the folder that does",
    )


def _is_test(name: str) -> bool:
    return name.startswith("test")


def _slides(files: Iterable[Path], left_out: LeftOut) -> dict[str, Path]:
    """Returns name -> slide, of those that are named normal_001, tumor_001 or test_001."""
    paths = []
    for path in filter(is_slide, files):
        if re.fullmatch(r"(normal|tumor|test)_\d+", path.stem.lower()):
            paths.append(path)
        else:
            left_out.add(path, "slides that are not named normal_, tumor_ or test_ and a number")
    slides = _by_name(paths, left_out)
    for name, reason in LEFT_OUT.items():
        if slides.pop(name, None):
            left_out.add(name, reason)
    return slides


def _by_name(paths: Iterable[Path], left_out: LeftOut) -> dict[str, Path]:
    """Returns stem in lower case -> path, the first where several have one name."""
    named: dict[str, Path] = {}
    for path in paths:
        if named.setdefault(path.stem.lower(), path) != path:
            left_out.add(path, "another file has the same name, and is taken")
    return named


def _test_labels(folder: Path, files: Iterable[Path]) -> dict[str, str | None]:
    """Returns the labels of the test slides, from rows of name, Tumor or Normal, and more.

    A label is None where the table says something else, or both.
    """
    tables = sorted(path for path in files if path.name.lower() == "reference.csv")
    if not tables:
        raise CohortError(
            f"{folder} has test slides but no reference.csv, which has their labels; put it there"
        )
    labels: dict[str, str | None] = {}
    for _, cells in text_lines(tables[0], str(tables[0])):
        name = cells[0].strip().lower().removesuffix(".tif")
        if re.fullmatch(r"test_\d+", name):
            kind = cells[1].strip().casefold() if len(cells) > 1 else ""
            label = {"tumor": "1", "normal": "0"}.get(kind)
            labels[name] = label if labels.get(name, label) == label else None
    return labels


def _with_annotations(
    rows: Sequence[ManifestRow], outlines: dict[str, Path], annotations: Path, folder: Path
) -> tuple[list[ManifestRow], list[str]]:
    """Returns the rows with the GeoJSON files that are written of their outlines, and notes on
    positive slides whose truth is not whole.
    """
    positive = {row.slide_id for row in rows if row.label == "1"}
    regions_of = read_outlines(
        {name: path for name, path in outlines.items() if name in positive - HALF_DRAWN.keys()}
    )
    annotated = []
    notes = []
    for row in rows:
        name = row.slide_id
        regions = regions_of.get(name, f"there is no {name}.xml under {folder}")
        if isinstance(regions, list):
            path = annotations / f"{name}.geojson"
            write_annotation(regions, path)
            row = replace(row, annotation=str(path.absolute()))
            notes += _notes_on_groups(name, regions)
        elif name in positive:
            notes.append(f"{name} has no annotation: {HALF_DRAWN.get(name, regions)}")
        annotated.append(row)
    return annotated, notes


def _notes_on_groups(name: str, regions: Sequence[Region]) -> list[str]:
    if any(names_lesion(region.name, LESION_NAMES) for region in regions):
        return []
    groups = ", ".join(sorted({region.name for region in regions})) or "nothing"
    return [
        f"{name} has no tumour among its outlines: {groups} is drawn; where that is tumour, name it"
        " in evaluate.lesion_names"
    ]


def _with_splits(rows: Collection[ManifestRow], share: float, seed: int) -> list[ManifestRow]:
    """Returns the rows with the challenge's test slides, and a `share` of the others of each label
    as validation.
    """
    split_of = {row.slide_id: "test" if _is_test(row.slide_id) else "train" for row in rows}
    for label in ("0", "1"):
        names = [row.slide_id for row in rows if row.label == label and not _is_test(row.slide_id)]
        order = dealing_order(names, seed, "split")
        split_of |= dict.fromkeys(order[: size_of_share(share, len(names))], "validation")
    return [replace(row, split=split_of[row.slide_id]) for row in rows]
