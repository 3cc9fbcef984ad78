"""Slides -> packs of tiles, one file a slide, and the index of all tiles."""

import shutil
from pathlib import Path

import pandas as pd

from hnm.causes import keys_of
from hnm.errors import CohortError, SlideError
from hnm.params import Cohort, Tiles, Tissue
from hnm.progress import followed
from hnm.project import project_file
from hnm.slides.cohort.cohort import check_quarantine, quarantine_frame, with_queries
from hnm.slides.cutting.cut import Cutting, cut, layouts_of
from hnm.slides.cutting.pack import Pack
from hnm.slides.workers import each
from hnm.store import project_store
from hnm.tables import PACKS, QUARANTINE, SLIDES, TILES
from pipelines import stage


def main(
    slides: Path,
    unopened: Path,
    packs: Path,
    pack_digests: Path,
    index: Path,
    quarantine: Path,
    *,
    cohort: Cohort,
    tissue: Tissue,
    tiles: Tiles,
) -> None:
    """Cuts each slide into tiles, or says why not; a slide that was cut before comes from the
    store.
    """
    before = QUARANTINE.read(unopened)
    table = SLIDES.read(slides)
    store, key = project_store(), keys_of("hnm.slides.cutting.cut")
    manifest = project_file(Path(cohort.manifest))
    layouts = layouts_of(with_queries(table, manifest), manifest.parent.resolve(), tissue, tiles)
    cuttings = {
        layout.slide_id: Cutting(
            layout, store.path("tiles", key(**layout.causes()), ".h5").absolute()
        )
        for layout in layouts
    }
    refused: dict[str, SlideError] = {}
    waiting = [
        cutting for cutting in cuttings.values() if not store.holds(cutting.pack, Pack, quick=True)
    ]
    outcomes = each(
        cut, waiting, seconds=tiles.slide_seconds, read_seconds=tiles.read_seconds, step="tiles"
    )
    for cutting, outcome in followed(
        outcomes, slides=len(waiting), doing="cutting slides", line=_line
    ):
        if isinstance(outcome, SlideError):
            refused[cutting.layout.slide_id] = outcome
    reasons = dict(zip(before["slide_id"], before["reason"], strict=True)) | {
        slide_id: str(error) for slide_id, error in refused.items()
    }
    check_quarantine(reasons, len(table) + len(before), cohort.max_quarantined_share)
    if len(refused) == len(cuttings):
        raise CohortError("no slide is left: all are in quarantine")

    shutil.rmtree(packs, ignore_errors=True)
    rows, digests, lost, places = [], [], 0, 0
    for slide_id in sorted(cuttings.keys() - refused.keys()):
        target = packs / f"{slide_id}.h5"
        store.link(cuttings[slide_id].pack, target)
        pack = Pack(target)
        rows.append(pack.index())
        digests.append(
            {
                "slide_id": slide_id,
                "bytes": target.stat().st_size,
                "sha256": store.digest(cuttings[slide_id].pack),
            }
        )
        lost += pack.lost
        places += pack.places
    TILES.write(pd.concat(rows), index)
    PACKS.write(pd.DataFrame(digests), pack_digests)
    QUARANTINE.write(pd.concat([before, quarantine_frame(refused)]), quarantine)
    blank = sum(error.step == "tissue" for error in refused.values())
    count = sum(map(len, rows))
    print(
        f"{len(table) + len(before)} slides found, {len(table)} opened, {len(table) - blank} with"
        f" tissue, {len(rows)} cut into {count} tiles: of {places} tiles of their grids"
        f" {places - lost - count} hold less than tiles.min_tissue={tiles.min_tissue:g} of tissue,"
        f" and {lost} could not be read"
    )


def _line(cut_slide: tuple[Cutting, int | SlideError]) -> tuple[str, int]:
    cutting, outcome = cut_slide
    if isinstance(outcome, SlideError):
        return f"{cutting.layout.slide_id}: {outcome}", 0
    return f"{cutting.layout.slide_id}: {outcome} tiles", outcome


if __name__ == "__main__":
    stage.run(main)
