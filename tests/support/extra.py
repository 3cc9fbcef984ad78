"""Another project's mined set, tiny: packs of plain greys and the table of what was mined from
them.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from hnm.slides.cutting.pack import PackTile, encode, write_pack
from hnm.tables import MINED

SCORER = "0123456789abcdef"


def pack(folder: Path, slide_id: str, *shades: int, tile_px: int = 16, mpp: float = 0.5) -> None:
    """Tile n is of the grey `shades[n]`, at x = 32 n, y = 7."""
    tiles = [
        PackTile(32 * n, 7, 1.0, encode(np.full((tile_px, tile_px, 3), shade, np.uint8), 100))
        for n, shade in enumerate(shades)
    ]
    write_pack(
        folder / f"{slide_id}.h5",
        tiles,
        slide_id=slide_id,
        mpp=mpp,
        tile_px=tile_px,
        side=32,
        planned=len(tiles),
    )


def mined(path: Path, *rows: tuple[str, int, str, int]) -> pd.DataFrame:
    """Writes the table of role, rank, slide and tile, and returns it."""
    table = pd.DataFrame(rows, columns=["role", "rank", "slide_id", "tile"]).assign(
        y=7, side=32, score=0.75, logit=1.5, round=2, policy="hard", scorer=SCORER
    )
    table = table.assign(x=32 * table["tile"]).astype(
        {name: str(column.dtype) for name, column in MINED.columns.items()}
    )
    MINED.write(table, path)
    return MINED.read(path)
