"""The raw-tile path decodes the JPEG tiles of a TIFF slide without OpenSlide's compositing.

It gives the same pixels in less time. It serves Aperio and generic TIFF whose levels are plain JPEG
tiles. When a slide is opened, regions of each level are compared with OpenSlide, the authority;
where a byte differs or anything is unusual, OpenSlide reads the slide. So it does where a single
tile cannot be decoded, or where a region lies between the pixels of its level.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import IO, Self

import numpy as np
import simplejpeg
import tifffile

from hnm.processes import one_read
from hnm.slides.reading.failures import error_of
from hnm.slides.reading.reader import OpenSlideReader, cache_bytes, changed
from hnm.slides.reading.slide import RGB, RegionError, Slide, check_region
from hnm.slides.reading.slide_files import HEAD_BYTES

# tifffile's messages quote the bytes of a damaged file; OpenSlide says what is wrong with it
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

VENDORS = frozenset({"aperio", "generic-tiff"})
"""Formats, in OpenSlide's words, whose levels are the tiles of one TIFF page, side by side."""
START_OF_IMAGE = b"\xff\xd8"
END_OF_IMAGE = b"\xff\xd9"
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""A JPEG segment that states the colours; the byte after it is 0 for RGB, 1 for YCbCr."""
MOST_TILE_PX = 1 << 24
"""Pixels of the largest source tile that is decoded here; scanners write up to 1,024 x 1,024, and
OpenSlide reads what is larger.
"""
LEAST_TILES = 4
"""Decoded tiles that are kept at least."""
PHOTOMETRIC = {int(tifffile.PHOTOMETRIC.RGB): b"\x00", int(tifffile.PHOTOMETRIC.YCBCR): b"\x01"}


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: a TIFF page of JPEG tiles."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: tuple[int, ...]
    """The place in the file where each tile begins, row by row."""
    counts: tuple[int, ...]
    """Bytes of each tile."""
    head: bytes
    """The bytes that replace a tile's start of image: the colours that the page states, and its
    common tables.
    """

    @property
    def columns(self) -> int:
        """Tiles of a row."""
        return ceil(self.width / self.tile_width)

    @property
    def tile_bytes(self) -> int:
        """Bytes of a decoded tile."""
        return 3 * self.tile_width * self.tile_height


class RawTileReader:
    """A slide whose levels are plain JPEG tiles.

    It is a context manager, and belongs to one process. It asks `authority` for whatever it cannot
    read itself.
    """

    def __init__(
        self, path: Path, file: IO[bytes], authority: OpenSlideReader, levels: dict[int, Level]
    ) -> None:
        """Makes a reader of `file`, an open handle of `path`.

        The caller closes `file` and `authority`. `levels` are numbered as in `authority`, which
        reads all others.
        """
        self._path = path
        self._file = file
        self._authority = authority
        self._levels = levels
        self.dimensions = authority.dimensions
        self.bounds = authority.bounds
        self.mpp = authority.mpp
        self.level_downsamples = authority.level_downsamples
        self.background = authority.background
        tiles = (
            cache_bytes(level.columns * level.tile_bytes) // level.tile_bytes
            for level in levels.values()
        )
        self._tile = lru_cache(max(LEAST_TILES, *tiles))(self._decoded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tile.cache_clear()

    def check_unchanged(self) -> None:
        """Checks the slide as `Slide.check_unchanged` does.

        The handle that pixels were read from must still be the file at the path, too.
        """
        self._authority.check_unchanged()
        try:
            is_same = os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except OSError as error:
            raise error_of(error, self._path) from None
        if not is_same:
            raise changed(self._path)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        """Reads a region as `Slide.read` does."""
        check_region(x, y, level, width, height)
        downsample = int(self.level_downsamples[level])
        if level in self._levels and not (x % downsample or y % downsample):
            try:
                return self._composed(x // downsample, y // downsample, level, width, height)
            except (ValueError, OSError):
                pass  # a damaged tile, or storage that fails: OpenSlide's word on it counts
        return self._authority.read(x, y, level, width, height)

    def agrees(self) -> bool:
        """Returns whether regions of each level have the very bytes that OpenSlide reads.

        They lie across the borders of the tile with most detail, and over the last edges.
        """
        return all(self._agrees_on(number, level) for number, level in self._levels.items())

    def _agrees_on(self, number: int, level: Level) -> bool:
        row, column = divmod(int(np.argmax(level.counts)), level.columns)
        width = level.tile_width
        height = level.tile_height
        corners = (
            (width * column - width // 3, height * row - height // 3),
            (width * column + width // 2, height * row + height // 2),
            (level.width - width // 2, level.height - height // 2),
        )
        step = int(self.level_downsamples[number])
        try:
            return all(
                np.array_equal(
                    self._composed(left, top, number, width, height),
                    self._authority.read(left * step, top * step, number, width, height),
                )
                for left, top in corners
            )
        except (ValueError, OSError, RegionError):
            return False

    def _composed(self, left: int, top: int, number: int, width: int, height: int) -> RGB:
        """Returns `width` x `height` pixels of a level; their corner is its pixel (left, top)."""
        level = self._levels[number]
        right = min(left + width, level.width)
        bottom = min(top + height, level.height)
        canvas = np.empty((height, width, 3), np.uint8)
        if min(left, top) < 0 or (right - left, bottom - top) != (width, height):
            canvas[:] = self.background
        for row in range(max(0, top) // level.tile_height, ceil(bottom / level.tile_height)):
            for column in range(max(0, left) // level.tile_width, ceil(right / level.tile_width)):
                x = column * level.tile_width
                y = row * level.tile_height
                x0 = max(x, left)
                y0 = max(y, top)
                x1 = min(x + level.tile_width, right)
                y1 = min(y + level.tile_height, bottom)
                tile = self._tile(number, row * level.columns + column)
                part = tile[y0 - y : y1 - y, x0 - x : x1 - x]
                canvas[y0 - top : y1 - top, x0 - left : x1 - left] = part
        return canvas

    def _decoded(self, number: int, tile: int) -> RGB:
        """Returns a tile, (tile height, tile width, 3).

        Raises:
            ValueError: its bytes are no JPEG image of that size.
        """
        level = self._levels[number]
        with one_read():
            content = os.pread(self._file.fileno(), level.counts[tile], level.offsets[tile])
        jpeg = level.head + content[len(START_OF_IMAGE) :]
        size = simplejpeg.decode_jpeg_header(jpeg)[:2]
        if size != (level.tile_height, level.tile_width):  # before memory is asked for
            raise ValueError(f"tile {tile} of level {number} has {size} pixels")
        pixels: RGB = simplejpeg.decode_jpeg(
            jpeg, colorspace="RGB", fastdct=False, fastupsample=False
        )
        return pixels


@contextmanager
def open_slide(path: Path, fingerprint: str | None = None) -> Iterator[Slide]:
    """Opens the slide at `path` by the quickest reader that has OpenSlide's pixels.

    Raises:
        SlideError: OpenSlide cannot open it.
        ChangedError: it has another fingerprint than `fingerprint`, where that is given. Then
            `Slide.check_unchanged` tells later whether it still has it.
        MachineError: the machine or the storage does not give it.
    """
    with OpenSlideReader(path) as authority:
        if fingerprint is not None:
            authority.expect(fingerprint)
        try:
            file = path.open("rb")
        except OSError as error:
            raise error_of(error, path) from None
        with file:
            levels = levels_of(file, authority)
            if not levels:
                yield authority
                return
            with RawTileReader(path, file, authority, levels) as raw:
                yield raw if raw.agrees() else authority


def levels_of(file: IO[bytes], slide: OpenSlideReader) -> dict[int, Level]:
    """Returns the levels of `slide`, by number, that are pages of plain JPEG tiles.

    A level that does not lie on whole pixels of level 0 is left out. Where anything is unusual,
    there is none.
    """
    if slide.vendor not in VENDORS:
        return {}
    try:
        with tifffile.TiffFile(file) as tiff:
            page_of = {
                (page.imagewidth, page.imagelength): page
                for page in reversed(list(tiff.pages))
                if isinstance(page, tifffile.TiffPage)
            }
            pages = [page_of[size] for size in slide.level_dimensions]
            if not all(_is_plain(page, tiff.filehandle.size) for page in pages):
                return {}
            return {
                number: _level(page)
                for number, page in enumerate(pages)
                if slide.level_downsamples[number].is_integer()
            }
    # of a damaged file tifffile raises whatever its bytes lead it to; it may yet be a slide for
    # OpenSlide, whose word counts
    except Exception:
        return {}


def _is_plain(page: tifffile.TiffPage, size: int) -> bool:
    """Returns whether a page of a file of `size` bytes is nothing but JPEG tiles of three channels.

    All of them must lie within the file.
    """
    format_of_pixels = (
        page.samplesperpixel,
        page.bitspersample,
        page.planarconfig,
        page.imagedepth,
    )
    if not (
        page.is_tiled
        and page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in PHOTOMETRIC
        and format_of_pixels == (3, 8, tifffile.PLANARCONFIG.CONTIG, 1)
        and 0 < page.tilewidth * page.tilelength <= MOST_TILE_PX
    ):
        return False
    tiles = ceil(page.imagewidth / page.tilewidth) * ceil(page.imagelength / page.tilelength)
    # twice the pixels of a tile, and what else may stand in it
    most_bytes = 6 * page.tilewidth * page.tilelength + HEAD_BYTES
    return (
        len(page.dataoffsets) == len(page.databytecounts) == tiles
        # scanners leave blank tiles out, and OpenSlide fills them in each format's own way
        and all(0 < count <= most_bytes for count in page.databytecounts)
        and all(
            offset + count <= size
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        )
    )


def _level(page: tifffile.TiffPage) -> Level:
    tables = (page.jpegtables or b"").removeprefix(START_OF_IMAGE).removesuffix(END_OF_IMAGE)
    return Level(
        page.imagewidth,
        page.imagelength,
        page.tilewidth,
        page.tilelength,
        tuple(page.dataoffsets),
        tuple(page.databytecounts),
        START_OF_IMAGE + ADOBE + PHOTOMETRIC[page.photometric] + tables,
    )
