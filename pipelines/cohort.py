"""Manifest -> the checked cohort: slides, labels by split, annotations, and what cannot be used."""

import shutil
from pathlib import Path

import pandas as pd

from hnm.errors import SlideError
from hnm.params import Cohort, Split
from hnm.progress import followed
from hnm.project import project_file
from hnm.slides.annotations import write_annotation
from hnm.slides.cohort.cohort import (
    Entry,
    Identity,
    Opening,
    check_classes,
    check_quarantine,
    check_twins,
    identify,
    quarantine_frame,
    read_manifest,
    splits_of,
)
from hnm.slides.drawings import Drawing, read_drawings, warn_of_origins, warn_of_places
from hnm.slides.reading.urls import kept_form, place_of
from hnm.slides.workers import each
from hnm.store import Store, project_store
from hnm.tables import LABELS, PATIENTS, QUARANTINE, SLIDES, SPLITS
from pipelines import stage

OPEN_SECONDS = 300.0


def main(
    slides: Path,
    patients: Path,
    train_labels: Path,
    validation_labels: Path,
    test_labels: Path,
    annotations: Path,
    quarantine: Path,
    *,
    cohort: Cohort,
    split: Split,
) -> None:
    """Checks the manifest, opens each slide for its fingerprint, and assigns splits."""
    manifest = project_file(Path(cohort.manifest))
    entries = {entry.slide_id: entry for entry in read_manifest(manifest)}
    splits = splits_of(entries.values(), split)
    labels = {slide_id: entry.label for slide_id, entry in entries.items()}
    check_classes(labels, splits, str(manifest))
    folder = manifest.parent.resolve()
    known = Store(project_store().root.absolute())
    openings = [_opening(entry, folder, cohort, known) for entry in entries.values()]
    opening_all = each(identify, openings, seconds=OPEN_SECONDS, step="open")
    told = followed(
        opening_all, slides=len(openings), doing="opening slides", line=_line, unit="slides"
    )
    outcomes = {opening.slide_id: outcome for opening, outcome in told}
    refused = {
        slide_id: outcome
        for slide_id, outcome in outcomes.items()
        if isinstance(outcome, SlideError)
    }
    opened = {
        slide_id: outcome for slide_id, outcome in outcomes.items() if isinstance(outcome, Identity)
    }
    print(f"{len(entries)} slides found, {len(opened)} opened, {len(refused)} in quarantine")
    if alone := sum(entry.patient_id == slide_id for slide_id, entry in entries.items()):
        print(f"{alone} slides name no patient, or themselves: each counts as a patient of its own")
    for slide_id, identity in sorted(opened.items()):
        if identity.objective_power is not None:
            print(
                f"{slide_id}: {identity.mpp[0]:g} µm per pixel, from its objective power"
                f" {identity.objective_power:g}"
            )
    check_quarantine(
        {slide_id: str(error) for slide_id, error in refused.items()},
        len(entries),
        cohort.max_quarantined_share,
    )
    labels = {slide_id: labels[slide_id] for slide_id in opened}
    check_classes(labels, splits, f"{manifest}, without the slides in quarantine")
    check_twins({slide_id: identity.fingerprint for slide_id, identity in opened.items()})
    warn_of_places(
        [note for _, identity in sorted(opened.items()) for note in identity.mask_placement.notes]
    )
    warn_of_origins(
        "mask",
        {
            slide_id: (identity.mask_placement.by, identity.canvas)
            for slide_id, identity in opened.items()
        },
    )
    drawn = read_drawings(
        [
            Drawing(slide_id, project_file(folder / annotation), identity.canvas)
            for slide_id, identity in opened.items()
            if (annotation := entries[slide_id].annotation)
        ]
    )

    QUARANTINE.write(quarantine_frame(refused), quarantine)
    table = pd.DataFrame(
        [
            _row(entries[slide_id], splits[slide_id], identity)
            for slide_id, identity in opened.items()
        ]
    )
    SLIDES.write(table, slides)
    PATIENTS.write(table[list(PATIENTS.columns)], patients)
    for name, path in zip(SPLITS, (train_labels, validation_labels, test_labels), strict=True):
        of_split = [slide_id for slide_id in labels if splits[slide_id] == name]
        LABELS.write(
            pd.DataFrame(
                {"slide_id": of_split, "label": [labels[slide_id] for slide_id in of_split]}
            ),
            path,
        )
    shutil.rmtree(annotations, ignore_errors=True)
    annotations.mkdir(parents=True)
    for slide_id, regions in drawn.items():
        write_annotation(regions, annotations / f"{slide_id}.geojson")


def _opening(entry: Entry, folder: Path, cohort: Cohort, statements: Store) -> Opening:
    """What a worker needs to open the slide of a row of the manifest in `folder`."""
    mask = project_file(folder / entry.mask) if entry.mask else None
    return Opening(
        entry.slide_id,
        place_of(entry.path, folder),
        entry.mpp,
        mask,
        cohort.mpp_from_objective,
        statements,
        cohort.origin,
    )


def _line(opened_slide: tuple[Opening, Identity | SlideError]) -> tuple[str, int]:
    opening, outcome = opened_slide
    if isinstance(outcome, SlideError):
        return f"{opening.slide_id}: {outcome}", 0
    mpp = " x ".join(f"{value:g}" for value in dict.fromkeys(outcome.mpp))
    return (
        f"{opening.slide_id}: {outcome.canvas.width} x {outcome.canvas.height} pixels of {mpp} µm",
        1,
    )


def _row(entry: Entry, split: str, identity: Identity) -> dict[str, str | int | float]:
    return {
        "slide_id": entry.slide_id,
        "path": kept_form(entry.path),
        "patient_id": entry.patient_id,
        "split": split,
        "vendor": identity.vendor,
        "mpp_x": identity.mpp[0],
        "mpp_y": identity.mpp[1],
        "width": identity.canvas.width,
        "height": identity.canvas.height,
        **{f"bounds_{side}": value for side, value in vars(identity.canvas.bounds).items()},
        "origin": identity.canvas.origin,
        "fingerprint": identity.fingerprint,
        "mask": entry.mask or "",
        "mask_digest": identity.mask_digest,
    }


if __name__ == "__main__":
    stage.run(main)
