"""Pictures that show a person what is cut: the thumbnail, the outline of the tissue mask, the tiles
that are cut, and those with too little tissue.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from hnm.errors import CohortError, SlideError
from hnm.files import whole
from hnm.params import Cohort, Tiles, Tissue
from hnm.project import project_file
from hnm.slides.cohort.manifest import with_queries
from hnm.slides.contact_sheet import Cell, contact_sheet, wrapped
from hnm.slides.cutting.cut import Layout, Plan, layouts_of, opened, plan_of
from hnm.slides.cutting.tissue import Mask
from hnm.slides.reading.slide import RGB
from hnm.slides.reading.thumbnails import Thumbnail, thumbnail
from hnm.slides.workers import each
from hnm.tables import SLIDES

SIDE_PX = 1200
SMALL_SIDE_PX = 308
"""Of a picture on the contact sheet."""
CAPTION_LINES = 3
OUTLINE = (0, 150, 60)
"""Colour of the mask's outline."""
TILE = (20, 60, 200)
"""Colour of the frame of a tile that is cut."""
TOO_LITTLE = (225, 120, 0)
"""Colour of the frame of a tile that holds some tissue, but too little."""


@dataclass(frozen=True)
class Sitting:
    """One slide that is to have its picture made."""

    layout: Layout
    picture: Path
    """Where the picture will lie."""

    @property
    def slide_id(self) -> str:
        """What messages call the slide."""
        return self.layout.slide_id


def preview_cohort(
    slides: Path,
    slide_ids: Collection[str] | None,
    out: Path,
    *,
    cohort: Cohort,
    tissue: Tissue,
    tiles: Tiles,
) -> list[Path]:
    """Writes `<slide_id>.png` for each of `slide_ids` (all, where None) of the table at `slides`,
    and `contact_sheet.png`; returns their paths.
    """
    table = SLIDES.read(slides).set_index("slide_id")
    for unknown in sorted(set(slide_ids or []) - set(table.index)):
        raise CohortError(f"slide_id={unknown} is not in {slides}; it may be in quarantine")
    wanted = table.loc[list(slide_ids or table.index)].reset_index()
    manifest = project_file(Path(cohort.manifest))
    layouts = layouts_of(with_queries(wanted, manifest), manifest.parent.resolve(), tissue, tiles)
    sittings = [Sitting(layout, (out / f"{layout.slide_id}.png").absolute()) for layout in layouts]
    cells: dict[str, Cell] = {}
    for sitting, outcome in each(
        preview_slide,
        sittings,
        seconds=tiles.slide_seconds,
        read_seconds=tiles.read_seconds,
        step="tiles",
    ):
        if isinstance(outcome, SlideError):
            outcome = _cell(Image.new("RGB", (1, 1)), f"{sitting.slide_id}: {outcome}")
        cells[sitting.slide_id] = outcome
    sheet = contact_sheet(
        [cells[layout.slide_id] for layout in layouts],
        side_px=SMALL_SIDE_PX,
        columns=max(1, ceil(len(layouts) ** 0.5)),
        lines=CAPTION_LINES,
    )
    _write(sheet, out / "contact_sheet.png")
    pictures = [sitting.picture for sitting in sittings if sitting.picture.is_file()]
    return [*pictures, out / "contact_sheet.png"]


def preview_slide(sitting: Sitting) -> Cell:
    """Writes the picture of one slide, and returns it with its caption for the contact sheet.

    A slide that cannot be cut is shown bare, with the reason.
    """
    layout = sitting.layout
    with opened(layout, stays=True) as slide:  # params are tried on it, or it is cut next
        bounds, mpp = slide.bounds, layout.mpp
        view = thumbnail(slide, max(bounds.width * mpp[0], bounds.height * mpp[1]) / SIDE_PX, mpp)
        try:
            plan = plan_of(slide, layout)
        except SlideError as error:
            picture = Image.fromarray(view.pixels)
            caption = str(error)
        else:
            tissue_mm2 = plan.mask.mean() * bounds.width * bounds.height * mpp[0] * mpp[1] / 1e6
            picture = Image.fromarray(drawn(view, plan))
            caption = (
                f"{len(plan.with_tissue)} tiles of a grid of {len(plan.shares)},"
                f" {len(plan.too_little)} with too little tissue,"
                f" {int((plan.shares == 0).sum())} with none; {tissue_mm2:.1f} mm2 of tissue"
            )
            caption += f" ({layout.mask.name})" if layout.mask else ""
    _write(picture, sitting.picture)
    picture.thumbnail((SMALL_SIDE_PX, SMALL_SIDE_PX))
    return _cell(picture, f"{layout.slide_id}: {caption}")


def _cell(picture: Image.Image, caption: str) -> Cell:
    return Cell(picture, wrapped(caption.replace("µ", "u"), SMALL_SIDE_PX))  # its font has no µ


def drawn(view: Thumbnail, plan: Plan) -> RGB:
    """`view` with what the mask leaves out paled, the mask's outline, and a frame around each tile
    that holds tissue, whether it is cut or not.
    """
    height, width = view.lost.shape
    mask: Mask = np.asarray(
        Image.fromarray(plan.mask).resize((width, height), Image.Resampling.NEAREST)
    )
    pixels = view.pixels.copy()
    pixels[~mask] = pixels[~mask] // 2 + 100
    pixels[mask & ~ndimage.binary_erosion(mask, iterations=2)] = OUTLINE
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    scale = np.array(view.scale)
    upper_left = (plan.grid.corners - (view.x, view.y)) / scale
    lower_right = upper_left + np.array(plan.grid.size) / scale
    for numbers, colour in ((plan.too_little, TOO_LITTLE), (plan.with_tissue, TILE)):
        for tile in numbers:
            pen.rectangle((*upper_left[tile], *lower_right[tile]), outline=colour)
    return np.asarray(picture)


def _write(picture: Image.Image, path: Path) -> None:
    with whole(path) as temporary:
        picture.save(temporary)
