"""The GeoJSON files of many slides, read in worker processes: one that hangs or crashes its reader
ends neither the stage nor the others.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import CohortError, SlideError
from hnm.files import read_bounded
from hnm.names import shortlist
from hnm.slides.annotations import MOST_BYTES, Drawn, Region, check_inside, drawn_in
from hnm.slides.reading.canvas import By, Canvas
from hnm.slides.workers import each

SECONDS = 300.0
"""Time limit of one file."""
NAMED = 20
"""Faulty files that an error names at most, and slides or regions that a warning does."""


@dataclass(frozen=True)
class Drawing:
    """One file to read."""

    slide_id: str
    path: Path
    """Absolute, as workers know no working directory."""
    canvas: Canvas
    """Of the slide."""
    what: str = "annotation"
    """What the file is to the user."""
    cure: str = "; correct the manifest's column annotation, or the file"


def read_drawings(drawings: Sequence[Drawing]) -> dict[str, list[Region]]:
    """The regions of each slide, by its id, in level-0 pixels, checked against its scan.

    Warns where a region reaches beyond the scan, and where nothing but its looks, or nothing at
    all, tells what a file counts from, although that makes a difference on its slide.

    Raises `CohortError` naming all files that cannot be used, the first 20 with their faults: none
    is left out in silence, as a slide whose lesions cannot be read is not one without. Raises
    `MachineError` where the machine failed.
    """
    drawn: dict[str, Drawn] = {}
    notes: dict[str, list[str]] = {}
    faults: dict[str, str] = {}
    for drawing, outcome in each(_read, drawings, seconds=SECONDS, step="open", here=True):
        if isinstance(outcome, SlideError):
            faults[drawing.slide_id] = f"{drawing.what} {drawing.path}: {outcome}{drawing.cure}"
        elif isinstance(outcome, str):
            faults[drawing.slide_id] = outcome
        else:
            drawn[drawing.slide_id], notes[drawing.slide_id] = outcome
    if faults:
        opening = f"{len(faults)} of {len(drawings)} files of regions cannot be used:\n  "
        listed = shortlist([faults[slide_id] for slide_id in sorted(faults)], NAMED, "\n  ")
        raise CohortError(opening * (len(faults) > 1) + listed)
    warn_of_places([note for slide_id in sorted(notes) for note in notes[slide_id]])
    for what in sorted({drawing.what for drawing in drawings}):
        warn_of_origins(
            what,
            {
                drawing.slide_id: (drawn[drawing.slide_id].by, drawing.canvas)
                for drawing in drawings
                if drawing.what == what
            },
        )
    return {slide_id: drawn[slide_id].regions for slide_id in sorted(drawn)}


def warn_of_places(notes: Sequence[str]) -> None:
    """Warns of regions that lie partly beside their scan, each in a sentence of `check_inside`."""
    if notes:
        logging.getLogger(__name__).warning(
            "%d regions reach beyond their scan:\n  %s",
            len(notes),
            shortlist(notes, NAMED, "\n  "),
        )


def warn_of_origins(what: str, files: Mapping[str, tuple[By, Canvas]]) -> None:
    """Warns of files that do not say what they count from, where that makes a difference on their
    slide.

    Args:
        what: the files are to the user.
        files: slide id -> what decided it, and the slide's canvas.
    """
    for decided_by, sentence in (
        ("nothing", "do not say what they count from, and were read as level-0 pixels"),
        (
            "qupath",
            (
                "look as QuPath exports them, and were read as counting from their slide's bounds,"
                " as QuPath does"
            ),
        ),
    ):
        slides = [
            f"{slide_id} ({canvas.bounds.x}, {canvas.bounds.y})"
            for slide_id, (by, canvas) in sorted(files.items())
            if by == decided_by
        ]
        if slides:
            logging.getLogger(__name__).warning(
                "files of kind %s %s; the scans lie elsewhere on level 0: %s. Say which it is: set"
                " cohort.origin (of hnm predict --origin) to bounds where they were drawn in"
                " QuPath, to level_0 where their tool counts as OpenSlide does",
                what,
                sentence,
                shortlist(slides, NAMED),
            )


def _read(drawing: Drawing) -> tuple[Drawn, list[str]] | str:
    """Returns the regions with the notes of `check_inside`, or what is wrong with them."""
    where = f"{drawing.what} {drawing.path}"
    try:
        content = read_bounded(
            drawing.path, CohortError, what=where, cure=drawing.cure, most=MOST_BYTES
        )
        drawn = drawn_in(content, where, drawing.canvas, named=True, cure=drawing.cure)
        return drawn, check_inside(drawn, drawing.canvas, where, f"slide {drawing.slide_id}")
    except CohortError as error:
        return str(error)
