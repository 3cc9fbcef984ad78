"""One slide cut into tiles: file -> thumbnail -> tissue -> grid -> pack."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hnm.errors import SlideError
from hnm.params import Tiles, Tissue
from hnm.project import project_file
from hnm.slides.cutting.masks import mask_bytes, read_mask
from hnm.slides.cutting.pack import PackTile, encode, write_pack
from hnm.slides.cutting.tiling import Grid, grid_of, tile_pixels, tissue_shares
from hnm.slides.cutting.tissue import Mask, tissue_mask
from hnm.slides.reading.canvas import Canvas, OriginParam
from hnm.slides.reading.failures import StorageError, printable_name
from hnm.slides.reading.raw_tiles import open_slide
from hnm.slides.reading.reader import expecting
from hnm.slides.reading.remote import fetched
from hnm.slides.reading.slide import Mpp, RegionError, Slide
from hnm.slides.reading.thumbnails import Thumbnail, thumbnail
from hnm.slides.reading.urls import place_of

if TYPE_CHECKING:  # packs must not be cut anew for another version of it
    import pandas as pd


@dataclass(frozen=True)
class Layout:
    """What decides where the tiles of one slide lie."""

    slide_id: str
    source: str
    """Absolute path or URL of its file."""
    mpp: Mpp
    """µm per level-0 pixel along x and y: the manifest's or the file's."""
    fingerprint: str
    mask: Path | None
    """A mask from elsewhere, in place of the classical one."""
    mask_digest: str
    tissue: Tissue
    tiles: Tiles
    origin: OriginParam = "auto"
    """As `cohort.origin`; without a mask it changes nothing."""

    def causes(self) -> dict[str, object]:
        """All that can change this slide's tiles, but the code; places and time limits are none of
        it.
        """
        causes: dict[str, object] = {
            "slide_id": self.slide_id,
            "fingerprint": self.fingerprint,
            "mpp": self.mpp,
            "mask": self.mask_digest,
            "tissue": self.tissue.model_dump(mode="json"),
            "tiles": self.tiles.model_dump(mode="json", exclude={"slide_seconds", "read_seconds"}),
        }
        return causes | {"origin": self.origin} if self.mask_digest else causes


@dataclass(frozen=True)
class Cutting:
    """One slide that is to be cut."""

    layout: Layout
    pack: Path
    """Where the pack will lie."""

    @property
    def slide_id(self) -> str:
        """What messages call the slide."""
        return self.layout.slide_id


@dataclass(frozen=True)
class Plan:
    """What will be read of a slide, and why."""

    thumbnail: Thumbnail
    mask: Mask
    grid: Grid
    shares: npt.NDArray[np.float32]
    """(tiles of the grid,): share of tissue."""
    with_tissue: npt.NDArray[np.intp]
    """Which tiles of the grid hold enough tissue, ascending."""

    @property
    def too_little(self) -> npt.NDArray[np.intp]:
        """Which tiles of the grid hold some tissue, but too little, ascending; the others hold
        none.
        """
        return np.setdiff1d(np.flatnonzero(self.shares > 0), self.with_tissue)


def layouts_of(slides: "pd.DataFrame", folder: Path, tissue: Tissue, tiles: Tiles) -> list[Layout]:
    """A layout for each row of a `SLIDES` table; `folder` is the manifest's, from which relative
    paths count.
    """
    return [
        Layout(
            row["slide_id"],
            place_of(row["path"], folder),
            Mpp(row["mpp_x"], row["mpp_y"]),
            row["fingerprint"],
            project_file(folder / row["mask"]) if row["mask"] else None,
            row["mask_digest"],
            tissue,
            tiles,
            row["origin"],
        )
        for row in slides.to_dict("records")
    ]


@contextmanager
def opened(layout: Layout, *, stays: bool = False) -> Iterator[Slide]:
    """The slide of `layout`, which `stays` where it was fetched or not (see `fetched`).

    Raises:
        ChangedError: it has not the layout's fingerprint, or not any more when it is called bad:
        then it is another slide that is bad. StorageError: it is gone since its cohort was checked.
    """
    with fetched(layout.source, stays=stays) as path, expecting(path, layout.fingerprint):
        # Path.exists raises where a folder is closed.
        if not os.path.exists(path):  # noqa: PTH110
            raise StorageError(
                f"{printable_name(path)} is gone since the cohort was checked; mount its folder, or"
                " run again without it"
            )
        with open_slide(path, layout.fingerprint) as slide:
            yield slide


def cut(cutting: Cutting) -> int:
    """Writes the pack of a slide, and says how many tiles it has.

    Raises:
        SlideError: why there is no pack, and at which step.
        ChangedError: the slide or its mask is not the one whose fingerprint names the pack, or
        changed before the last tile was cut.
    """
    layout = cutting.layout
    with opened(layout) as slide:
        plan = plan_of(slide, layout)
        return write_pack(
            cutting.pack,
            _then_unchanged(cut_tiles(slide, plan, layout.tiles), slide),
            slide_id=layout.slide_id,
            mpp=plan.grid.mpp,
            tile_px=layout.tiles.tile_px,
            side=plan.grid.side,
            planned=len(plan.with_tissue),
            places=len(plan.shares),
        )


def _then_unchanged(tiles: Iterator[PackTile], slide: Slide) -> Iterator[PackTile]:
    """`tiles`, and after the last, before the pack has its name, a look whether the slide is still
    what was opened.
    """
    yield from tiles
    slide.check_unchanged()


def plan_of(slide: Slide, layout: Layout) -> Plan:
    """The tiles of `slide` that hold tissue; `SlideError` where there are none."""
    mpp = layout.mpp
    tiles = layout.tiles
    grid = grid_of(slide.bounds, mpp, slide.level_downsamples, tiles)
    view = thumbnail(slide, layout.tissue.mpp, mpp, tiles.max_lost_share)
    if layout.mask is None:
        mask = tissue_mask(view.pixels, view.mpp, layout.tissue)
    else:
        canvas = Canvas(*slide.dimensions, slide.bounds, layout.origin)
        mask = read_mask(mask_bytes(layout.mask, layout.mask_digest), layout.mask, canvas, view)
    shares = tissue_shares(grid, mask, view)
    with_tissue = np.flatnonzero(shares >= tiles.min_tissue)
    if not len(with_tissue):
        raise SlideError(
            f"no tile holds tiles.min_tissue={tiles.min_tissue:g} of tissue (the best:"
            f" {shares.max():.2f}); lower that",
            step="tissue",
        )
    return Plan(view, mask, grid, shares, with_tissue)


def cut_tiles(slide: Slide, plan: Plan, tiles: Tiles) -> Iterator[PackTile]:
    """Yields the tiles with tissue, without those that cannot be read; `SlideError` once these are
    too many.
    """
    grid = plan.grid
    lost = 0
    width, height = (ceil(side - 1e-6) for side in grid.read_px)
    for tile in plan.with_tissue:
        x, y = (int(corner) for corner in grid.corners[tile])
        try:
            region = slide.read(x, y, grid.level, width, height)
        except RegionError as error:
            lost += 1
            if lost > tiles.max_lost_share * len(plan.with_tissue):
                raise SlideError(
                    f"more than tiles.max_lost_share={tiles.max_lost_share:g} of its"
                    f" {len(plan.with_tissue)} tiles are lost: {error}",
                    step="tiles",
                ) from None
            continue
        yield PackTile(
            x, y, float(plan.shares[tile]), encode(tile_pixels(region, grid), tiles.jpeg_quality)
        )
