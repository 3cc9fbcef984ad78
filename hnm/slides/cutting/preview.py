"""Pictures that show a person what is cut: the thumbnail, the outline of the tissue mask, the tiles
that are kept, and those with too little tissue.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from hnm.errors import CohortError, SlideError
from hnm.files import whole
from hnm.params import Cohort, Tiles, Tissue
from hnm.project import project_file
from hnm.slides.cohort.cohort import with_queries
from hnm.slides.cutting.cut import Layout, Plan, layouts_of, opened, plan_of
from hnm.slides.cutting.tissue import Mask
from hnm.slides.reading.slide import RGB
from hnm.slides.reading.thumbnails import Thumbnail, thumbnail
from hnm.slides.workers import each
from hnm.tables import SLIDES

SIDE_PX = 1200
CELL_PX = 320
CAPTION_PX = 44
OUTLINE, TILE, TOO_LITTLE = (0, 150, 60), (20, 60, 200), (225, 120, 0)
"""Colours of the mask's outline, and of the frames of tiles that are kept and of those that hold
some tissue, but too little.
"""


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


@dataclass(frozen=True)
class Preview:
    """One slide's small picture, with the line that stands under it on the contact sheet."""

    picture: Image.Image
    caption: str


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
    previews: dict[str, Preview] = {}
    for sitting, outcome in each(
        preview_slide,
        sittings,
        seconds=tiles.slide_seconds,
        read_seconds=tiles.read_seconds,
        step="tiles",
    ):
        if isinstance(outcome, SlideError):
            outcome = Preview(Image.new("RGB", (1, 1)), f"{sitting.layout.slide_id}: {outcome}")
        previews[sitting.layout.slide_id] = outcome
    sheet = out / "contact_sheet.png"
    _write(contact_sheet([previews[layout.slide_id] for layout in layouts]), sheet)
    return [*(sitting.picture for sitting in sittings if sitting.picture.is_file()), sheet]


def preview_slide(sitting: Sitting) -> Preview:
    """Writes the picture of one slide; one that cannot be cut is shown bare, with the reason."""
    layout = sitting.layout
    with opened(layout, stays=True) as slide:  # params are tried on it, or it is cut next
        bounds, mpp = slide.bounds, layout.mpp
        view = thumbnail(slide, max(bounds.width * mpp[0], bounds.height * mpp[1]) / SIDE_PX, mpp)
        try:
            plan = plan_of(slide, layout)
        except SlideError as error:
            picture, caption = Image.fromarray(view.pixels), str(error)
        else:
            tissue_mm2 = plan.mask.mean() * bounds.width * bounds.height * mpp[0] * mpp[1] / 1e6
            picture = Image.fromarray(drawn(view, plan))
            caption = (
                f"{len(plan.kept)} tiles of a grid of {len(plan.shares)}, {len(plan.too_little)}"
                f" with too little tissue, {int((plan.shares == 0).sum())} with none;"
                f" {tissue_mm2:.1f} mm2 of tissue"
            )
            caption += f" ({layout.mask.name})" if layout.mask else ""
    _write(picture, sitting.picture)
    picture.thumbnail((CELL_PX - 8, CELL_PX - 8))
    return Preview(picture, f"{layout.slide_id}: {caption}")


def drawn(view: Thumbnail, plan: Plan) -> RGB:
    """`view` with what the mask leaves out paled, the mask's outline, and a frame around each tile
    that holds tissue, kept or not.
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
    for numbers, colour in ((plan.too_little, TOO_LITTLE), (plan.kept, TILE)):
        for tile in numbers:
            pen.rectangle((*upper_left[tile], *lower_right[tile]), outline=colour)
    return np.asarray(picture)


def contact_sheet(previews: Sequence[Preview]) -> Image.Image:
    """All pictures on one sheet, about as wide as high, each with its caption."""
    columns = max(1, ceil(len(previews) ** 0.5))
    sheet = Image.new(
        "RGB", (columns * CELL_PX, ceil(len(previews) / columns) * (CELL_PX + CAPTION_PX)), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, preview in enumerate(previews):
        left, top = number % columns * CELL_PX, number // columns * (CELL_PX + CAPTION_PX)
        sheet.paste(preview.picture, (left + 4, top + 4))
        pen.multiline_text(
            (left + 4, top + CELL_PX), _wrapped(preview.caption, font), fill="black", font=font
        )
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text` in at most three lines that fit a cell."""
    lines = [""]
    for word in text.replace("µ", "u").split():  # Pillow's font has no µ
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) < CELL_PX - 8 else [*lines, word]
    return "\n".join(lines[:3])


def _write(picture: Image.Image, path: Path) -> None:
    with whole(path) as temporary:
        picture.save(temporary)
