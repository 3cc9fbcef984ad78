"""The step `tiles`: packs of tiles, one file a slide, and the index of all tiles."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hnm.causes import keys_of
from hnm.errors import CohortError, SlideError
from hnm.loop.paths import TilesFiles
from hnm.params import Cohort, Tiles, Tissue
from hnm.progress import followed
from hnm.project import project_file
from hnm.slides.cohort.manifest import with_queries
from hnm.slides.cohort.quarantine import check_quarantine, quarantine_frame
from hnm.slides.cutting.cut import Cutting, cut, layouts_of
from hnm.slides.cutting.pack import Pack
from hnm.slides.workers import each
from hnm.store import Store
from hnm.tables import PACKS, QUARANTINE, SLIDES, TILES


@dataclass(frozen=True)
class CutCohort:
    """How many slides and tiles passed each step."""

    listed: int
    """Slides of the manifest."""
    opened: int
    """Slides that could be opened."""
    blank: int
    """Opened slides without tissue."""
    slides: int
    """Slides that were cut."""
    tiles: int
    """Tiles of these."""
    places: int
    """Tiles of the whole grids of the slides that were cut."""
    lost: int
    """Tiles of the grids that could not be read."""


def cut_slides(
    files: TilesFiles, store: Store, *, cohort: Cohort, tissue: Tissue, tiles: Tiles
) -> CutCohort:
    """Cuts each slide into tiles, or says in the quarantine why not. A slide whose pack `store`
    holds is not cut again.

    Raises:
        CohortError: too many slides, or all, cannot be used.
    """
    unopened = QUARANTINE.read(files.unopened)
    slides = SLIDES.read(files.slides)
    key = keys_of("hnm.slides.cutting.cut")
    manifest = project_file(Path(cohort.manifest))
    layouts = layouts_of(with_queries(slides, manifest), manifest.parent.resolve(), tissue, tiles)
    cuttings = {
        layout.slide_id: Cutting(
            layout, store.path("tiles", key(**layout.causes()), ".h5").absolute()
        )
        for layout in layouts
    }
    refused = _cut(
        [item for item in cuttings.values() if not store.holds(item.pack, Pack, quick=True)], tiles
    )
    listed = len(slides) + len(unopened)
    reasons = dict(zip(unopened["slide_id"], unopened["reason"], strict=True))
    reasons |= {slide_id: str(error) for slide_id, error in refused.items()}
    check_quarantine(reasons, listed, cohort.max_quarantined_share)
    if len(refused) == len(cuttings):
        raise CohortError("no slide is left: all are in quarantine")

    packs = _link_packs(
        {name: cuttings[name].pack for name in cuttings.keys() - refused}, files, store
    )
    QUARANTINE.write(pd.concat([unopened, quarantine_frame(refused)]), files.quarantine)
    return CutCohort(
        listed=listed,
        opened=len(slides),
        blank=sum(error.step == "tissue" for error in refused.values()),
        slides=len(packs),
        tiles=sum(map(len, packs)),
        places=sum(pack.places for pack in packs),
        lost=sum(pack.lost for pack in packs),
    )


def _cut(cuttings: list[Cutting], tiles: Tiles) -> dict[str, SlideError]:
    """Cuts slides into their packs. Returns the error of each slide that cannot be cut."""
    outcomes = each(
        cut, cuttings, seconds=tiles.slide_seconds, read_seconds=tiles.read_seconds, step="tiles"
    )
    return {
        cutting.slide_id: outcome
        for cutting, outcome in followed(
            outcomes, slides=len(cuttings), doing="cutting slides", line=_line
        )
        if isinstance(outcome, SlideError)
    }


def _link_packs(stored: Mapping[str, Path], files: TilesFiles, store: Store) -> list[Pack]:
    """Links the packs of the store into the step's folder, and writes their tables. Returns the
    packs, in the order of the slides' ids.
    """
    shutil.rmtree(files.packs, ignore_errors=True)
    packs = []
    digests = []
    for slide_id, path in sorted(stored.items()):
        target = files.packs / f"{slide_id}.h5"
        store.link(path, target)
        packs.append(Pack(target))
        size = target.stat().st_size
        digests.append({"slide_id": slide_id, "bytes": size, "sha256": store.digest(path)})
    TILES.write(pd.concat([pack.index() for pack in packs]), files.index)
    PACKS.write(pd.DataFrame(digests), files.pack_digests)
    return packs


def _line(cut_slide: tuple[Cutting, int | SlideError]) -> tuple[str, int]:
    """Returns what the log says of a slide, and the number of its tiles."""
    cutting, outcome = cut_slide
    if isinstance(outcome, SlideError):
        return f"{cutting.slide_id}: {outcome}", 0
    return f"{cutting.slide_id}: {outcome} tiles", outcome
