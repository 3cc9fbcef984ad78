"""Tiny slides that OpenSlide opens, for any test: made here, so that the tests need no data."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dvc.logger  # noqa: F401  # its handlers keep the stdout of the first import; a test that imports it first would close that under later ones
import numpy as np
import pytest
import tifffile
from hypothesis import settings
from PIL import Image

from tests.tiny_stages import Launcher

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)  # a shared machine keeps no deadline
settings.load_profile("suite")

GLASS = (243, 241, 244)
STROMA = (214, 140, 190)
NUCLEI = (110, 60, 140)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Forks stages and commands from a process that has imported what they need."""
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The functions of this file: `tiny.aperio(path, tiny.painted(200, 300, (50, 40, 120, 90, tiny.STROMA)))`."""
    return SimpleNamespace(
        painted=painted, halved=halved, aperio=write_aperio, trestle=write_trestle, leica=write_leica, damage=damage, GLASS=GLASS, STROMA=STROMA, NUCLEI=NUCLEI
    )


def painted(height: int, width: int, *patches: tuple[int, int, int, int, tuple[int, int, int]], seed: int = 0) -> np.ndarray:
    """Glass with noise, and rectangles (x, y, width, height, colour) on it."""
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = GLASS
    for x, y, w, h, colour in patches:
        pixels[y : y + h, x : x + w] = colour
    noise = np.random.default_rng(seed).normal(0, 1.5, (height, width, 1))
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def halved(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2), Image.Resampling.BOX))


def write_aperio(path: Path, pixels: np.ndarray, mpp: float | None = 1.0, levels: int = 1, tile: int = 64, power: float | None = 20) -> Path:
    """A lossless Aperio slide; each level has half the side of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[:2]
    known = (f"|AppMag = {power}" if power else "") + (f"|MPP = {mpp}" if mpp else "")
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            size = f"{width}x{height} [0,0 {width}x{height}] (64x64)" + (f" -> {pixels.shape[1]}x{pixels.shape[0]}" if level else "")
            text = f"Aperio Image Library v11.2.1 \r\n{size} JPEG/RGB Q=90" + (known if not level else "")
            file.write(pixels, tile=(tile, tile), photometric="rgb", compression="deflate", description=text, metadata=None)
            pixels = halved(pixels)
    return path


def write_trestle(path: Path, pixels: np.ndarray, background: str) -> Path:
    """A lossless slide whose unscanned area has a colour of its own."""
    text = f"Objective Power=20;Background Color={background};OverlapsXY=0 0 0 0 0 0"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="deflate", description=text, software="MedScan 1.0", metadata=None)
    return path


def write_leica(path: Path, pixels: np.ndarray, margin: int, mpp: float = 1.0) -> Path:
    """A lossless slide whose scan lies on a larger canvas, `margin` pixels from its corner."""
    height, width, nm = pixels.shape[0], pixels.shape[1], int(mpp * 1000)
    canvas_width, canvas_height, macro = (width + 2 * margin) * nm, (height + 2 * margin) * nm, np.full((64, 128, 3), 235, np.uint8)

    def image(size_x: int, size_y: int, ifd: int, view: str, objective: float) -> str:
        return (
            f'<image><device model="Leica SCN400" version="1"/><pixels sizeX="{size_x}" sizeY="{size_y}"><dimension sizeX="{size_x}" sizeY="{size_y}" r="0"'
            f' ifd="{ifd}"/></pixels><view {view} spacingZ="0"/><scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>'
            "<illuminationSettings><numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings>"
            "</scanSettings></image>"
        )

    scan = image(width, height, 0, f'sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{margin * nm}" offsetY="{margin * nm}"', 20)
    whole = image(128, 64, 1, f'sizeX="{canvas_width}" sizeY="{canvas_height}" offsetX="0" offsetY="0"', 0.6)
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" sizeX="{canvas_width}" sizeY="{canvas_height}"><barcode>MTIz</barcode>{scan}{whole}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, page in enumerate((pixels, macro)):
            resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            file.write(page, tile=(64, 64), photometric="rgb", compression="jpeg", description=None if number else text, metadata=None, **resolution)
    return path


def damage(path: Path, *tiles: int, page: int = 0) -> Path:
    """Overwrites the bytes of some TIFF tiles."""
    with tifffile.TiffFile(path) as file:
        spans = [(file.pages[page].dataoffsets[tile], file.pages[page].databytecounts[tile]) for tile in tiles]
    with path.open("r+b") as stream:
        for offset, count in spans:
            stream.seek(offset)
            stream.write(b"\xff" * count)
    return path
