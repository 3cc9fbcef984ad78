"""A pack: the tiles of one slide in one HDF5 file.

`jpeg` holds the JPEG bytes of all tiles behind each other, `offsets` (tiles + 1) where each begins, `coords` (tiles, 2)
the level-0 corners x, y and `tissue` (tiles,) the share of tissue; the attributes are `slide_id`, `mpp`, `tile_px`,
`side` (level-0 pixels) and `lost`, the number of tiles that could not be read. The datasets are contiguous, so that a
tile is one read of the file, and bytes are equal for equal content.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import simplejpeg

from hnm.errors import TableError
from hnm.files import whole

TOLERANCE = 0.02
"""Relative difference of a level's mpp to `tiles.mpp` up to which its pixels are taken as they are: resampling would blur more than it mends."""
SPOOL_BYTES = 1 << 20
"""Of JPEG that are written at once: a write for each tile takes a twentieth to a tenth of the whole stage's processor time."""


@dataclass(frozen=True)
class PackTile:
    """One tile on its way into a pack."""

    x: int
    y: int
    tissue: float
    jpeg: bytes


def encode(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of (height, width, 3).

    Chroma is kept whole (4:4:4), because stain is chroma: at quality 90, halved chroma (4:2:0) saves a quarter to a
    third of the bytes and makes the error of the optical density 1.2 to 3 times as large; a lower quality with whole
    chroma saves the same bytes and loses no more.
    """
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="444", fastdct=False))


def write_pack(path: Path, tiles: Iterable[PackTile], *, slide_id: str, mpp: float, tile_px: int, side: int, planned: int) -> int:
    """A pack at `path`, whole or not at all; `tiles` are written as they come, so that memory does not grow with the slide.

    `planned` is how many tiles were wanted; the difference to those that came is the pack's `lost`. Returns how many came.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent, buffering=SPOOL_BYTES) as spool:
        offsets, coords, tissue = [0], [], []
        for tile in tiles:
            spool.write(tile.jpeg)
            offsets.append(offsets[-1] + len(tile.jpeg))
            coords.append((tile.x, tile.y))
            tissue.append(tile.tissue)
        spool.flush()
        spool.seek(0)
        with whole(path) as temporary, h5py.File(temporary, "w") as file:
            file.create_dataset("offsets", data=np.array(offsets, np.int64))
            file.create_dataset("coords", data=np.array(coords, np.int64).reshape(-1, 2))
            file.create_dataset("tissue", data=np.array(tissue, np.float32))
            jpeg = file.create_dataset("jpeg", shape=(offsets[-1],), dtype=np.uint8)
            for start in range(0, offsets[-1], 1 << 24):
                block = np.frombuffer(spool.read(1 << 24), np.uint8)
                jpeg[start : start + len(block)] = block
            file.attrs.update(slide_id=slide_id, mpp=mpp, tile_px=tile_px, side=side, lost=planned - len(coords))
    return len(coords)


class Pack:
    """A pack that is read; safe to read from several threads, and to send to another process. Its file is open only while tiles are read."""

    def __init__(self, path: Path) -> None:
        """Raises `TableError` where `path` is missing, cut short or no pack."""
        self.path = path
        try:
            with h5py.File(path, "r") as file:
                self.offsets: npt.NDArray[np.int64] = file["offsets"][:]
                self.coords: npt.NDArray[np.int64] = file["coords"][:]
                self.tissue: npt.NDArray[np.float32] = file["tissue"][:]
                self.slide_id = str(file.attrs["slide_id"])
                self.mpp = float(file.attrs["mpp"])
                self.tile_px = int(file.attrs["tile_px"])
                self.side = int(file.attrs["side"])
                self.lost = int(file.attrs["lost"])
                self._start: int | None = file["jpeg"].id.get_offset()
                length = file["jpeg"].shape[0]
        except FileNotFoundError:
            raise self._missing() from None
        except (OSError, KeyError, AttributeError) as error:
            raise TableError(f"{path} is no pack of tiles, or was cut short ({error}); delete it and run the stage tiles again") from None
        if self._start is None or not len(self.coords) == len(self.tissue) == len(self.offsets) - 1 or self.offsets[-1] != length:
            raise TableError(f"{path} is no pack of tiles: its datasets do not fit together; delete it and run the stage tiles again")

    def __len__(self) -> int:
        return len(self.coords)

    def jpegs(self, indices: Iterable[int]) -> Iterator[bytes]:
        """JPEG bytes of the tiles `indices`."""
        assert self._start is not None
        try:
            file = self.path.open("rb", buffering=0)
        except FileNotFoundError:
            raise self._missing() from None
        with file:
            for tile in indices:
                start, end = int(self.offsets[tile]), int(self.offsets[tile + 1])
                yield os.pread(file.fileno(), end - start, self._start + start)

    def tiles(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """(n, tile_px, tile_px, 3): the pixels of the tiles `indices`, in that order; an index may repeat."""
        pixels = np.empty((len(indices), self.tile_px, self.tile_px, 3), np.uint8)
        for place, tile, jpeg in zip(pixels, indices, self.jpegs(indices), strict=True):
            try:
                decoded = simplejpeg.decode_jpeg(jpeg, colorspace="RGB", fastdct=False, fastupsample=False, buffer=place)
            except ValueError as error:
                raise TableError(f"{self.path}: tile {tile} is no JPEG image ({error}); delete the pack and run the stage tiles again") from None
            if decoded.shape != place.shape:
                raise TableError(f"{self.path}: tile {tile} has {decoded.shape[:2]} pixels, not tile_px={self.tile_px}; delete the pack and run tiles again")
        return pixels

    def _missing(self) -> TableError:
        return TableError(f"{self.path} does not exist; run the stage tiles (dvc repro)")

    def index(self) -> pd.DataFrame:
        """This pack's rows of the table TILES."""
        return pd.DataFrame(
            {
                "slide_id": self.slide_id,
                "tile": np.arange(len(self), dtype=np.int32),
                "x": self.coords[:, 0],
                "y": self.coords[:, 1],
                "side": np.int64(self.side),
                "tissue": self.tissue,
            }
        )
