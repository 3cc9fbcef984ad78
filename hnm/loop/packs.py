"""The packs of a cohort as one supply of tiles."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnm.slides.cutting.pack import Pack


class Packs:
    """The packs in a folder, read by slide id; safe to use from several threads.

    Where its tiles lie is read from a pack once and kept, 28 bytes a tile: tiles drawn from many
    slides would else open nearly every pack anew at each step, which costs more than decoding them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pack = cache(self._read)
        """Slide id -> its pack."""

    def tiles(self, slide_ids: NDArray[np.str_], tiles: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB tiles `(tiles, tile_px, tile_px, 3)` in the order asked for, tile `tiles[i]` of slide
        `slide_ids[i]` each; none gives an error.
        """
        order = np.argsort(slide_ids, kind="stable")
        names, firsts = np.unique(slide_ids[order], return_index=True)
        parts = [
            self.pack(str(name)).tiles(tiles[own])
            for name, own in zip(names, np.split(order, firsts[1:]), strict=True)
        ]
        found = np.concatenate(parts)
        pixels = np.empty_like(found)
        pixels[order] = found
        return pixels

    def _read(self, slide_id: str) -> Pack:
        return Pack(self._folder / f"{slide_id}.h5")
