"""A pack: the tiles of one slide in one HDF5 file.

`jpeg` holds the JPEG bytes of all tiles behind each other, `offsets` (tiles + 1) where each begins,
`coords` (tiles, 2) the level-0 corners x, y and `tissue` (tiles,) the share of tissue; the
attributes are `slide_id`, `mpp`, `tile_px`, `side` (level-0 pixels), `lost`, the number of tiles
that could not be read, and `places`, the number of tiles of the slide's whole grid: those that are
neither here nor lost hold too little tissue. The datasets are contiguous, so that a tile is one
read of the file, and bytes are equal for equal content.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from hnm import hdf5
from hnm.errors import REMAKE, TableError
from hnm.failpoints import failpoint
from hnm.names import is_id
from hnm.tables import TILES

if TYPE_CHECKING:  # packs must not be cut anew for another version of it
    import pandas as pd

TOLERANCE = 0.02
"""Relative difference of a level's mpp to `tiles.mpp` up to which its pixels are taken as they are:
resampling would blur more than it mends.
"""
SPOOL_BYTES = 1 << 20
"""Of JPEG that are written at once: a write for each tile takes a twentieth to a tenth of the whole
stage's processor time.
"""

MOST_PX = 2**31 - 1
MOST_TILE_PX = 4096
LEAST_MPP = 1e-4
MOST_MPP = 1e4
MOST_JPEG_PER_PX = 6
"""Bytes of a tile's JPEG for each of its pixels."""
MOST_JPEG = 1 << 16
"""Bytes of a tile's JPEG beside those of its pixels."""
DATASETS = {
    "offsets": hdf5.Wanted(("<i8",), 1),
    "coords": hdf5.Wanted(("<i8",), 2),
    "tissue": hdf5.Wanted(("<f4",), 1),
    "jpeg": hdf5.Wanted(("|u1",), 1),
}
ATTRIBUTES: dict[str, type[hdf5.Attribute]] = {
    "slide_id": str,
    "mpp": float,
    "tile_px": int,
    "side": int,
    "lost": int,
    "places": int,
}
START_OF_SCAN = 0xDA
"""Marker of JPEG: here the bytes of pixels begin."""


@dataclass(frozen=True)
class PackTile:
    """One tile on its way into a pack."""

    x: int
    y: int
    tissue: float
    jpeg: bytes


def encode(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of (height, width, 3).

    Chroma is kept whole (4:4:4), because stain is chroma: at quality 90, halved chroma (4:2:0)
    saves a quarter to a third of the bytes and makes the error of the optical density 1.2 to 3
    times as large; a lower quality with whole chroma saves the same bytes and loses no more.
    """
    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels),
            quality=quality,
            colorspace="RGB",
            colorsubsampling="444",
            fastdct=False,
        )
    )


def write_pack(
    path: Path,
    tiles: Iterable[PackTile],
    *,
    slide_id: str,
    mpp: float,
    tile_px: int,
    side: int,
    planned: int,
    places: int | None = None,
) -> int:
    """A pack at `path`, whole or not at all; `tiles` are written as they come, so that memory does
    not grow with the slide.

    `planned` is how many tiles were wanted; the difference to those that came is the pack's `lost`.
    `places` is how many the slide's grid has; None is for a grid whose tiles were all wanted.
    Returns how many came.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent, buffering=SPOOL_BYTES) as spool:
        offsets = [0]
        coords = []
        tissue = []
        for tile in tiles:
            failpoint("pack.spooling", path)
            spool.write(tile.jpeg)
            offsets.append(offsets[-1] + len(tile.jpeg))
            coords.append((tile.x, tile.y))
            tissue.append(tile.tissue)
        spool.flush()
        spool.seek(0)
        datasets: dict[str, npt.NDArray[Any] | hdf5.Streamed] = {
            "offsets": np.array(offsets, np.int64),
            "coords": np.array(coords, np.int64).reshape(-1, 2),
            "tissue": np.array(tissue, np.float32),
            "jpeg": hdf5.Streamed(offsets[-1], iter(lambda: spool.read(hdf5.BLOCK), b"")),
        }
        counts = {"lost": planned - len(coords), "places": planned if places is None else places}
        hdf5.write(
            path,
            datasets,
            {"slide_id": slide_id, "mpp": mpp, "tile_px": tile_px, "side": side, **counts},
        )
    return len(coords)


class Pack:
    """A pack that is read; safe to read from several threads, and to send to another process. Its
    file is open only while tiles are read.
    """

    def __init__(self, path: Path, *, cure: str = REMAKE) -> None:
        """Raises `TableError` where `path` is missing, cut short or no pack; `cure` is what its
        user can do.
        """
        self.path = path
        self._cure = cure
        try:
            with hdf5.opened(path, DATASETS, ATTRIBUTES, self._refusal) as file:
                self.offsets: npt.NDArray[np.int64] = file.array("offsets")
                self.coords: npt.NDArray[np.int64] = file.array("coords")
                self.tissue: npt.NDArray[np.float32] = file.array("tissue")
                self.slide_id: str = file.attributes["slide_id"]
                self.mpp: float = file.attributes["mpp"]
                self.tile_px: int = file.attributes["tile_px"]
                self.side: int = file.attributes["side"]
                self.lost: int = file.attributes["lost"]
                self.places: int = file.attributes["places"]
                self._start = file.offset("jpeg")
                (length,) = file.shape("jpeg")
        except FileNotFoundError:
            raise self._missing() from None
        if fault := self._fault(length):
            raise self._refusal(fault)

    def _refusal(self, reason: str) -> TableError:
        return TableError(
            f"{self.path} is no pack of tiles, or was cut short ({reason}); {self._cure}"
        )

    def _fault(self, length: int) -> str | None:
        """What of the content cannot be, where `length` is the number of bytes of JPEG; None where
        all is well.
        """
        tiles = len(self.coords)
        if (
            not tiles
            or self.coords.shape[1] != 2
            or len(self.tissue) != tiles
            or len(self.offsets) != tiles + 1
        ):
            return "its datasets do not fit together"
        ranges = {
            "mpp": (self.mpp, LEAST_MPP, MOST_MPP),
            "tile_px": (self.tile_px, 1, MOST_TILE_PX),
            "side": (self.side, 1, MOST_PX),
            "lost": (self.lost, 0, MOST_PX),
            "places": (self.places, tiles + self.lost, MOST_PX),
        }
        outside = (
            f"{name}={value} is not within {low} and {high}"
            for name, (value, low, high) in ranges.items()
            if not low <= value <= high
        )
        if (fault := next(outside, None)) is not None:
            return fault
        if (
            self.offsets[0] != 0
            or self.offsets[-1] != length
            or (self.offsets[1:] < self.offsets[:-1]).any()
        ):
            return "its offsets do not cut the JPEG bytes into tiles"
        if np.diff(self.offsets).max() > MOST_JPEG_PER_PX * self.tile_px**2 + MOST_JPEG:
            return "a tile has more bytes than its pixels can need"
        if (self.coords < 0).any() or (self.coords > MOST_PX).any():
            return f"a tile lies outside 0 to {MOST_PX} px"
        if not ((self.tissue >= 0) & (self.tissue <= 1)).all():
            return "a share of tissue is not within 0 and 1"
        if not is_id(self.slide_id):
            return f"slide_id={self.slide_id[:60]!r} is no id"
        return None

    def __len__(self) -> int:
        return len(self.coords)

    def jpegs(self, indices: Iterable[int]) -> Iterator[bytes]:
        """JPEG bytes of the tiles `indices`."""
        try:
            file = self.path.open("rb", buffering=0)
        except FileNotFoundError:
            raise self._missing() from None
        with file:
            for tile in indices:
                if not 0 <= tile < len(self):
                    raise TableError(
                        f"{self.path} holds {len(self)} tiles, not tile {tile}: it is of another"
                        " index of tiles; run the stage tiles (dvc repro)"
                    )
                start = int(self.offsets[tile])
                end = int(self.offsets[tile + 1])
                yield os.pread(file.fileno(), end - start, self._start + start)

    def tiles(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """(n, tile_px, tile_px, 3): the pixels of the tiles `indices`, in that order; an index may
        repeat.
        """
        pixels = np.empty((len(indices), self.tile_px, self.tile_px, 3), np.uint8)
        for place, tile, jpeg in zip(pixels, indices, self.jpegs(indices), strict=True):
            try:
                size = simplejpeg.decode_jpeg_header(jpeg)[:2]
                # Otherwise the header's claim would ask for memory.
                if size != place.shape[:2]:
                    raise TableError(
                        f"{self.path}: tile {tile} has {size} pixels, not tile_px={self.tile_px};"
                        f" {self._cure}"
                    )
                if not _has_one_scan(jpeg):
                    raise TableError(
                        f"{self.path}: tile {tile} is a JPEG image of several scans, each of which"
                        f" costs time; {self._cure}"
                    )
                simplejpeg.decode_jpeg(
                    jpeg, colorspace="RGB", fastdct=False, fastupsample=False, buffer=place
                )
            except ValueError as error:
                raise TableError(
                    f"{self.path}: tile {tile} is no JPEG image ({error}); {self._cure}"
                ) from None
        return pixels

    def _missing(self) -> TableError:
        return TableError(f"{self.path} does not exist; run the stage tiles (dvc repro)")

    def index(self) -> "pd.DataFrame":
        """This pack's rows of the table TILES."""
        return TILES.frame(
            {
                "slide_id": self.slide_id,
                "tile": np.arange(len(self), dtype=np.int32),
                "x": self.coords[:, 0],
                "y": self.coords[:, 1],
                "side": np.int64(self.side),
                "tissue": self.tissue,
            }
        )


def _has_one_scan(jpeg: bytes) -> bool:
    """Whether a JPEG image has a single scan, so that decoding it takes the time of its pixels
    once.
    """
    place = 2  # after the start of image
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        marker = jpeg[place + 1]
        if marker == 0xFF:  # a byte that fills
            place += 1
            continue
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        # In the pixels' bytes that follow, 0xFF is never followed by a marker's number.
        if marker == START_OF_SCAN:
            return jpeg.find(bytes((0xFF, START_OF_SCAN)), place) < 0
    return False
