"""The packs of a cohort as one supply of tiles."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnm.slides.cutting.pack import Pack


class Packs:
    """The packs in a folder, read by slide id; safe to use from several threads.

    The places of a pack's tiles are read once and stay in memory, 28 bytes a tile. Else nearly
    every pack would be opened anew at each step of a training, which costs more than to decode
    the tiles.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pack = cache(self._read)
        """Slide id -> its pack."""

    def tiles(self, slide_ids: NDArray[np.str_], tiles: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns RGB tiles `(tiles, tile_px, tile_px, 3)` in the order asked for: of each slide
        `slide_ids[i]` the tile `tiles[i]`. At least one must be asked for.
        """
        order = np.argsort(slide_ids, kind="stable")
        names, firsts = np.unique(slide_ids[order], return_index=True)
        parts = [
            self.pack(str(name)).tiles(tiles[rows])
            for name, rows in zip(names, np.split(order, firsts[1:]), strict=True)
        ]
        by_slide = np.concatenate(parts)
        pixels = np.empty_like(by_slide)
        pixels[order] = by_slide
        return pixels

    def _read(self, slide_id: str) -> Pack:
        return Pack(self._folder / f"{slide_id}.h5")
