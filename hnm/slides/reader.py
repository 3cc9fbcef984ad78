"""A slide's pixels, whatever its format: the only importer of openslide.

The traps of the formats are dealt with here, once: transparent pixels get the slide's background colour (MIRAX leaves
unscanned area transparent), `openslide.bounds-*` says where the scan lies on a larger canvas (Leica, MIRAX), mpp is
known for each axis, one failed read does not cost the following ones, and thumbnails come from the pyramid, because an
associated thumbnail may show another scale, or another slide.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image

from hnm.errors import SlideError
from hnm.files import key_of
from hnm.processes import one_read
from hnm.slides.storage import PASSING, StorageError, may_pass

RGB = npt.NDArray[np.uint8]
"""Pixels, (height, width, 3)."""

HEAD_BYTES = 64 * 1024
READ_PX = 2048
"""Side of the largest region that a thumbnail reads at once."""
SMALLEST_BLOCK_PX = 16
"""Side of the smallest block of a thumbnail that is given up as lost."""
LEAST_CACHE_BYTES, MOST_CACHE_BYTES = 32 << 20, 256 << 20
"""Of decoded source tiles; the most is enough for 100,000 px across source tiles of 256 px."""
USUAL_TILE_PX = 256
"""Side of a source tile where the format names none."""


class RegionError(SlideError):
    """One region of a slide cannot be read; others can."""


@dataclass(frozen=True)
class Box:
    """A rectangle in level-0 pixels."""

    x: int
    y: int
    width: int
    height: int


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
        """`width` x `height` pixels of `level`, whose corner lies at the level-0 pixel (x, y); `RegionError` where the file is damaged."""


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
    """A slide through OpenSlide, the authority on every format. A context manager; belongs to one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = _open(path)
        self._properties = dict(self._slide.properties)
        tile_height = int(self._properties.get("openslide.level[0].tile-height", USUAL_TILE_PX))
        self._cache = openslide.OpenSlideCache(cache_bytes(4 * self._slide.dimensions[0] * tile_height))
        self._slide.set_cache(self._cache)
        self.vendor: str = self._properties.get("openslide.vendor", "unknown")
        self.dimensions: tuple[int, int] = self._slide.dimensions
        self.level_dimensions: tuple[tuple[int, int], ...] = tuple(self._slide.level_dimensions)
        self.level_downsamples: tuple[float, ...] = tuple(self._slide.level_downsamples)
        self.bounds = _bounds(self._properties, self.dimensions)
        self.background = _background(self._properties)
        self.mpp = _mpp(self._properties)
        self.objective_power = _objective_power(self._properties)
        self._is_ycbcr = is_mislabelled_ycbcr(path, self._properties)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file back."""
        self._slide.close()

    def read(self, x: int, y: int, level: int, width: int, height: int) -> RGB:
        """See `Slide.read`. After a failure the file is opened anew and read once more, since OpenSlide latches its first error.

        `StorageError` where the file cannot be opened any more, or OpenSlide says that it is the storage that failed.
        """
        try:
            return self._read(x, y, level, width, height)
        except openslide.OpenSlideError:
            self._reopen()
        try:
            return self._read(x, y, level, width, height)
        except openslide.OpenSlideError as error:
            self._reopen()
            kind = StorageError if _blames_storage(error) else RegionError
            raise kind(f"region {x=} {y=} {level=} {width=} {height=} cannot be read: {_reason(error, self._path)}", step="tiles") from None

    def fingerprint(self) -> str:
        """Digest of what identifies the file cheaply: the size and the first 64 KiB of each of its files, OpenSlide's quickhash and the properties.

        It does not depend on where the slide lies, nor on its time of change.
        """
        try:
            files = {name: [file.stat().st_size, _head_digest(file)] for name, file in files_of(self._path, self._properties).items()}
        except OSError as error:
            raise _unreadable(self._path, error) from None
        return key_of(files=files, properties=self._properties)

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
        except SlideError as error:  # it could be opened before
            raise StorageError(str(error)) from None
        self._slide.set_cache(self._cache)
        latched.close()


def cache_bytes(row: int) -> int:
    """Bytes of decoded source tiles to keep, where a row of source tiles across the slide has `row` bytes.

    A row of the grid needs source tiles of the row before again. With fewer than two rows of them kept, each has been
    forgotten when its turn comes, and a wide slide is decoded twice.
    """
    return min(max(2 * row * 9 // 8, LEAST_CACHE_BYTES), MOST_CACHE_BYTES)


def thumbnail(slide: Slide, mpp: float, slide_mpp: tuple[float, float]) -> Thumbnail:
    """The slide's bounds at `mpp` µm per pixel (or at its own resolution where that is coarser), averaged over area.

    It is read in blocks, so that memory does not grow with the slide; a block that cannot be read is halved until the
    unreadable part is small, which is then marked as lost.
    """
    mpp = max(mpp, *slide_mpp)
    scale = (mpp / slide_mpp[0], mpp / slide_mpp[1])
    width, height = (max(1, round(side / s)) for side, s in zip((slide.bounds.width, slide.bounds.height), scale, strict=True))
    scale = (slide.bounds.width / width, slide.bounds.height / height)
    level = finest_sufficient_level(slide.level_downsamples, min(scale))
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = slide.background
    lost = np.zeros((height, width), bool)
    block = max(SMALLEST_BLOCK_PX, int(READ_PX * slide.level_downsamples[level] / max(scale)))
    waiting = [(x, y, min(block, width - x), min(block, height - y)) for y in range(0, height, block) for x in range(0, width, block)]
    while waiting:
        x, y, w, h = waiting.pop()
        at = np.s_[y : y + h, x : x + w]
        try:
            pixels[at] = _shrunk(slide, level, scale, x, y, w, h)
        except RegionError:
            if max(w, h) <= SMALLEST_BLOCK_PX:
                lost[at] = True
            else:
                waiting += _halves(x, y, w, h)
    return Thumbnail(pixels, lost, slide.bounds.x, slide.bounds.y, scale, mpp)


def finest_sufficient_level(downsamples: tuple[float, ...], wanted: float, tolerance: float = 0.0) -> int:
    """The coarsest level that is no coarser than `wanted` level-0 pixels per pixel (within `tolerance`): little is read, nothing is enlarged."""
    return max(level for level, downsample in enumerate(downsamples) if level == 0 or downsample <= wanted * (1 + tolerance))


def _shrunk(slide: Slide, level: int, scale: tuple[float, float], x: int, y: int, width: int, height: int) -> RGB:
    """A block of the thumbnail, in its pixels."""
    downsample = slide.level_downsamples[level]
    left, top = int(x * scale[0]), int(y * scale[1])
    offset = (x * scale[0] - left) / downsample, (y * scale[1] - top) / downsample
    size = width * scale[0] / downsample, height * scale[1] / downsample
    read = slide.read(slide.bounds.x + left, slide.bounds.y + top, level, *(int(np.ceil(o + s)) for o, s in zip(offset, size, strict=True)))
    box = (offset[0], offset[1], min(offset[0] + size[0], read.shape[1]), min(offset[1] + size[1], read.shape[0]))
    return np.asarray(Image.fromarray(read).resize((width, height), Image.Resampling.BOX, box=box))


def _halves(x: int, y: int, width: int, height: int) -> list[tuple[int, int, int, int]]:
    if width >= height:
        left = width // 2
        return [(x, y, left, height), (x + left, y, width - left, height)]
    upper = height // 2
    return [(x, y, width, upper), (x, y + upper, width, height - upper)]


def _open(path: Path) -> openslide.OpenSlide:
    try:
        if not path.exists():
            raise SlideError(f"{path.name} does not exist")
        if path.is_dir():
            raise SlideError(f"{path.name} is a folder; name the file of its slide, of DICOM any one")
        with one_read():
            return openslide.OpenSlide(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except openslide.OpenSlideUnsupportedFormatError:
        raise SlideError(f"{path.name} is no slide that OpenSlide can read") from None
    except openslide.OpenSlideError as error:
        if _blames_storage(error):
            raise StorageError(f"{path.name} cannot be opened: {_reason(error, path)}") from None
        raise SlideError(f"{path.name} is damaged or not whole ({_reason(error, path)}); copy it again") from None


def _unreadable(path: Path, error: OSError) -> SlideError:
    kind = StorageError if may_pass(error) else SlideError
    return kind(f"{path.name} cannot be read: {error.strerror}")


def _blames_storage(error: openslide.OpenSlideError) -> bool:
    """OpenSlide has no codes: it hands the operating system's words on, or says "I/O error"."""
    return any(words in str(error) for words in ("I/O error", *map(os.strerror, PASSING)))


def _reason(error: openslide.OpenSlideError, path: Path) -> str:
    """OpenSlide's message without the folder, which differs from machine to machine."""
    return str(error).replace(f"{path.parent}/", "")


def _bounds(properties: dict[str, str], dimensions: tuple[int, int]) -> Box:
    width, height = dimensions
    x, y = (max(0, int(properties.get(f"openslide.bounds-{axis}", 0))) for axis in ("x", "y"))
    return Box(
        x,
        y,
        min(width - x, int(properties.get("openslide.bounds-width", width))),
        min(height - y, int(properties.get("openslide.bounds-height", height))),
    )


def _background(properties: dict[str, str]) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(properties.get("openslide.background-color", "FFFFFF"))
    return red, green, blue


def _mpp(properties: dict[str, str]) -> tuple[float, float] | None:
    x, y = (properties.get(f"openslide.mpp-{axis}") for axis in ("x", "y"))
    return None if x is None or y is None else (float(x), float(y))


def _objective_power(properties: dict[str, str]) -> float | None:
    """Magnification of the objective as the file states it; None where it states no number."""
    try:
        return float(properties["openslide.objective-power"])
    except (KeyError, ValueError):
        return None


def is_mislabelled_ycbcr(path: Path, properties: dict[str, str]) -> bool:
    """Whether a DICOM header says RGB although the frames are JFIF, which is YCbCr: bfconvert writes such files, and OpenSlide believes the header."""
    baseline_jpeg = "1.2.840.10008.1.2.4.50"
    if (properties.get("dicom.PhotometricInterpretation"), properties.get("dicom.TransferSyntaxUID")) != ("RGB", baseline_jpeg):
        return False
    start_of_frame, jfif = b"\xff\xd8\xff\xe0", b"JFIF"
    head = _head(path)
    frame = head.find(start_of_frame)
    return frame >= 0 and head[frame + 6 : frame + 10] == jfif


def files_of(path: Path, properties: dict[str, str]) -> dict[str, Path]:
    """The files that make the slide, by name; the named file itself has the name "" because renaming it changes nothing."""
    return {"": path} | {file.name: file for file in _companions(path, properties) if file != path}


def _companions(path: Path, properties: dict[str, str]) -> list[Path]:
    vendor = properties.get("openslide.vendor")
    if vendor == "mirax":
        return sorted(file for file in path.with_suffix("").glob("*") if file.is_file())
    if vendor == "dicom":  # one file a level; OpenSlide takes those of the series that lie beside it
        series = properties["dicom.SeriesInstanceUID"].encode()
        return sorted(file for file in path.parent.iterdir() if file.is_file() and series in _head(file))
    if path.suffix.lower() in {".vms", ".vmu"}:  # Hamamatsu: a text file that names the others
        named = _head(path)
        return sorted(file for file in path.parent.iterdir() if file.is_file() and file.name.encode() in named)
    return []


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def _head_digest(path: Path) -> str:
    return hashlib.sha256(_head(path)).hexdigest()
