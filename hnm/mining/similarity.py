"""How alike features are: their cosine, block by block, so that memory holds two blocks and not
every pair.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

TileReader = Callable[[str, npt.NDArray[np.int64]], npt.NDArray[Any]]
"""(slide id, tiles) -> what belongs to those tiles of the slide, in that order: `(tiles,
features)`, or pixels `(tiles, tile_px, tile_px, 3)`.
"""
Units = npt.NDArray[np.float32]
BLOCK = 4096
"""Tiles whose features are in memory at once, of either side."""


def units(features: npt.NDArray[np.floating[Any]]) -> Units:
    """`features` (tiles, features), each of length 1; a feature of zeros stays one, and is like no
    other.
    """
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = np.divide(
        features, lengths, out=np.zeros(features.shape), where=lengths > 0
    )
    return unit.astype(np.float32)


def cosines(one: Units, other: Units) -> npt.NDArray[np.float64]:
    """(one's tiles, other's tiles): the cosine of each pair of `units`.

    In double precision: what is near a limit must not fall on either side of it by the number of
    threads.
    """
    pairs: npt.NDArray[np.float64] = one.astype(np.float64) @ other.astype(np.float64).T
    return pairs


def highest_cosine(tiles: Units, blocks: Iterable[Units]) -> npt.NDArray[np.float64]:
    """(tiles,): the cosine of each of `tiles` to what is most like it in any of `blocks`; -1 where
    there is none.
    """
    highest = np.full(len(tiles), -1.0)
    for block in blocks:
        highest = np.maximum(highest, cosines(tiles, block).max(axis=1, initial=-1.0))
    return highest


def likest(
    tiles: pd.DataFrame, others: pd.DataFrame, features: TileReader
) -> npt.NDArray[np.float64]:
    """(tiles,): the cosine of each tile's feature to that of the one of `others` that is most like
    it; -1 where there are none.

    Args:
        tiles: slide_id and tile.
        others: slide_id and tile.
        features: reads features.
    """
    highest = [
        highest_cosine(block, _blocks(others, features)) for block in _blocks(tiles, features)
    ]
    return np.concatenate([np.empty(0), *highest])


def read_tiles(tiles: pd.DataFrame, reader: TileReader) -> npt.NDArray[Any]:
    """What `reader` reads of `tiles` (slide_id, tile; at least one), in the order of their rows; a
    slide is opened once.
    """
    numbers = tiles["tile"].to_numpy(np.int64)
    rows_of = tiles.groupby("slide_id", sort=True).indices
    values = [reader(str(slide_id), numbers[rows]) for slide_id, rows in rows_of.items()]
    back = np.argsort(np.concatenate(list(rows_of.values())))
    in_order: npt.NDArray[Any] = np.concatenate(values)[back]
    return in_order


def _blocks(tiles: pd.DataFrame, features: TileReader) -> Iterator[Units]:
    for start in range(0, len(tiles), BLOCK):
        yield units(read_tiles(tiles.iloc[start : start + BLOCK], features))
