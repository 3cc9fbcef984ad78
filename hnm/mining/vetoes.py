"""Vetoes: tiles that a person does not want mined, from a table or from polygons drawn on slides.

A folder holds `vetoes.csv` (table `VETOES`: a line a tile, by its number or by a point in it) and,
where somebody drew areas, `<slide_id>.geojson` as QuPath exports it (the class is the reason). The
table's points are level-0 pixels, as in every table of hnm; a file of areas counts from what it
says, or from `cohort.origin`.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from hnm.errors import MiningError
from hnm.slides.annotations import Region, covered_shares
from hnm.slides.drawings import Drawing, read_drawings
from hnm.slides.reading.canvas import aspects_of, canvases_of
from hnm.tables import VETOES

LISTED = "vetoes.csv"


def vetoed_tiles(folder: Path, tiles: pd.DataFrame, slides: pd.DataFrame) -> pd.DataFrame:
    """slide_id, tile, `reason` of each tile that the vetoes in `folder` forbid; the first reason of
    several.

    A polygon forbids the tiles whose centre, or more than half of whose area, lies in it. A slide
    whose tiling put it into quarantine has no tiles, and its vetoes forbid nothing.

    Args:
        folder: the vetoes.
        tiles: slide_id, tile, x, y and side of all tiles of the cohort.
        slides: the `SLIDES` table.

    Raises:
        MiningError: a slide or a tile is unknown, a line names a tile in no way or in two, or a
        file is none of these. CohortError: GeoJSON files hold no polygons, or they lie outside
        their slide; all are named.
    """
    table = _table_of(folder)
    drawings = _drawings_of(folder)
    places = [(slide_id, folder / LISTED) for slide_id in table["slide_id"]]
    cohort_ids = set(slides["slide_id"])
    for slide_id, place in [*places, *drawings.items()]:
        if slide_id not in cohort_ids:
            raise MiningError(
                f"{place}: slide_id={slide_id} is not among the cohort's slides; correct it, or"
                " remove its veto (of a slide whose file cannot be opened too:"
                " data/cohort/quarantine.csv)"
            )
    aspects = aspects_of(slides)
    tiles_of = {str(slide_id): part for slide_id, part in tiles.groupby("slide_id", sort=False)}
    parts = [tiles.iloc[:0].assign(reason="")]
    for slide_id, tile, x, y, reason in table.itertuples(index=False):
        if slide_id in tiles_of:
            slide_tiles = tiles_of[slide_id]
            is_vetoed = _listed(slide_tiles, aspects[slide_id], tile, x, y, folder / LISTED)
            parts.append(slide_tiles[is_vetoed].assign(reason=reason))
    for slide_id, regions in sorted(_regions_of(drawings, slides).items()):
        if slide_id in tiles_of:
            slide_tiles = tiles_of[slide_id]
            for region in regions:
                is_vetoed = _inside(slide_tiles, aspects[slide_id], region)
                parts.append(slide_tiles[is_vetoed].assign(reason=region.name))
    return (
        pd.concat(parts)[["slide_id", "tile", "reason"]]
        .drop_duplicates(["slide_id", "tile"])
        .sort_values(["slide_id", "tile"], ignore_index=True)
    )


def _table_of(folder: Path) -> pd.DataFrame:
    header = ",".join(VETOES.columns)
    if not folder.is_dir():
        raise MiningError(
            f"{folder} is no folder; make it, with a file {LISTED} whose only line is {header}"
        )
    if not (folder / LISTED).exists():
        raise MiningError(
            f"{folder / LISTED} does not exist; make it, with the line {header} alone where no tile"
            " is listed"
        )
    return VETOES.read(folder / LISTED)


def _drawings_of(folder: Path) -> dict[str, Path]:
    """Returns slide id -> GeoJSON file."""
    drawings = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".geojson" and not path.name.startswith("."):
            drawings[path.stem] = path
        elif path.name != LISTED and not path.name.startswith("."):  # desktops leave .DS_Store
            raise MiningError(
                f"{path} is neither {LISTED} nor <slide_id>.geojson; rename or remove it"
            )
    return drawings


def _regions_of(drawings: Mapping[str, Path], slides: pd.DataFrame) -> dict[str, list[Region]]:
    canvases = canvases_of(slides)
    cure = "; export it again, or remove it"
    return read_drawings(
        [
            Drawing(slide_id, path.absolute(), canvases[slide_id], "veto", cure)
            for slide_id, path in drawings.items()
        ]
    )


def without(tiles: pd.DataFrame, vetoed: pd.DataFrame) -> pd.DataFrame:
    """Those of `tiles` that are not `vetoed`."""
    forbidden = pd.MultiIndex.from_frame(vetoed[["slide_id", "tile"]])
    return tiles[~pd.MultiIndex.from_frame(tiles[["slide_id", "tile"]]).isin(forbidden)]


def _listed(
    tiles: pd.DataFrame, aspect: float, tile: int | None, x: int | None, y: int | None, where: Path
) -> "pd.Series[bool]":
    """Which of a slide's tiles one line of the table means."""
    slide_id = tiles["slide_id"].iloc[0]
    if pd.isna(x) != pd.isna(y) or pd.isna(tile) == pd.isna(x):
        raise MiningError(
            f"{where}: a veto of slide_id={slide_id} must name either a tile or a point x, y, but"
            f" has tile={tile}, x={x}, y={y}; fill in one"
        )
    if not pd.isna(tile):
        name = f"tile={tile}"
        chosen = tiles["tile"] == tile
    else:
        name = f"tile at x={x}, y={y}"
        right = tiles["x"] + tiles["side"]
        lower = tiles["y"] + tiles["side"] * aspect
        chosen = (tiles["x"] <= x) & (right > x) & (tiles["y"] <= y) & (lower > y)
    if not chosen.any():
        raise MiningError(
            f"{where}: slide_id={slide_id} has no {name}; correct or remove the veto (tiles are"
            " numbered anew when the section tiles changes)"
        )
    return chosen


def _inside(tiles: pd.DataFrame, aspect: float, region: Region) -> "pd.Series[bool]":
    """Which of a slide's tiles lie in `region`, by their centre or by most of their area."""
    x, y, side = (tiles[column].to_numpy() for column in ("x", "y", "side"))
    width = float(side[0])
    height = width * aspect
    centred = shapely.intersects_xy(region.geometry, x + width / 2, y + height / 2)
    mostly = covered_shares([region], [region.name], x, y, width, height) > 0.5
    return pd.Series(np.asarray(centred | mostly), index=tiles.index)
