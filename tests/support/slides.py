"""Tiny slides of several makers that OpenSlide opens, made here, so that the tests need no data."""

import io
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

GLASS = (243, 241, 244)
STROMA = (214, 140, 190)
NUCLEI = (110, 60, 140)


def painted(
    height: int,
    width: int,
    *patches: tuple[int, int, int, int, tuple[int, int, int]],
    seed: int = 0,
) -> np.ndarray:
    """Glass with noise, and rectangles (x, y, width, height, colour) on it."""
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = GLASS
    for x, y, w, h, colour in patches:
        pixels[y : y + h, x : x + w] = colour
    noise = np.random.default_rng(seed).normal(0, 1.5, (height, width, 1))
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def halved(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(
        Image.fromarray(pixels).resize(
            (pixels.shape[1] // 2, pixels.shape[0] // 2), Image.Resampling.BOX
        )
    )


def aperio(
    path: Path,
    pixels: np.ndarray,
    mpp: float | None = 1.0,
    levels: int = 1,
    tile: int = 64,
    power: float | None = 20,
) -> Path:
    """A lossless Aperio slide; each level has half the side of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[:2]
    properties = (f"|AppMag = {power}" if power else "") + (f"|MPP = {mpp}" if mpp else "")
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            size = f"{width}x{height} [0,0 {width}x{height}] (64x64)" + (
                f" -> {pixels.shape[1]}x{pixels.shape[0]}" if level else ""
            )
            text = f"Aperio Image Library v11.2.1 \r\n{size} JPEG/RGB Q=90" + (
                properties if not level else ""
            )
            file.write(
                pixels,
                tile=(tile, tile),
                photometric="rgb",
                compression="deflate",
                description=text,
                metadata=None,
            )
            pixels = halved(pixels)
    return path


def trestle(path: Path, pixels: np.ndarray, background: str) -> Path:
    """A lossless slide whose unscanned area has a colour of its own."""
    text = f"Objective Power=20;Background Color={background};OverlapsXY=0 0 0 0 0 0"
    tifffile.imwrite(
        path,
        pixels,
        tile=(64, 64),
        photometric="rgb",
        compression="deflate",
        description=text,
        software="MedScan 1.0",
        metadata=None,
    )
    return path


def leica(path: Path, pixels: np.ndarray, margin: int, mpp: float = 1.0) -> Path:
    """A lossless slide whose scan lies on a larger canvas, `margin` pixels from its corner."""
    height, width = pixels.shape[:2]
    nm = int(mpp * 1000)
    canvas_width = (width + 2 * margin) * nm
    canvas_height = (height + 2 * margin) * nm
    macro = np.full((64, 128, 3), 235, np.uint8)

    def image(size_x: int, size_y: int, ifd: int, view: str, objective: float) -> str:
        return (
            '<image><device model="Leica SCN400" version="1"/>'
            f'<pixels sizeX="{size_x}" sizeY="{size_y}">'
            f'<dimension sizeX="{size_x}" sizeY="{size_y}" r="0" ifd="{ifd}"/></pixels>'
            f'<view {view} spacingZ="0"/><scanSettings>'
            f"<objectiveSettings><objective>{objective}</objective></objectiveSettings>"
            "<illuminationSettings><numericalAperture>0.4</numericalAperture>"
            "<illuminationSource>brightfield</illuminationSource></illuminationSettings>"
            "</scanSettings></image>"
        )

    scan = image(
        width,
        height,
        0,
        f'sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{margin * nm}"'
        f' offsetY="{margin * nm}"',
        20,
    )
    whole = image(
        128, 64, 1, f'sizeX="{canvas_width}" sizeY="{canvas_height}" offsetX="0" offsetY="0"', 0.6
    )
    text = (
        '<?xml version="1.0"?><scn'
        ' xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c"'
        f' sizeX="{canvas_width}"'
        f' sizeY="{canvas_height}"><barcode>MTIz</barcode>{scan}{whole}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, page in enumerate((pixels, macro)):
            file.write(
                page,
                tile=(64, 64),
                photometric="rgb",
                compression="jpeg",
                description=None if number else text,
                metadata=None,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
            )
    return path


def mirax(
    path: Path,
    pixels: np.ndarray,
    before: tuple[int, int] = (2, 1),
    mpp: float = 1.0,
    tile: int = 64,
) -> Path:
    """A slide of MIRAX whose scan, of whole tiles, has `before` tiles to its left and above it that
    were not scanned.

    Of its folder OpenSlide needs an ini file, the tiles as PNG, and an index: the version, the
    slide's id, the place of the list of zoom levels, then a page of (place in the grid, offset,
    length, file) for each tile.
    """
    down = pixels.shape[0] // tile
    across = pixels.shape[1] // tile
    columns = across + before[0] + 1
    rows = down + before[1] + 2
    stored = bytearray()
    page = []
    for row in range(down):
        for column in range(across):
            stream = io.BytesIO()
            square = pixels[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
            Image.fromarray(square).save(stream, "PNG")
            place = (row + before[1]) * columns + column + before[0]
            page.append((place, len(stored), stream.tell(), 0))
            stored += stream.getvalue()
    head = b"01.02" + b"A" * 32
    # after the two roots, the list of one level, and the page before the first
    first = len(head) + 8 + 4 + 8
    index = head + struct.pack("<iiiii", len(head) + 8, 0, len(head) + 12, 0, first)
    index += struct.pack("<ii", len(page), 0)
    index += b"".join(struct.pack("<iiii", *record) for record in page)
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    (folder / "Index.dat").write_bytes(index)
    (folder / "Data0000.dat").write_bytes(stored)
    ini = _mirax_ini(columns, rows, mpp, tile)
    (folder / "Slidedat.ini").write_text(ini, encoding="utf-8", newline="")
    path.write_bytes(b"")
    return path


def _mirax_ini(columns: int, rows: int, mpp: float, tile: int) -> str:
    """What OpenSlide needs of Slidedat.ini, for a grid of `columns` and `rows` tiles."""
    sections: dict[str, dict[str, object]] = {
        "GENERAL": {
            "SLIDE_VERSION": "01.02",
            "SLIDE_ID": "A" * 32,
            "IMAGENUMBER_X": columns,
            "IMAGENUMBER_Y": rows,
            "OBJECTIVE_MAGNIFICATION": 10,
            "CameraImageDivisionsPerSide": 1,
        },
        "HIERARCHICAL": {
            "HIER_COUNT": 1,
            "NONHIER_COUNT": 0,
            "INDEXFILE": "Index.dat",
            "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": 1,
            "HIER_0_VAL_0": "ZoomLevel_0",
            "HIER_0_VAL_0_SECTION": "LEVEL_0",
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
        "LEVEL_0": {
            "OVERLAP_X": 0,
            "OVERLAP_Y": 0,
            "MICROMETER_PER_PIXEL_X": mpp,
            "MICROMETER_PER_PIXEL_Y": mpp,
            "IMAGE_FORMAT": "PNG",
            "IMAGE_FILL_COLOR_BGR": 16777215,
            "DIGITIZER_WIDTH": tile,
            "DIGITIZER_HEIGHT": tile,
            "IMAGE_CONCAT_FACTOR": 0,
        },
    }
    lines = [
        line
        for name, values in sections.items()
        for line in (f"[{name}]", *(f"{key} = {value}" for key, value in values.items()))
    ]
    return "\r\n".join([*lines, ""])


def damage(path: Path, *tiles: int, page: int = 0) -> Path:
    """Overwrites the bytes of some TIFF tiles."""
    with tifffile.TiffFile(path) as file:
        spans = [
            (file.pages[page].dataoffsets[tile], file.pages[page].databytecounts[tile])
            for tile in tiles
        ]
    with path.open("r+b") as stream:
        for offset, count in spans:
            stream.seek(offset)
            stream.write(b"\xff" * count)
    return path
