"""The step `cohort`: the checked cohort, from the manifest and the header of each slide.

It writes the slides, their patients, their labels by split, the annotations, and what cannot be
used.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hnm.errors import SlideError
from hnm.loop.paths import CohortFiles
from hnm.params import Cohort, Split
from hnm.progress import followed
from hnm.project import project_file
from hnm.slides.annotations import Region, write_annotation
from hnm.slides.cohort.identity import Identity, SlideSource, check_twins, identify
from hnm.slides.cohort.labels import check_classes, labels_of, splits_of
from hnm.slides.cohort.manifest import ManifestRow, read_manifest
from hnm.slides.cohort.quarantine import check_quarantine, quarantine_frame
from hnm.slides.drawings import Drawing, read_drawings, warn_of_origins, warn_of_places
from hnm.slides.reading.urls import kept_form, place_of
from hnm.slides.workers import each
from hnm.store import Store, project_store
from hnm.tables import LABELS, PATIENTS, QUARANTINE, SLIDES, SPLITS

OPEN_SECONDS = 300.0
"""Time limit of opening one slide."""


def check_cohort(files: CohortFiles, *, cohort: Cohort, split: Split) -> None:
    """Checks the manifest, opens each slide for its fingerprint, assigns splits, and writes what
    `files` names. Nothing is written before all is checked.

    Raises:
        CohortError: the manifest, a split, the share of slides in quarantine or an annotation is
            not as it must be.
    """
    manifest = project_file(Path(cohort.manifest))
    entries = {row.slide_id: row for row in read_manifest(manifest)}
    labels = labels_of(entries.values(), cohort.positive, manifest)
    splits = splits_of(entries.values(), labels, split)
    check_classes(labels, splits, str(manifest))
    folder = manifest.parent.resolve()
    opened, refused = _open_slides(entries, folder, cohort)
    _print_summary(entries, opened, refused)
    reasons = {slide_id: str(error) for slide_id, error in refused.items()}
    check_quarantine(reasons, len(entries), cohort.max_quarantined_share)
    labels = {slide_id: labels[slide_id] for slide_id in opened}
    check_classes(labels, splits, f"{manifest}, without the slides in quarantine")
    check_twins({slide_id: identity.fingerprint for slide_id, identity in opened.items()})
    _warn_of_masks(opened)
    regions = read_drawings(
        [
            Drawing(slide_id, project_file(folder / annotation), identity.canvas)
            for slide_id, identity in opened.items()
            if (annotation := entries[slide_id].annotation)
        ]
    )

    QUARANTINE.write(quarantine_frame(refused), files.quarantine)
    rows = [_row(entries[name], splits[name], identity) for name, identity in opened.items()]
    slides = pd.DataFrame(rows)
    SLIDES.write(slides, files.slides)
    PATIENTS.write(slides[list(PATIENTS.columns)], files.patients)
    for name in SPLITS:
        slide_ids = [slide_id for slide_id in labels if splits[slide_id] == name]
        table = {"slide_id": slide_ids, "label": [labels[slide_id] for slide_id in slide_ids]}
        LABELS.write(pd.DataFrame(table), files.labels(name))
    _write_annotations(regions, files.annotations)


def _open_slides(
    entries: Mapping[str, ManifestRow], folder: Path, cohort: Cohort
) -> tuple[dict[str, Identity], dict[str, SlideError]]:
    """Opens the slides of a manifest in `folder`. Returns the identity of each slide that opens,
    and the error of each other.
    """
    statements = Store(project_store().root.absolute())
    openings = [_opening(entry, folder, cohort, statements) for entry in entries.values()]
    outcomes = followed(
        each(identify, openings, seconds=OPEN_SECONDS, step="open"),
        slides=len(openings),
        doing="opening slides",
        line=_line,
        unit="slides",
    )
    opened = {}
    refused = {}
    for opening, outcome in outcomes:
        if isinstance(outcome, SlideError):
            refused[opening.slide_id] = outcome
        else:
            opened[opening.slide_id] = outcome
    return opened, refused


def _opening(entry: ManifestRow, folder: Path, cohort: Cohort, statements: Store) -> SlideSource:
    """Returns what a worker needs to open the slide of a row of the manifest in `folder`."""
    mask = project_file(folder / entry.mask) if entry.mask else None
    return SlideSource(
        entry.slide_id,
        place_of(entry.path, folder),
        entry.mpp,
        mask,
        cohort.mpp_from_objective,
        statements,
        cohort.origin,
    )


def _line(opened_slide: tuple[SlideSource, Identity | SlideError]) -> tuple[str, int]:
    """Returns what the log says of a slide, and 1 where it was opened."""
    opening, outcome = opened_slide
    if isinstance(outcome, SlideError):
        return f"{opening.slide_id}: {outcome}", 0
    canvas = outcome.canvas
    mpp = " x ".join(f"{value:g}" for value in dict.fromkeys(outcome.mpp))
    return f"{opening.slide_id}: {canvas.width} x {canvas.height} pixels of {mpp} µm", 1


def _print_summary(
    entries: Mapping[str, ManifestRow],
    opened: Mapping[str, Identity],
    refused: Mapping[str, SlideError],
) -> None:
    """Prints how many slides were opened, and what was taken for lack of a statement."""
    print(f"{len(entries)} slides found, {len(opened)} opened, {len(refused)} in quarantine")
    if alone := sum(entry.patient_id == slide_id for slide_id, entry in entries.items()):
        print(f"{alone} slides name no patient, or themselves: each counts as a patient of its own")
    for slide_id, identity in sorted(opened.items()):
        if identity.objective_power is not None:
            print(
                f"{slide_id}: {identity.mpp[0]:g} µm per pixel, from its objective power"
                f" {identity.objective_power:g}"
            )


def _warn_of_masks(opened: Mapping[str, Identity]) -> None:
    """Warns of masks whose regions reach beyond their scan, or that do not say what they count
    from.
    """
    notes = [
        note for _, identity in sorted(opened.items()) for note in identity.mask_placement.notes
    ]
    warn_of_places(notes)
    origins = {
        slide_id: (identity.mask_placement.by, identity.canvas)
        for slide_id, identity in opened.items()
    }
    warn_of_origins("mask", origins)


def _row(entry: ManifestRow, split: str, identity: Identity) -> dict[str, str | int | float]:
    """Returns a slide's row of the table `SLIDES`."""
    canvas = identity.canvas
    return {
        "slide_id": entry.slide_id,
        "path": kept_form(entry.path),
        "patient_id": entry.patient_id,
        "split": split,
        "vendor": identity.vendor,
        "mpp_x": identity.mpp[0],
        "mpp_y": identity.mpp[1],
        "width": canvas.width,
        "height": canvas.height,
        **{f"bounds_{side}": value for side, value in vars(canvas.bounds).items()},
        "origin": canvas.origin,
        "fingerprint": identity.fingerprint,
        "mask": entry.mask or "",
        "mask_digest": identity.mask_digest,
    }


def _write_annotations(regions: Mapping[str, list[Region]], folder: Path) -> None:
    """Writes the regions of each slide into `folder`, which holds nothing else then."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for slide_id, drawn in regions.items():
        write_annotation(drawn, folder / f"{slide_id}.geojson")
