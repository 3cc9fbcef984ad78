"""The reading of a slide in a worker process: its tiles, and an overview for the picture."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hnm.params import Tiles, Tissue
from hnm.slides.cutting.cut import Cutting, Layout, cut, opened
from hnm.slides.cutting.masks import Placement, mask_bytes, placement_of
from hnm.slides.mpp import slide_mpp
from hnm.slides.reading.canvas import Canvas, OriginParam
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.reading.remote import fetched
from hnm.slides.reading.slide import Mpp
from hnm.slides.reading.thumbnails import Thumbnail, thumbnail

OVERVIEW_PX = 1200
"""Length of the longest side of the overview."""


@dataclass(frozen=True)
class Reading:
    """One slide that is to be read."""

    slide_id: str
    source: str
    """Absolute path or URL of its file."""
    mpp: float | None
    """µm per pixel in place of those of the file."""
    mpp_from_objective: bool
    mask: Path | None
    """A tissue mask from elsewhere, in place of the classical one."""
    tissue: Tissue
    tiles: Tiles
    pack: Path
    """The file that its tiles are written to."""
    origin: OriginParam = "auto"
    """What a mask counts from that does not say so, as `cohort.origin`."""
    done: str | None = None
    """Fingerprint of the file that was predicted before; while the file still has it, the slide is
    not cut again.
    """


@dataclass(frozen=True)
class SlideRead:
    """What was read of a slide beside its pack."""

    mpp: Mpp
    fingerprint: str
    overview: Thumbnail
    canvas: Canvas
    mask_placement: Placement

    @property
    def aspect(self) -> float:
        """Height of a tile over its width, in level-0 pixels."""
        return self.mpp.x / self.mpp.y


def read_slide(reading: Reading) -> SlideRead | None:
    """Writes the pack of a slide. Returns None where its file is the one that was predicted before.

    Raises:
        SlideError: the slide cannot be used; it names the step and the reason.
        MachineError: the machine failed, or the slide or its mask changed while it was read.
    """
    with fetched(reading.source) as path:
        with OpenSlideReader(path) as slide:
            fingerprint = slide.fingerprint()
            if fingerprint == reading.done:
                return None
            mpp = slide_mpp(
                slide.mpp,
                slide.objective_power,
                given=reading.mpp,
                from_objective=reading.mpp_from_objective,
            )
            canvas = Canvas(*slide.dimensions, slide.bounds, reading.origin)
        mask_digest = ""
        placement = Placement()
        if reading.mask is not None:
            mask = mask_bytes(reading.mask)
            mask_digest = hashlib.sha256(mask).hexdigest()
            placement = placement_of(mask, reading.mask, canvas, f"slide {reading.slide_id}")
        layout = Layout(
            reading.slide_id,
            str(path),
            mpp,
            fingerprint,
            reading.mask,
            mask_digest,
            reading.tissue,
            reading.tiles,
            reading.origin,
        )
        cut(Cutting(layout, reading.pack))
        with opened(layout) as slide_of_any_kind:
            bounds = slide_of_any_kind.bounds
            longest_um = max(bounds.width * mpp.x, bounds.height * mpp.y)
            overview = thumbnail(slide_of_any_kind, longest_um / OVERVIEW_PX, mpp)
    return SlideRead(mpp, fingerprint, overview, canvas, placement)
