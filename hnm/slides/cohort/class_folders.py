"""A manifest of slides that lie in one folder a class."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hnm.errors import CohortError
from hnm.slides.cohort.draft import DraftManifest, drafted
from hnm.slides.cohort.folder import (
    SUFFIXES,
    LeftOut,
    files_under,
    is_dicom,
    is_slide,
    is_visible,
    series_of,
)
from hnm.slides.cohort.manifest import ManifestRow
from hnm.slides.cohort.slide_names import slide_ids_of


def directory(folder: Path, *, positive: str) -> DraftManifest:
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
    labels_of: dict[str, set[str]] = defaultdict(set)
    for class_folder in classes:
        for path, name in _slides_of_class(class_folder, left_out):
            real = os.path.realpath(path)
            if real in slides:
                left_out.add(path, "another way to a slide that is found already")
            slides.setdefault(real, (str(path), name))
            labels_of[real].add(str(int(class_folder.name == positive)))
    for path in sorted(folder.iterdir()):
        if path not in classes and (path.is_dir() or is_slide(path)) and is_visible(path, left_out):
            left_out.add(path, "slides beside the folders of the classes, which have no label")
    labels: dict[str, str] = {}
    names: dict[str, str] = {}
    for real, (place, name) in slides.items():
        if len(labels_of[real]) > 1:
            left_out.add(place, "it lies in a folder of label 0 and in one of label 1")
        else:
            names[place] = name
            (labels[place],) = labels_of[real]
    rows = [
        ManifestRow(slide_id, place, labels[place], slide_id)
        for slide_id, place in slide_ids_of(sorted(labels), names=names).items()
    ]
    return drafted(
        rows,
        [],
        left_out,
        f"{folder} holds no slides ({', '.join(sorted(SUFFIXES))}); name the folder that does",
    )


def _slides_of_class(folder: Path, left_out: LeftOut) -> Iterator[tuple[Path, str]]:
    """Yields each slide below `folder`, with the name that it gets its id from."""
    series: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in files_under(folder, left_out):
        if not is_slide(path):
            left_out.add(path, f"hnm reads no slides of the suffix {path.suffix.lower() or 'none'}")
        elif is_dicom(path):
            series[path.parent][series_of(path)].append(path)
        else:
            yield path, path.name
    for parent, files_of in series.items():
        if len(files_of) > 1:
            for path in files_of.pop("", []):
                left_out.add(path, "the header of a DICOM file names no series")
        for uid, files in files_of.items():
            digest = f"-{hashlib.sha256(uid.encode()).hexdigest()[:8]}" if len(files_of) > 1 else ""
            yield files[0], f"{parent.name}{digest}.dcm"
