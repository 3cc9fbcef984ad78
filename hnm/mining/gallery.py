"""Contact sheets of mined tiles: what the head takes for tumour, for a person to look at."""

from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from hnm.files import whole
from hnm.mining.select import best_first
from hnm.slides.contact_sheet import Cell, contact_sheet
from hnm.slides.cutting.pack import Pack

TILE_SIDE_PX = 128
"""Of a tile as it is shown."""
LINES = 4
MOST_COLUMNS = 10
LEAST_COLUMNS = 4
"""Columns that a heading needs."""


def write_gallery(
    mined: pd.DataFrame, passed_over: pd.DataFrame, packs: Path, folder: Path, most: int
) -> list[Path]:
    """Writes `positive.png` and `hard_negative.png` into `folder`, and `passed_over.png` where
    guards refused tiles; returns the paths.

    A sheet shows the `most` best-scoring tiles, the best first, each with slide, tile, score, and
    the level-0 pixels of its corner; of those passed over, the reason too.

    Args:
        mined: the `MINED` table.
        passed_over: the `PASSED_OVER` table.
        packs: the packs of the slides.
        folder: where the sheets go.
        most: how many tiles a sheet shows.
    """
    sheets = {
        str(role): tiles.sort_values("rank").assign(reason="")
        for role, tiles in mined.groupby("role")
    }
    if not passed_over.empty:
        sheets["passed_over"] = best_first(passed_over.assign(logit=passed_over["score"]))
    written = []
    for name, tiles in sheets.items():
        shown = tiles.head(most)
        path = folder / f"{name}.png"
        sheet = contact_sheet(
            [_cell(packs, tile) for tile in shown.itertuples()],
            side_px=TILE_SIDE_PX,
            columns=min(MOST_COLUMNS, max(LEAST_COLUMNS, len(shown))),
            lines=LINES,
            heading=(
                f"{name.replace('_', ' ')}: the {len(shown)} best-scoring of {len(tiles)} tiles of"
                f" {tiles['slide_id'].nunique()} slides"
            ),
        )
        with whole(path) as temporary:
            sheet.save(temporary)
        written.append(path)
    return written


def _cell(packs: Path, tile: Any) -> Cell:
    pixels = Pack(packs / f"{tile.slide_id}.h5").tiles([tile.tile])[0]
    picture = Image.fromarray(pixels).resize((TILE_SIDE_PX, TILE_SIDE_PX), Image.Resampling.LANCZOS)
    score = f"{tile.score:.4f} {tile.reason}".strip()
    return Cell(picture, [tile.slide_id, score, f"tile {tile.tile}", f"{tile.x}, {tile.y}"])
