"""Extra hard negatives: those that another project has mined, to be learnt from beside the
project's own.

A folder `extra/<project>/` holds `mined.parquet` (table `MINED`) and `packs/<slide_id>.h5`, as `dvc
import` brings them. Its positives are no business of this project: a label means what its own
project says. What is hard to one head is likely to be hard to another, and a tile of a negative
slide is truly negative wherever it comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hnm.errors import MachineError, MiningError, SlideError, TableError
from hnm.slides.cutting.pack import TOLERANCE, Pack
from hnm.slides.workers import each
from hnm.tables import MINED

MINED_FILE = "mined.parquet"
OWN = "own_slide"
"""Column of what `extra_negatives` returns: whether the tile is one of this project, too."""
COMPARED = 16
"""How many tiles of two slides of one name are compared at most."""
SAME = 10.0
"""Mean difference of 8-bit pixels up to which tiles count as the same: JPEG of any quality stays
below, other tissue does not.
"""

PACK_SECONDS = 300.0
"""Time limit of one pack; a good one takes less than a second."""
CURE = "bring it anew from where it was made (dvc update), or take the project out of mining.extra"


def extra_negatives(folder: Path, projects: Sequence[str], packs: Path) -> pd.DataFrame:
    """The hard negatives of the other `projects`, as `MINED` has them, by project, slide and tile.

    Three columns come before the table's: `project`; `pack`, the absolute path of the tile's pack
    without its suffix; and `own_slide`, whether the slide is in this project under the same name
    with the same pixels, as far as JPEG keeps them; one that shares no tile with its namesake
    counts as the same. Such tiles must not be learnt from: the slide may be one of validation or
    test.

    Args:
        folder: holds a folder a project.
        projects: which of them count.
        packs: the project's own packs.

    Raises:
        MiningError: a project's table or a pack is missing, holds no hard negatives, was cut at
        another µm per pixel or
            size than this project's tiles, or does not fit the other.
        TableError: a table or pack cannot be read.
    """
    parts = [_negatives_of(folder / project, project, packs) for project in sorted(set(projects))]
    nothing = MINED.empty().assign(project="", pack="", own_slide=False)
    extra = pd.concat(parts or [nothing.astype({"own_slide": bool})])
    return extra[["project", "pack", OWN, *MINED.columns]].sort_values(
        ["project", "slide_id", "tile"], ignore_index=True
    )


def counts_by_project(extra: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Project -> how many of its hard negatives are learnt from, from how many slides, and how many
    are left out as the project's own.
    """
    counts = {}
    for project, tiles in extra.groupby("project"):
        learnt = tiles[~tiles[OWN]]
        counts[str(project)] = {
            "hard_negatives": len(learnt),
            "slides": learnt["slide_id"].nunique(),
            "left_out": len(tiles) - len(learnt),
        }
    return counts


def _negatives_of(folder: Path, project: str, packs: Path) -> pd.DataFrame:
    table = folder / MINED_FILE
    if not table.is_file():
        raise MiningError(
            f"mining.extra names {project}, but {table} does not exist; bring it by dvc import, or"
            " take the name away"
        )
    mined = MINED.read(table)
    mined = mined[mined["role"] == "hard_negative"]
    if mined.empty:
        raise MiningError(f"{table} holds no hard negatives; take {project} out of mining.extra")
    first = Pack(min(packs.glob("*.h5")))
    looks = []
    for slide_id, tiles in mined.groupby("slide_id"):
        path = folder.absolute() / "packs" / f"{slide_id}.h5"
        if not path.is_file():
            raise MiningError(
                f"{path} does not exist, but {table} has {len(tiles)} hard negatives of it; bring"
                " it by dvc import"
            )
        namesake = packs.absolute() / path.name
        looks.append(_Look(path, namesake, tiles, first.tile_px, first.mpp, table))
    parts = []
    try:
        for look, outcome in each(_look_at, looks, seconds=PACK_SECONDS, step="tiles", here=True):
            if isinstance(outcome, SlideError):
                raise TableError(f"{look.path} cannot be read ({outcome}); {CURE}")
            parts.append(
                look.tiles.assign(
                    project=project,
                    pack=str(look.path.resolve().with_name(look.path.stem)),
                    own_slide=outcome,
                )
            )
    # A file that is made to hang or to fill the memory looks like a machine that fails.
    except MachineError as error:
        raise TableError(f"packs in {folder / 'packs'} cannot be read; {CURE}: {error}") from None
    return pd.concat(parts)


@dataclass(frozen=True, eq=False)  # workers tell jobs apart by hash, and a table has none
class _Look:
    """One pack of another project that a worker process looks at: its bytes are a stranger's, and
    may hang or crash who reads them.
    """

    path: Path
    namesake: Path
    """The pack that this project would have of a slide of that name."""
    tiles: pd.DataFrame
    """What was mined from it, as `MINED` has it."""
    tile_px: int
    """Side of this project's tiles."""
    mpp: float
    """Of this project's tiles."""
    table: Path

    @property
    def slide_id(self) -> str:
        """What errors call it."""
        return self.path.stem


def _look_at(look: _Look) -> bool:
    """Whether the slide is one of this project; an error where the pack does not fit the table or
    this project.
    """
    pack = Pack(look.path, cure=CURE)
    if pack.slide_id != look.path.stem:
        raise MiningError(
            f"{look.path} is a pack of slide_id={pack.slide_id}, not of {look.path.stem}; {CURE}"
        )
    _check_fit(pack, look)
    return _is_of_slide(pack, look.namesake)


def _check_fit(pack: Pack, look: _Look) -> None:
    """`MiningError` where the pack was cut otherwise than this project's, or is not the one that
    the tiles were mined from.
    """
    # a level within TOLERANCE of tiles.mpp is taken as it is, so packs of one project differ by as
    # much either way
    alike = abs(pack.mpp / look.mpp - 1) <= (1 + TOLERANCE) / (1 - TOLERANCE) - 1
    if pack.tile_px != look.tile_px or not alike:
        raise MiningError(
            f"{pack.path} has tiles of {pack.tile_px} px at {pack.mpp} µm per pixel, but this"
            f" project's are of {look.tile_px} px at {look.mpp}; take mined tiles of a project with"
            " the same tiles.tile_px and tiles.mpp"
        )
    for tile, x, y in look.tiles[["tile", "x", "y"]].itertuples(index=False):
        if tile >= len(pack) or tuple(pack.coords[tile]) != (x, y):
            raise MiningError(
                f"{look.table}: tile={tile} of slide_id={pack.slide_id} at x={x}, y={y} is not in"
                f" {pack.path}; bring both from one revision"
            )


def _is_of_slide(pack: Pack, namesake: Path) -> bool:
    """Returns whether `namesake` is a pack of the same slide: tiles at the same places show the
    same, whatever their numbers and their JPEG quality.

    Packs that share no place cannot be told apart, and count as of one slide.
    """
    if not namesake.is_file():
        return False
    other = Pack(namesake)
    tile_at = {tuple(place): tile for tile, place in enumerate(other.coords.tolist())}
    places = list(map(tuple, pack.coords.tolist()))
    shared = [tile for tile, place in enumerate(places) if place in tile_at][:COMPARED]
    if not shared:
        return True
    theirs = pack.tiles(shared).astype(np.int64)
    ours = other.tiles([tile_at[places[tile]] for tile in shared])
    return bool(np.abs(theirs - ours).mean() < SAME)
