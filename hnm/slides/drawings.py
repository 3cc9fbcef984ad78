"""The GeoJSON files of many slides, read in worker processes: one that hangs or crashes its reader ends neither the stage nor the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import CohortError, SlideError
from hnm.slides.annotations import Region, check_inside, read_regions
from hnm.slides.workers import each

SECONDS = 300.0
"""Time limit of one file."""
NAMED = 20
"""Faulty files that an error names at most."""


@dataclass(frozen=True)
class Drawing:
    """One file to read."""

    slide_id: str
    path: Path
    """Absolute, as workers know no working directory."""
    dimensions: tuple[int, int]
    """Of the slide, in level-0 pixels."""
    what: str = "annotation"
    """What the file is to the user."""
    cure: str = "; correct the manifest's column annotation, or the file"


def read_drawings(drawings: Sequence[Drawing]) -> dict[str, list[Region]]:
    """The regions of each slide, by its id, checked against its dimensions.

    Raises `CohortError` naming all files that cannot be used, the first 20 with their faults: none is left out in
    silence, as a slide whose lesions cannot be read is not one without. Raises `MachineError` where the machine failed.
    """
    outcomes = {drawing.slide_id: outcome for drawing, outcome in each(_read, drawings, seconds=SECONDS, step="open", here=True)}
    faults = {}
    for drawing in drawings:
        outcome = outcomes[drawing.slide_id]
        if isinstance(outcome, SlideError):
            faults[drawing.slide_id] = f"{drawing.what} {drawing.path}: {outcome}{drawing.cure}"
        elif isinstance(outcome, str):
            faults[drawing.slide_id] = outcome
    if faults:
        listed = [faults[slide_id] for slide_id in sorted(faults)]
        more = f"\n  and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
        opening = f"{len(listed)} of {len(drawings)} files of regions cannot be used:\n  " if len(listed) > 1 else ""
        raise CohortError(opening + "\n  ".join(listed[:NAMED]) + more)
    return {slide_id: outcome for slide_id, outcome in outcomes.items() if isinstance(outcome, list)}


def _read(drawing: Drawing) -> list[Region] | str:
    """The regions, or what is wrong with them."""
    try:
        regions = read_regions(drawing.path, drawing.what, named=True, cure=drawing.cure)
        check_inside(regions, drawing.dimensions, f"{drawing.what} {drawing.path}")
    except CohortError as error:
        return str(error)
    return regions
