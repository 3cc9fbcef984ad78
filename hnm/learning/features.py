"""Features of one slide on disk: HDF5 with `features` `(tiles, features)` and `coords` `(tiles, 2)`, both contiguous."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from hnm.errors import TableError
from hnm.files import whole


def write(features: NDArray[Any], coords: NDArray[np.int64], path: Path) -> None:
    """Writes a slide's features and its tiles' level-0 corners, whole or not at all; equal input gives equal bytes."""
    with whole(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("features", data=features)
        file.create_dataset("coords", data=coords)


def read(path: Path, tiles: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """The features `(tiles, features)` of a slide, as float32; of `tiles` alone, in that order, where they are given.

    Raises:
        TableError: the file is missing, torn or holds no features, or lacks a tile, or a feature is not finite.
    """
    try:
        with h5py.File(path, "r") as file:
            if tiles is None:
                features: NDArray[np.float32] = torch.from_numpy(file["features"][:]).float().numpy()  # numpy takes four times as long from float16
            else:
                rows, back = np.unique(tiles, return_inverse=True)
                if len(rows) and rows[-1] >= len(file["features"]):
                    raise TableError(
                        f"{path} holds {len(file['features'])} tiles, not tile {rows[-1]}; it is of another index of tiles, run the stage embed again"
                    )
                features = file["features"][rows].astype(np.float32)[back]
    except FileNotFoundError:
        raise TableError(f"{path} does not exist; run the stage embed (dvc repro)") from None
    except (OSError, KeyError) as error:
        raise TableError(f"{path} holds no features that can be read ({error}); delete it and run the stage embed again") from None
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.dot(features.ravel(), features.ravel())  # the quickest look at all of them; it may overflow
    if not np.isfinite(squares) and not (finite := np.isfinite(features).all(axis=1)).all():
        row = int(np.argmin(finite))
        row = row if tiles is None else int(tiles[row])
        raise TableError(f"{path}: the feature of tile {row} is not finite; embed with embed.dtype=float32, or look at the encoder")
    return features
