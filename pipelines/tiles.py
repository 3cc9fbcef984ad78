"""Stage `tiles`: packs of tiles, one file a slide, and the index of all tiles."""

from hnm.loop.paths import TilesFiles
from hnm.loop.tiles import cut_slides
from hnm.params import Cohort, Tiles, Tissue
from hnm.store import project_store
from pipelines import stage


def main(files: TilesFiles, *, cohort: Cohort, tissue: Tissue, tiles: Tiles) -> None:
    """Cuts each slide into tiles, or says why not. A slide that was cut before comes from the
    store.
    """
    counts = cut_slides(files, project_store(), cohort=cohort, tissue=tissue, tiles=tiles)
    little_tissue = counts.places - counts.lost - counts.tiles
    print(
        f"{counts.listed} slides found, {counts.opened} opened, {counts.opened - counts.blank} with"
        f" tissue, {counts.slides} cut into {counts.tiles} tiles: of {counts.places} tiles of"
        f" their grids {little_tissue} hold less than tiles.min_tissue={tiles.min_tissue:g} of"
        f" tissue, and {counts.lost} could not be read"
    )


if __name__ == "__main__":
    stage.run(main)
