"""A slide's pixels, whatever its format: the only importer of openslide.

The traps of the formats are dealt with here, once: transparent pixels get the slide's background
colour (MIRAX leaves unscanned area transparent), `openslide.bounds-*` says where the scan lies on a
larger canvas (Leica, MIRAX), mpp is known for each axis, one failed read does not cost the
following ones, and thumbnails come from the pyramid, because an associated thumbnail may show
another scale, or another slide.

A file is a stranger's work: what it claims is held against bounds before memory is asked for, and a
property that is no number counts as one that is not there.
"""

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image

from hnm.errors import HnmError, SlideError
from hnm.files import key_of
from hnm.processes import one_read
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.failures import (
    ChangedError,
    StorageError,
    check_file,
    error_in_words,
    error_of,
    shown,
    words_of,
)

RGB = npt.NDArray[np.uint8]
"""Pixels, (height, width, 3)."""

HEAD_BYTES = 64 * 1024
QUICKHASH = "openslide.quickhash-1"
SAMPLES, FEWER_SAMPLES = 64, 8
"""Of `HEAD_BYTES` each, evenly over each file of a slide without and with OpenSlide's quickhash.

Two slides without one may have one size and one header; the quickhash itself sees the pixels of the
coarsest level alone.
"""
READ_PX = 2048
"""Side of the largest region that a thumbnail reads at once."""
SMALLEST_BLOCK_PX = 16
"""Side of the smallest block of a thumbnail that is given up as lost."""
LEAST_CACHE_BYTES, MOST_CACHE_BYTES = 32 << 20, 256 << 20
"""Of decoded source tiles; the most is enough for 100,000 px across source tiles of 256 px."""
USUAL_TILE_PX = 256
"""Side of a source tile where the format names none."""
MOST_SIDE_PX = 4_000_000
"""Pixels of the longest side that is believed: 20 cm of glass at the finest plausible µm per pixel,
0.05.
"""
MOST_PX_PER_BYTE = 10_000
"""Level-0 pixels of the scan for each byte of its files: ten times what the best codec makes of
empty glass.
"""
MOST_SOURCE_TILE_PX = 1 << 28
"""Pixels of the largest source tile, 1 GiB once decoded."""
MOST_REGION_PX = 1 << 27
"""Pixels of the largest region that is read at once, 512 MiB as OpenSlide hands it out."""
MOST_THUMBNAIL_PX = 100_000_000
"""Of a thumbnail: at 8 µm per pixel 64 cm², almost twice the largest glass (75 x 50 mm); finding
tissue takes some 60 bytes for each.
"""


class RegionError(SlideError):
    """One region of a slide cannot be read; others can."""


@dataclass(frozen=True)
class State:
    """What tells whether a slide's files are still what they were."""

    fingerprint: str
    times: dict[str, int]
    """Name of each file -> its time of change, in ns."""


class Slide(Protocol):
    """What tiling needs of a slide; any reader of these few members will do."""

    @property
    def vendor(self) -> str:
        """Who made the format, in OpenSlide's words."""

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0 in pixels."""

    @property
    def bounds(self) -> Box:
        """Where the scan lies; outside of it there is no tissue."""

    @property
    def mpp(self) -> tuple[float, float] | None:
        """µm per level-0 pixel along x and y, as the file states it; None where it does not."""

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level, ascending from 1."""

    @property
    def background(self) -> tuple[int, int, int]:
        """RGB of what was not scanned."""

    def read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        """`width` x `height` pixels of `level`, whose corner lies at the level-0 pixel (x, y);
        `RegionError` where the file is damaged.
        """

    def check_unchanged(self) -> None:
        """Raises `ChangedError` where the file is not the one any more that was opened."""


@dataclass(frozen=True)
class Thumbnail:
    """The scan at a low resolution, made from the pyramid."""

    pixels: RGB
    lost: npt.NDArray[np.bool_]
    """(height, width): where the file could not be read; `pixels` holds the background there."""
    x: int
    """Level-0 pixel of the left edge."""
    y: int
    """Level-0 pixel of the upper edge."""
    scale: tuple[float, float]
    """Level-0 pixels per thumbnail pixel along x and y."""
    mpp: float
    """µm per thumbnail pixel."""


class OpenSlideReader:
    """A slide through OpenSlide, the authority on every format. A context manager; belongs to one
    process.
    """

    def __init__(self, path: Path) -> None:
        """Opens the slide.

        Raises:
            SlideError: there is no such file, it is no slide, it is damaged, or it claims what no
            file of its size holds. MachineError: the machine or the storage does not give it.
        """
        self._path = path
        self._slide = _open(path)
        try:
            self._take_properties()
        except BaseException as error:
            self._slide.close()
            if isinstance(error, OSError):
                raise error_of(error, path, shown(path)) from None
            raise

    def _take_properties(self) -> None:
        try:
            self._properties = _properties_of(self._slide)
            self.dimensions: tuple[int, int] = self._slide.dimensions
            self.level_dimensions: tuple[tuple[int, int], ...] = tuple(self._slide.level_dimensions)
            self.level_downsamples: tuple[float, ...] = tuple(self._slide.level_downsamples)
        except openslide.OpenSlideError as error:
            raise _not_opened(error, self._path) from None
        self.vendor: str = self._properties.get("openslide.vendor", "unknown")
        self.bounds = _bounds(self._properties, self.dimensions)
        self.background = _background(self._properties)
        self.mpp = _mpp(self._properties)
        self.objective_power = _number(self._properties, "openslide.objective-power")
        self._check_claims()
        tile_height = int(
            _number(self._properties, "openslide.level[0].tile-height") or USUAL_TILE_PX
        )
        self._cache = openslide.OpenSlideCache(cache_bytes(4 * self.dimensions[0] * tile_height))
        self._slide.set_cache(self._cache)
        self._is_ycbcr = is_mislabelled_ycbcr(self._path, self._properties)
        self._expected: State | None = None

    def _check_claims(self) -> None:
        """Raises `SlideError` where the file claims more pixels than a scanner makes, or than its
        bytes can hold.
        """
        name = shown(self._path)
        for number, (width, height) in enumerate(self.level_dimensions):
            if not (0 < width <= MOST_SIDE_PX and 0 < height <= MOST_SIDE_PX):
                raise SlideError(
                    f"{name} claims {width} x {height} pixels at level {number}, not 1 to"
                    f" {MOST_SIDE_PX} along each side; copy or convert it again"
                )
            tile = [
                _number(self._properties, f"openslide.level[{number}].tile-{side}") or 0
                for side in ("width", "height")
            ]
            if tile[0] * tile[1] > MOST_SOURCE_TILE_PX:
                raise SlideError(
                    f"{name} claims source tiles of {tile[0]:.0f} x {tile[1]:.0f} pixels, more than"
                    " are decoded at once; convert it again"
                )
        if not all(
            math.isfinite(downsample) and downsample > 0 for downsample in self.level_downsamples
        ):
            raise SlideError(f"{name} has levels whose scales are no numbers; convert it again")
        pixels = self.bounds.width * self.bounds.height
        if pixels > MOST_PX_PER_BYTE * self._path.stat().st_size and pixels > MOST_PX_PER_BYTE * (
            size := sum(
                file.stat().st_size for file in files_of(self._path, self._properties).values()
            )
        ):
            raise SlideError(
                f"{name} claims {self.bounds.width} x {self.bounds.height} pixels, but has {size}"
                " bytes, which cannot hold them; copy it again"
            )

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
        """Gives the file back."""
        self._slide.close()

    def read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        """See `Slide.read`. After a failure the file is opened anew and read once more, since
        OpenSlide latches its first error.

        `MachineError` where the file cannot be opened any more, or OpenSlide says that it is the
        storage that failed.
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
        """Digest of what identifies the slide cheaply.

        That is the size, the first 64 KiB and samples of each of its files, and the properties,
        with OpenSlide's quickhash. A change in place that falls between the samples is not seen.
        It does not depend on where the slide lies, nor on its time of change.
        """
        return self._state().fingerprint

    def expect(self, fingerprint: str) -> None:
        """Raises `ChangedError` unless the slide has this fingerprint; `check_unchanged` then holds
        the file against it.
        """
        state = self._state()
        if state.fingerprint != fingerprint:
            raise changed(self._path)
        self._expected = state

    def check_unchanged(self) -> None:
        """Opens the file anew and raises `ChangedError` where it is not what `expect` saw:
        replaced, written to, or no slide any more.
        """
        if self._expected is None:
            raise RuntimeError("check_unchanged before expect")
        try:
            with OpenSlideReader(self._path) as again:
                state = again._state()
        except SlideError:  # it was a slide before
            raise changed(self._path) from None
        if state != self._expected:
            raise changed(self._path)

    def _state(self) -> State:
        files: dict[str, list[int | str]] = {}
        times: dict[str, int] = {}
        samples = FEWER_SAMPLES if QUICKHASH in self._properties else SAMPLES
        try:
            for name, file in files_of(self._path, self._properties).items():
                with one_read(), file.open("rb") as stream:
                    status = os.fstat(stream.fileno())
                    files[name] = [
                        status.st_size,
                        hashlib.sha256(stream.read(HEAD_BYTES)).hexdigest(),
                    ]
                    times[name] = status.st_mtime_ns
                    files[name].append(_samples_digest(stream.fileno(), status.st_size, samples))
        except FileNotFoundError:
            raise StorageError(
                f"{shown(self._path)} or a file of it is gone since it was opened; mount its folder"
            ) from None
        except OSError as error:
            raise error_of(error, self._path, shown(self._path)) from None
        return State(key_of(files=files, properties=self._properties), times)

    def _read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        with one_read():
            region = self._slide.read_region((x, y), level, (width, height))
        pixels = region.convert("RGB")
        if self._is_ycbcr:
            pixels = Image.merge("YCbCr", pixels.split()).convert("RGB")
        if region.getchannel("A").getextrema() == (255, 255):
            return np.asarray(pixels)
        canvas = Image.new("RGB", region.size, self.background)
        canvas.paste(pixels, mask=region.getchannel("A"))
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
    """Bytes of decoded source tiles to keep, where a row of source tiles across the slide has `row`
    bytes.

    A row of the grid needs source tiles of the row before again. With fewer than two rows of them
    kept, each has been forgotten when its turn comes, and a wide slide is decoded twice.
    """
    return min(max(2 * row * 9 // 8, LEAST_CACHE_BYTES), MOST_CACHE_BYTES)


def check_region(x: int, y: int, level: int, width: int, height: int) -> None:
    """Raises `RegionError` where a region has more pixels than are read at once."""
    if width * height > MOST_REGION_PX:
        raise RegionError(
            f"region {x=} {y=} {level=} {width=} {height=} has more than {MOST_REGION_PX} pixels",
            step="tiles",
        )


def changed(path: Path) -> ChangedError:
    """The error of a slide that is not the one any more whose fingerprint was taken."""
    return ChangedError(
        f"{shown(path)} changed since its fingerprint was taken, and nothing of it is kept; once it"
        " is whole, run the same command again (dvc repro), which takes the fingerprint anew"
    )


@contextlib.contextmanager
def expecting(path: Path, fingerprint: str) -> Iterator[None]:
    """Where a slide is called bad in the block, but is not the one any more that has `fingerprint`,
    a `ChangedError` says so in place of it.
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


def thumbnail(
    slide: Slide, mpp: float, slide_mpp: tuple[float, float], max_lost_share: float = 1.0
) -> Thumbnail:
    """The slide's bounds at `mpp` µm per pixel (or at its own resolution where that is coarser),
    averaged over area.

    It is read in blocks, so that memory does not grow with the slide; a block that cannot be read
    is halved until the unreadable part is small, which is then marked as lost.

    Raises:
        SlideError: it would have more than `MOST_THUMBNAIL_PX`, or more than `max_lost_share` of it
        is lost. It ends there: each
            failed read has OpenSlide open the file again, and a slide that claims far more rows
            than it holds would go on for hours.
    """
    mpp = max(mpp, *slide_mpp)
    scale = (mpp / slide_mpp[0], mpp / slide_mpp[1])
    width, height = (
        max(1, round(side / s))
        for side, s in zip((slide.bounds.width, slide.bounds.height), scale, strict=True)
    )
    if width * height > MOST_THUMBNAIL_PX:
        raise SlideError(
            f"its scan would have {width} x {height} pixels at {mpp:g} µm per pixel, more than the"
            f" {MOST_THUMBNAIL_PX} in which tissue is looked for; raise tissue.mpp, or give the"
            " true µm per pixel of the slide in the manifest's column mpp",
            step="tissue",
        )
    scale = (slide.bounds.width / width, slide.bounds.height / height)
    level = finest_sufficient_level(slide.level_downsamples, min(scale))
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = slide.background
    lost = np.zeros((height, width), bool)
    lost_px = 0
    block = int(READ_PX * slide.level_downsamples[level] / max(scale))
    largest = (
        int(MOST_REGION_PX**0.5 * slide.level_downsamples[level] / max(scale)) - 2
    )  # of a slide of one level, as seen from afar
    block = max(1, min(max(SMALLEST_BLOCK_PX, block), largest))
    waiting = [
        (x, y, min(block, width - x), min(block, height - y))
        for y in range(0, height, block)
        for x in range(0, width, block)
    ]
    while waiting:
        x, y, w, h = waiting.pop()
        at = np.s_[y : y + h, x : x + w]
        try:
            pixels[at] = _shrunk(slide, level, scale, x, y, w, h)
        except RegionError:
            if max(w, h) <= SMALLEST_BLOCK_PX:
                lost[at] = True
                lost_px += w * h
                if lost_px > max_lost_share * width * height:
                    raise SlideError(
                        f"more than tiles.max_lost_share={max_lost_share:g} of its area cannot be"
                        " read",
                        step="tiles",
                    ) from None
            else:
                waiting += _halves(x, y, w, h)
    return Thumbnail(pixels, lost, slide.bounds.x, slide.bounds.y, scale, mpp)


def finest_sufficient_level(
    downsamples: tuple[float, ...], wanted: float, tolerance: float = 0.0
) -> int:
    """The coarsest level that is no coarser than `wanted` level-0 pixels per pixel (within
    `tolerance`): little is read, nothing is enlarged.
    """
    return max(
        level
        for level, downsample in enumerate(downsamples)
        if level == 0 or downsample <= wanted * (1 + tolerance)
    )


def _shrunk(
    slide: Slide, level: int, scale: tuple[float, float], x: int, y: int, width: int, height: int
) -> RGB:
    """A block of the thumbnail, in its pixels."""
    downsample = slide.level_downsamples[level]
    left, top = int(x * scale[0]), int(y * scale[1])
    offset = (x * scale[0] - left) / downsample, (y * scale[1] - top) / downsample
    size = width * scale[0] / downsample, height * scale[1] / downsample
    read = slide.read(
        slide.bounds.x + left,
        slide.bounds.y + top,
        level,
        *(int(np.ceil(o + s)) for o, s in zip(offset, size, strict=True)),
    )
    box = (
        offset[0],
        offset[1],
        min(offset[0] + size[0], read.shape[1]),
        min(offset[1] + size[1], read.shape[0]),
    )
    return np.asarray(Image.fromarray(read).resize((width, height), Image.Resampling.BOX, box=box))


def _halves(x: int, y: int, width: int, height: int) -> list[tuple[int, int, int, int]]:
    if width >= height:
        left = width // 2
        return [(x, y, left, height), (x + left, y, width - left, height)]
    upper = height // 2
    return [(x, y, width, upper), (x, y + upper, width, height - upper)]


def _open(path: Path) -> openslide.OpenSlide:
    name = shown(path)
    if os.path.isdir(path):  # Path.is_dir raises where a folder is closed
        raise SlideError(f"{name} is a folder; name the file of its slide, of DICOM any one")
    check_file(path, name)
    try:
        _check_neighbours(path)
        with one_read():
            return openslide.OpenSlide(path)
    except OSError as error:
        raise error_of(error, path, name) from None
    except openslide.OpenSlideUnsupportedFormatError:
        _check_access(path)
        raise SlideError(f"{name} is no slide that OpenSlide can read") from None
    except openslide.OpenSlideError as error:
        raise _not_opened(error, path) from None


def _not_opened(error: openslide.OpenSlideError, path: Path) -> HnmError:
    message = f"{shown(path)} is damaged or not whole ({_reason(error, path)}); copy it again"
    machine = error_in_words(_reason(error, path))
    return (
        SlideError(message)
        if machine is None
        else type(machine)(f"{shown(path)} cannot be opened: {machine}")
    )


def _check_access(path: Path) -> None:
    """Raises where it is the machine that keeps a file from OpenSlide, which then calls it
    unsupported: it opens some handles, and reads through each.
    """
    try:
        with contextlib.ExitStack() as handles:
            for _ in range(8):
                handles.enter_context(path.open("rb", buffering=0)).read(HEAD_BYTES)
    except OSError as error:
        raise error_of(error, path, shown(path)) from None


def _check_neighbours(path: Path) -> None:
    """Raises `SlideError` where OpenSlide would open a named pipe or a device: of some formats it
    reads what lies beside the named file.
    """
    folder = {
        ".mrxs": path.with_suffix("") if path.suffix else path,
        ".vms": path.parent,
        ".vmu": path.parent,
    }.get(path.suffix.lower())
    if folder is None and _head(path)[128:132] == b"DICM":
        folder = path.parent
    if folder is None or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        odd = sorted(
            entry.name
            for entry in entries
            if not (
                entry.is_file()
                or entry.is_dir()
                or (entry.is_symlink() and not Path(entry.path).exists())
            )
        )
    if odd:
        raise SlideError(
            f"{shown(path)}: {shown(Path(odd[0]))}, which lies with its files, is no regular file;"
            " take it away"
        )


def _reason(error: openslide.OpenSlideError, path: Path) -> str:
    """OpenSlide's message without the folder, which differs from machine to machine."""
    return words_of(str(error).replace(f"{path.parent}/", ""))


def _properties_of(slide: openslide.OpenSlide) -> dict[str, str]:
    """The properties of a slide, but those whose names are not UTF-8, which Python cannot ask
    OpenSlide for.
    """
    properties = {}
    try:
        for name in slide.properties:
            with contextlib.suppress(KeyError):
                properties[name] = slide.properties[name]
    except UnicodeError:  # of earlier versions of openslide-python, where one such name spoils all
        raise SlideError("its properties are not UTF-8; convert it again") from None
    return properties


def _number(properties: dict[str, str], name: str) -> float | None:
    """The value of a property; None where it is missing, or no finite number."""
    try:
        number = float(properties[name])
    except (KeyError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _bounds(properties: dict[str, str], dimensions: tuple[int, int]) -> Box:
    """The part of the canvas that the properties call scanned; all of it where one of them is no
    number, or they lie beside it.
    """
    width, height = dimensions
    numbers = [
        _number(properties, f"openslide.bounds-{side}") for side in ("x", "y", "width", "height")
    ]
    x, y, bounds_width, bounds_height = (0 if number is None else int(number) for number in numbers)
    left, top, right, bottom = (
        max(0, x),
        max(0, y),
        min(width, x + bounds_width),
        min(height, y + bounds_height),
    )
    if None in numbers or left >= right or top >= bottom:
        return Box(0, 0, width, height)
    return Box(left, top, right - left, bottom - top)


def _background(properties: dict[str, str]) -> tuple[int, int, int]:
    """White where the property is no colour."""
    colour = properties.get("openslide.background-color", "")
    red, green, blue = bytes.fromhex(colour if re.fullmatch("[0-9A-Fa-f]{6}", colour) else "FFFFFF")
    return red, green, blue


def _mpp(properties: dict[str, str]) -> tuple[float, float] | None:
    x, y = (_number(properties, f"openslide.mpp-{axis}") for axis in ("x", "y"))
    return None if x is None or y is None else (x, y)


def is_mislabelled_ycbcr(path: Path, properties: dict[str, str]) -> bool:
    """Whether a DICOM header says RGB although the frames are JFIF, which is YCbCr: bfconvert
    writes such files, and OpenSlide believes the header.
    """
    baseline_jpeg = "1.2.840.10008.1.2.4.50"
    if (
        properties.get("dicom.PhotometricInterpretation"),
        properties.get("dicom.TransferSyntaxUID"),
    ) != ("RGB", baseline_jpeg):
        return False
    start_of_frame, jfif = b"\xff\xd8\xff\xe0", b"JFIF"
    head = _head(path)
    frame = head.find(start_of_frame)
    return frame >= 0 and head[frame + 6 : frame + 10] == jfif


def files_of(path: Path, properties: dict[str, str]) -> dict[str, Path]:
    """The files that make the slide, by name; the named file itself has the name "" because
    renaming it changes nothing.
    """
    return {"": path} | {file.name: file for file in _companions(path, properties) if file != path}


def _companions(path: Path, properties: dict[str, str]) -> list[Path]:
    vendor = properties.get("openslide.vendor")
    if vendor == "mirax":
        return sorted(file for file in path.with_suffix("").glob("*") if file.is_file())
    if (
        vendor == "dicom"
    ):  # one file a level; OpenSlide takes those of the series that lie beside it
        series = properties.get("dicom.SeriesInstanceUID", "").encode()
        return sorted(
            file
            for file in path.parent.iterdir()
            if file.is_file() and series and series in _head(file)
        )
    if path.suffix.lower() in {".vms", ".vmu"}:  # Hamamatsu: a text file that names the others
        named = _head(path)
        return sorted(
            file
            for file in path.parent.iterdir()
            if file.is_file() and os.fsencode(file.name) in named
        )
    return []


def _head(path: Path) -> bytes:
    with one_read(), path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def _samples_digest(handle: int, size: int, samples: int) -> str:
    """Digest of `samples` blocks that lie evenly over a file of `size` bytes, its last included."""
    digest = hashlib.sha256()
    for number in range(1, samples + 1):
        digest.update(os.pread(handle, HEAD_BYTES, max(0, size - HEAD_BYTES) * number // samples))
    return digest.hexdigest()
