"""Features of one slide on disk: HDF5 with `features` `(tiles, features)` and `coords` `(tiles,
2)`, both contiguous.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hnm import hdf5
from hnm.errors import REMAKE, TableError

MOST_FEATURES = 1 << 16
"""Width of a feature."""
DATASETS = {"features": hdf5.Wanted(("<f2", "<f4"), 2), "coords": hdf5.Wanted(("<i8",), 2)}


def write(features: NDArray[Any], coords: NDArray[np.int64], path: Path) -> None:
    """Writes a slide's features and its tiles' level-0 corners, whole or not at all; equal input
    gives equal bytes.
    """
    hdf5.write(path, {"features": features, "coords": coords})


def read(path: Path, tiles: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """The features `(tiles, features)` of a slide, as float32; of `tiles` alone, in that order,
    where they are given.

    Raises:
        TableError: the file is missing, torn or holds no features, or lacks a tile, or a feature is
        not finite.
    """

    def refusal(reason: str) -> TableError:
        return TableError(f"{path} holds no features that can be read ({reason}); {REMAKE}")

    try:
        with hdf5.opened(path, DATASETS, {}, refusal) as file:
            count, width = file.shape("features")
            if not count or not 0 < width <= MOST_FEATURES or file.shape("coords") != (count, 2):
                raise refusal(
                    f"{count} features of {width} numbers with coords of {file.shape('coords')} are"
                    " not what a slide has"
                )
            if tiles is None:
                features: NDArray[np.float32] = (
                    torch.from_numpy(file.array("features")).float().numpy()
                )  # numpy takes four times as long from float16
            else:
                rows, back = np.unique(tiles, return_inverse=True)
                if len(rows) and not 0 <= rows[0] <= rows[-1] < count:
                    wrong = rows[0] if rows[0] < 0 else rows[-1]
                    raise TableError(
                        f"{path} holds {count} tiles, not tile {wrong}; it is of another index of"
                        " tiles, run the stage embed again"
                    )
                features = file.rows("features", rows).astype(np.float32)[back]
    except FileNotFoundError:
        raise TableError(f"{path} does not exist; run the stage embed (dvc repro)") from None
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.dot(
            features.ravel(), features.ravel()
        )  # the quickest look at all of them; it may overflow
    if not np.isfinite(squares) and not (finite := np.isfinite(features).all(axis=1)).all():
        row = int(np.argmin(finite))
        row = row if tiles is None else int(tiles[row])
        raise TableError(
            f"{path}: the feature of tile {row} is not finite; embed with embed.dtype=float32, or"
            " look at the encoder"
        )
    return features
