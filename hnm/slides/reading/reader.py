"""OpenSlide's reader of slides: the only importer of openslide.

It deals with the traps of the formats. Transparent pixels get the slide's background colour (MIRAX
leaves unscanned area transparent). OpenSlide's bounds say where the scan lies on a larger canvas
(Leica, MIRAX). One failed read does not cost the following ones.

A file is a stranger's work: what it claims is held against bounds before memory is asked for.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import openslide
from PIL import Image

from hnm.errors import HnmError, SlideError
from hnm.processes import one_read
from hnm.slides.reading.failures import (
    ChangedError,
    StorageError,
    check_file,
    error_in_words,
    error_of,
    printable_name,
    short_line,
)
from hnm.slides.reading.properties import (
    OBJECTIVE_POWER,
    VENDOR,
    Properties,
    background_of,
    bounds_of,
    mpp_of,
    number,
    source_tile,
)
from hnm.slides.reading.slide import RGB, RegionError, check_region
from hnm.slides.reading.slide_files import (
    HEAD_BYTES,
    State,
    check_neighbours,
    files_of,
    is_mislabelled_ycbcr,
    state_of,
)

LEAST_CACHE_BYTES = 32 << 20
"""Bytes of decoded source tiles that are kept at least."""
MOST_CACHE_BYTES = 256 << 20
"""Bytes that are kept at most: enough for 100,000 px across source tiles of 256 px."""
USUAL_TILE_PX = 256
"""Side of a source tile where the format names none."""
MOST_SIDE_PX = 4_000_000
"""Pixels of the longest side that is believed: 20 cm of glass at 0.05 µm per pixel, the finest
plausible resolution.
"""
MOST_PX_PER_BYTE = 10_000
"""Level-0 pixels of the scan for each byte of its files: ten times what the best codec makes of
empty glass.
"""
MOST_SOURCE_TILE_PX = 1 << 28
"""Pixels of the largest source tile, 1 GiB once decoded."""
HANDLES = 8
"""More handles of one file than OpenSlide opens at once."""


class OpenSlideReader:
    """A slide through OpenSlide, the authority on every format.

    It is a context manager, and belongs to one process.
    """

    def __init__(self, path: Path) -> None:
        """Opens the slide.

        Raises:
            SlideError: there is no such file, it is no slide, it is damaged, or it claims what no
                file of its size holds.
            MachineError: the machine or the storage does not give it.
        """
        self._path = path
        self._slide = _open(path)
        try:
            self._take_properties()
        except BaseException as error:
            self._slide.close()
            if isinstance(error, OSError):
                raise error_of(error, path) from None
            raise

    def _take_properties(self) -> None:
        try:
            self._properties = _properties_of(self._slide)
            self.dimensions: tuple[int, int] = self._slide.dimensions
            self.level_dimensions: tuple[tuple[int, int], ...] = tuple(self._slide.level_dimensions)
            self.level_downsamples: tuple[float, ...] = tuple(self._slide.level_downsamples)
        except openslide.OpenSlideError as error:
            raise _opening_error(error, self._path) from None
        self.vendor: str = self._properties.get(VENDOR, "unknown")
        self.bounds = bounds_of(self._properties, self.dimensions)
        self.background = background_of(self._properties)
        self.mpp = mpp_of(self._properties)
        self.objective_power = number(self._properties, OBJECTIVE_POWER)
        self._check_claims()
        tile_height = int(source_tile(self._properties, 0)[1] or USUAL_TILE_PX)
        self._cache = openslide.OpenSlideCache(cache_bytes(4 * self.dimensions[0] * tile_height))
        self._slide.set_cache(self._cache)
        self._is_ycbcr = is_mislabelled_ycbcr(self._path, self._properties)
        self._expected: State | None = None

    def _check_claims(self) -> None:
        """Raises `SlideError` where the file claims more pixels than a scanner makes, or than its
        bytes can hold.
        """
        name = printable_name(self._path)
        for level, (width, height) in enumerate(self.level_dimensions):
            if not 0 < min(width, height) <= max(width, height) <= MOST_SIDE_PX:
                raise SlideError(
                    f"{name} claims {width} x {height} pixels at level {level}, not 1 to"
                    f" {MOST_SIDE_PX} along each side; copy or convert it again"
                )
            tile_width, tile_height = source_tile(self._properties, level)
            if tile_width * tile_height > MOST_SOURCE_TILE_PX:
                raise SlideError(
                    f"{name} claims source tiles of {tile_width:.0f} x {tile_height:.0f} pixels,"
                    " more than are decoded at once; convert it again"
                )
        if not all(0 < downsample < math.inf for downsample in self.level_downsamples):
            raise SlideError(f"{name} has levels whose scales are no numbers; convert it again")
        pixels = self.bounds.width * self.bounds.height
        if pixels <= MOST_PX_PER_BYTE * self._path.stat().st_size:
            return
        files = files_of(self._path, self._properties)
        size = sum(file.stat().st_size for file in files.values())
        if pixels > MOST_PX_PER_BYTE * size:
            raise SlideError(
                f"{name} claims {self.bounds.width} x {self.bounds.height} pixels, but has {size}"
                " bytes, which cannot hold them; copy it again"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._slide.close()

    def read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        """Reads a region as `Slide.read` does.

        After a failure the file is opened anew and read once more, since OpenSlide latches its
        first error.

        Raises:
            MachineError: the file cannot be opened any more, or OpenSlide says that the storage
                failed.
        """
        check_region(x, y, level, width, height)
        try:
            return self._read(x, y, level, width, height)
        except openslide.OpenSlideError:
            self._reopen()
        try:
            return self._read(x, y, level, width, height)
        except openslide.OpenSlideError as error:
            self._reopen()
            message = (
                f"region {x=} {y=} {level=} {width=} {height=} cannot be read:"
                f" {_reason(error, self._path)}"
            )
            raise error_in_words(message) or RegionError(message, step="tiles") from None

    def fingerprint(self) -> str:
        """Returns the digest of what identifies the slide cheaply.

        That is the size, the first 64 KiB and samples of each of its files, and the properties,
        with OpenSlide's quickhash. A change in place that falls between the samples is not seen.
        The digest does not depend on where the slide lies, nor on its time of change.
        """
        return state_of(self._path, self._properties).fingerprint

    def expect(self, fingerprint: str) -> None:
        """Raises `ChangedError` unless the slide has this fingerprint.

        Later `check_unchanged` compares the file with what it is now.
        """
        state = state_of(self._path, self._properties)
        if state.fingerprint != fingerprint:
            raise changed(self._path)
        self._expected = state

    def check_unchanged(self) -> None:
        """Opens the file anew and raises `ChangedError` where it is not what `expect` saw.

        Then it was replaced or written to, or is no slide any more.
        """
        try:
            with OpenSlideReader(self._path) as again:
                state = state_of(again._path, again._properties)
        except SlideError:  # it was a slide before
            raise changed(self._path) from None
        if state != self._expected:
            raise changed(self._path)

    def _read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        with one_read():
            region = self._slide.read_region((x, y), level, (width, height))
        pixels = region.convert("RGB")
        if self._is_ycbcr:
            pixels = Image.merge("YCbCr", pixels.split()).convert("RGB")
        opacity = region.getchannel("A")
        if opacity.getextrema() == (255, 255):
            return np.asarray(pixels)
        canvas = Image.new("RGB", region.size, self.background)
        canvas.paste(pixels, mask=opacity)
        return np.asarray(canvas)

    def _reopen(self) -> None:
        latched = self._slide
        try:
            self._slide = _open(self._path)
        except HnmError as error:  # it could be opened before
            raise StorageError(str(error)) from None
        self._slide.set_cache(self._cache)
        latched.close()


def cache_bytes(row: int) -> int:
    """Returns the bytes of decoded source tiles to keep, where a row of them has `row` bytes.

    A row of the grid needs source tiles of the row before again. With fewer than two rows of them
    kept, each has been forgotten when its turn comes, and a wide slide is decoded twice.
    """
    return min(max(2 * row * 9 // 8, LEAST_CACHE_BYTES), MOST_CACHE_BYTES)


def changed(path: Path) -> ChangedError:
    """Returns the error of a slide whose fingerprint was taken before it changed."""
    return ChangedError(
        f"{printable_name(path)} changed since its fingerprint was taken, and nothing of it is"
        " kept; once it is whole, run the same command again (dvc repro), which takes the"
        " fingerprint anew"
    )


@contextlib.contextmanager
def expecting(path: Path, fingerprint: str) -> Iterator[None]:
    """Replaces a `SlideError` of the block by a `ChangedError` where the slide has changed.

    Then it is another slide than the one with `fingerprint` that is bad.
    """
    try:
        yield
    except SlideError:
        try:
            with OpenSlideReader(path) as slide:
                slide.expect(fingerprint)
        except SlideError:  # it was a slide when its fingerprint was taken
            raise changed(path) from None
        raise


def _open(path: Path) -> openslide.OpenSlide:
    name = printable_name(path)
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises where a folder is closed
        raise SlideError(f"{name} is a folder; name the file of its slide, of DICOM any one")
    check_file(path)
    try:
        check_neighbours(path)
        with one_read():
            return openslide.OpenSlide(path)
    except OSError as error:
        raise error_of(error, path) from None
    except openslide.OpenSlideUnsupportedFormatError:
        _check_access(path)
        raise SlideError(f"{name} is no slide that OpenSlide can read") from None
    except openslide.OpenSlideError as error:
        raise _opening_error(error, path) from None


def _opening_error(error: openslide.OpenSlideError, path: Path) -> HnmError:
    name = printable_name(path)
    reason = _reason(error, path)
    machine = error_in_words(reason)
    if machine is None:
        return SlideError(f"{name} is damaged or not whole ({reason}); copy it again")
    return type(machine)(f"{name} cannot be opened: {machine}")


def _check_access(path: Path) -> None:
    """Raises where the machine keeps a file from OpenSlide, which then calls it unsupported."""
    try:
        with contextlib.ExitStack() as handles:
            for _ in range(HANDLES):
                handles.enter_context(path.open("rb", buffering=0)).read(HEAD_BYTES)
    except OSError as error:
        raise error_of(error, path) from None


def _reason(error: openslide.OpenSlideError, path: Path) -> str:
    """Returns OpenSlide's message without the folder, which differs from machine to machine."""
    return short_line(str(error).replace(f"{path.parent}/", ""))


def _properties_of(slide: openslide.OpenSlide) -> Properties:
    """Returns the properties whose names are UTF-8; Python cannot ask OpenSlide for the others."""
    properties = {}
    try:
        for name in slide.properties:
            with contextlib.suppress(KeyError):
                properties[name] = slide.properties[name]
    except UnicodeError:  # in earlier versions of openslide-python one such name spoils all
        raise SlideError("its properties are not UTF-8; convert it again") from None
    return properties
