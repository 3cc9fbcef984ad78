"""The raw-tile path: the JPEG tiles of a TIFF slide decoded at once, without OpenSlide's
compositing, for the same pixels in less time.

It serves Aperio and generic TIFF whose levels are plain JPEG tiles. When a slide is opened, regions
of each level are compared with OpenSlide, the authority; where a byte differs or anything is
unusual, OpenSlide reads the slide. So it does where a single tile cannot be decoded, or a region
lies between the pixels of its level.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import simplejpeg
import tifffile

from hnm.processes import one_read
from hnm.slides.reading.failures import error_of, shown
from hnm.slides.reading.reader import (
    HEAD_BYTES,
    RGB,
    OpenSlideReader,
    RegionError,
    Slide,
    cache_bytes,
    changed,
    check_region,
)

logging.getLogger("tifffile").setLevel(
    logging.CRITICAL + 1
)  # it quotes the bytes of a damaged file; what is wrong with one OpenSlide says
VENDORS = frozenset({"aperio", "generic-tiff"})
"""Formats, in OpenSlide's words, whose levels are the tiles of one TIFF page, side by side."""
START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""A JPEG segment that states the colours; the byte after it is 0 for RGB, 1 for YCbCr."""
MOST_TILE_PX = 1 << 24
"""Pixels of the largest source tile that is decoded here; scanners write up to 1,024 x 1,024, and
OpenSlide reads what is larger.
"""
PHOTOMETRIC = {int(tifffile.PHOTOMETRIC.RGB): b"\x00", int(tifffile.PHOTOMETRIC.YCBCR): b"\x01"}


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: a TIFF page of JPEG tiles."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: tuple[int, ...]
    """Where in the file each tile begins, row by row."""
    counts: tuple[int, ...]
    """Bytes of each tile."""
    head: bytes
    """What a tile's bytes after its start of image follow: the colours that the page states, and
    its common tables.
    """

    @property
    def columns(self) -> int:
        """Tiles of a row."""
        return ceil(self.width / self.tile_width)

    @property
    def tile_bytes(self) -> int:
        """Of a decoded tile."""
        return 3 * self.tile_width * self.tile_height


class RawTileReader:
    """A slide whose levels are plain JPEG tiles. A context manager; belongs to one process.

    What it does not know itself it asks `authority`, which stays its owner's to close.
    """

    def __init__(
        self, path: Path, file: IO[bytes], authority: OpenSlideReader, levels: dict[int, Level]
    ) -> None:
        """A reader of `file`, an open handle of `path` that stays its owner's to close.

        `levels` by their number in `authority`; all others are read through it.
        """
        self._path = path
        self._file = file
        self._authority = authority
        self._levels = levels
        self.vendor = authority.vendor
        self.dimensions = authority.dimensions
        self.bounds = authority.bounds
        self.mpp = authority.mpp
        self.level_downsamples = authority.level_downsamples
        self.background = authority.background
        kept = (
            cache_bytes(level.columns * level.tile_bytes) // level.tile_bytes
            for level in levels.values()
        )
        self._tile = lru_cache(max(4, *kept))(self._decoded)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forgets the decoded tiles."""
        self._tile.cache_clear()

    def check_unchanged(self) -> None:
        """See `Slide.check_unchanged`; the handle that pixels were read from must still be the file
        at the path, too.
        """
        self._authority.check_unchanged()
        try:
            is_same = os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except OSError as error:
            raise error_of(error, self._path, shown(self._path)) from None
        if not is_same:
            raise changed(self._path)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        """See `Slide.read`."""
        check_region(x, y, level, width, height)
        downsample = int(self.level_downsamples[level])
        if level not in self._levels or x % downsample or y % downsample:
            return self._authority.read(x, y, level, width, height)
        try:
            return self._composed(x // downsample, y // downsample, level, width, height)
        except (
            ValueError,
            OSError,
        ):  # a damaged tile, or storage that fails: OpenSlide's word on it is the one that counts
            return self._authority.read(x, y, level, width, height)

    def agrees(self) -> bool:
        """Whether regions of each level have the very bytes that OpenSlide reads: across the
        borders of the tile with most detail, and over the last edges.
        """
        return all(self._agrees_on(number, level) for number, level in self._levels.items())

    def _agrees_on(self, number: int, level: Level) -> bool:
        richest = int(np.argmax(level.counts))
        row, column = divmod(richest, level.columns)
        corners = {
            (
                level.tile_width * column - level.tile_width // 3,
                level.tile_height * row - level.tile_height // 3,
            ),
            (
                level.tile_width * column + level.tile_width // 2,
                level.tile_height * row + level.tile_height // 2,
            ),
            (level.width - level.tile_width // 2, level.height - level.tile_height // 2),
        }
        downsample = int(self.level_downsamples[number])
        for left, top in corners:
            try:
                composed = self._composed(left, top, number, level.tile_width, level.tile_height)
                known = self._authority.read(
                    left * downsample, top * downsample, number, level.tile_width, level.tile_height
                )
            except (ValueError, OSError, RegionError):
                return False
            if not np.array_equal(composed, known):
                return False
        return True

    def _composed(self, left: int, top: int, number: int, width: int, height: int) -> RGB:
        """`width` x `height` pixels of a level, whose corner is its pixel (left, top)."""
        level = self._levels[number]
        right, bottom = min(left + width, level.width), min(top + height, level.height)
        canvas = np.empty((height, width, 3), np.uint8)
        if min(left, top) < 0 or (right - left, bottom - top) != (width, height):
            canvas[:] = self.background
        for row in range(max(0, top) // level.tile_height, ceil(bottom / level.tile_height)):
            for column in range(max(0, left) // level.tile_width, ceil(right / level.tile_width)):
                x, y = column * level.tile_width, row * level.tile_height
                x0, y0, x1, y1 = (
                    max(x, left),
                    max(y, top),
                    min(x + level.tile_width, right),
                    min(y + level.tile_height, bottom),
                )
                tile = self._tile(number, row * level.columns + column)
                canvas[y0 - top : y1 - top, x0 - left : x1 - left] = tile[
                    y0 - y : y1 - y, x0 - x : x1 - x
                ]
        return canvas

    def _decoded(self, number: int, tile: int) -> RGB:
        """(tile height, tile width, 3); `ValueError` where its bytes are no such JPEG image."""
        level = self._levels[number]
        with one_read():
            jpeg = (
                level.head
                + os.pread(self._file.fileno(), level.counts[tile], level.offsets[tile])[
                    len(START_OF_IMAGE) :
                ]
            )
        size = simplejpeg.decode_jpeg_header(jpeg)[:2]
        if size != (level.tile_height, level.tile_width):  # before memory is asked for
            raise ValueError(f"tile {tile} of level {number} has {size} pixels")
        pixels: RGB = simplejpeg.decode_jpeg(
            jpeg, colorspace="RGB", fastdct=False, fastupsample=False
        )
        return pixels


@contextmanager
def open_slide(path: Path, fingerprint: str | None = None) -> Iterator[Slide]:
    """The slide at `path` by the quickest reader that has OpenSlide's pixels.

    Raises:
        SlideError: OpenSlide cannot open it.
        ChangedError: it has another fingerprint than `fingerprint`, where that is given; then
        `Slide.check_unchanged` tells later whether it still has it. MachineError: the machine or
        the storage does not give it.
    """
    with OpenSlideReader(path) as authority:
        if fingerprint is not None:
            authority.expect(fingerprint)
        try:
            file = path.open("rb")
        except OSError as error:
            raise error_of(error, path, shown(path)) from None
        with file:
            levels = levels_of(file, authority)
            if not levels:
                yield authority
                return
            with RawTileReader(path, file, authority, levels) as raw:
                yield raw if raw.agrees() else authority


def levels_of(file: IO[bytes], slide: OpenSlideReader) -> dict[int, Level]:
    """Those levels of `slide` that are pages of plain JPEG tiles and lie on whole pixels of level
    0, by number; none where anything is unusual.
    """
    if slide.vendor not in VENDORS:
        return {}
    try:
        with tifffile.TiffFile(file) as tiff:
            pages = {
                (page.imagewidth, page.imagelength): page
                for page in reversed(list(tiff.pages))
                if isinstance(page, tifffile.TiffPage)
            }
            found = [pages[size] for size in slide.level_dimensions]
            if not all(_is_plain(page, tiff.filehandle.size) for page in found):
                return {}
            return {
                number: _level(page)
                for number, page in enumerate(found)
                if slide.level_downsamples[number].is_integer()
            }
    # of a damaged file tifffile raises whatever its bytes lead it to; it may yet be a slide for
    # OpenSlide, whose word counts
    except Exception:
        return {}


def _is_plain(page: tifffile.TiffPage, size: int) -> bool:
    """Whether a page of a file of `size` bytes is nothing but JPEG tiles of three channels, all of
    them within the file.
    """
    return (
        page.is_tiled
        and page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in PHOTOMETRIC
        and (page.samplesperpixel, page.bitspersample, page.planarconfig, page.imagedepth)
        == (3, 8, tifffile.PLANARCONFIG.CONTIG, 1)
        and len(page.dataoffsets)
        == ceil(page.imagewidth / page.tilewidth) * ceil(page.imagelength / page.tilelength)
        and len(page.dataoffsets) == len(page.databytecounts)
        and 0 < page.tilewidth * page.tilelength <= MOST_TILE_PX
        and all(
            offset + count <= size
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        )
        and max(page.databytecounts)
        <= 6 * page.tilewidth * page.tilelength
        + HEAD_BYTES  # twice the pixels, and what else may stand in a tile
        and all(
            page.databytecounts
        )  # scanners leave blank tiles out, and OpenSlide fills them in each format's own way
    )


def _level(page: tifffile.TiffPage) -> Level:
    tables = (page.jpegtables or b"").removeprefix(START_OF_IMAGE).removesuffix(END_OF_IMAGE)
    head = START_OF_IMAGE + ADOBE + PHOTOMETRIC[page.photometric] + tables
    return Level(
        page.imagewidth,
        page.imagelength,
        page.tilewidth,
        page.tilelength,
        tuple(page.dataoffsets),
        tuple(page.databytecounts),
        head,
    )
