"""The file of the features of one slide: HDF5 with `features` `(tiles, features)` and `coords`
`(tiles, 2)`, both contiguous.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hnm import hdf5
from hnm.errors import REMAKE, TableError

MOST_FEATURES = 1 << 16
"""Largest width of a feature."""
DATASETS = {"features": hdf5.Wanted(("<f2", "<f4"), 2), "coords": hdf5.Wanted(("<i8",), 2)}


def write(features: NDArray[Any], coords: NDArray[np.int64], path: Path) -> None:
    """Writes the features of a slide and the level-0 corners of its tiles, whole or not at all.
    Equal input gives equal bytes.
    """
    hdf5.write(path, {"features": features, "coords": coords})


def read(path: Path, tiles: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Returns the features `(tiles, features)` of a slide: of all its tiles, or of the tiles with
    the numbers `tiles`, in their order.

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
                # numpy takes four times as long as torch from float16
                features = torch.from_numpy(file.array("features")).float().numpy()
            else:
                features = _rows(file, path, tiles, count)
    except FileNotFoundError:
        raise TableError(f"{path} does not exist; run the stage embed (dvc repro)") from None
    _check_finite(features, path, tiles)
    return features


def _rows(
    file: hdf5.Contents, path: Path, tiles: NDArray[np.int64], count: int
) -> NDArray[np.float32]:
    """Returns the features of `tiles`, each of which is read once."""
    numbers, places = np.unique(tiles, return_inverse=True)
    for number in numbers[[0, -1]] if len(numbers) else ():
        if not 0 <= number < count:
            raise TableError(
                f"{path} holds {count} tiles, not tile {number}; it is of another index of tiles,"
                " run the stage embed again"
            )
    return file.rows("features", numbers).astype(np.float32)[places]


def _check_finite(
    features: NDArray[np.float32], path: Path, tiles: NDArray[np.int64] | None
) -> None:
    """Refuses features that are not finite, and names the first tile that has one."""
    with np.errstate(over="ignore", invalid="ignore"):
        # the quickest look at all features: where it is finite, all of them are
        squares = np.dot(features.ravel(), features.ravel())
    if np.isfinite(squares):
        return
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise TableError(
            f"{path}: the feature of tile {row if tiles is None else tiles[row]} is not finite;"
            " embed with embed.dtype=float32, or look at the encoder"
        )
