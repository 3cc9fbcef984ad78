import errno
import io
import json
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hnm.errors import MachineError, SlideError
from hnm.files import digest_of
from hnm.slides.annotations import Region
from hnm.slides.cutting import masks
from hnm.slides.cutting.masks import mask_bytes, rasterised, read_mask
from hnm.slides.reading.canvas import Box, Canvas
from hnm.slides.reading.failures import ChangedError, StorageError
from hnm.slides.reading.thumbnails import Thumbnail


def view_of(
    width: int, height: int, x: int = 0, y: int = 0, scale: tuple[float, float] = (10.0, 10.0)
) -> Thumbnail:
    return Thumbnail(
        np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool), x, y, scale, 8.0
    )


def canvas_of(width: int, height: int) -> Canvas:
    """A slide that is scanned all over."""
    return Canvas(width, height, Box(0, 0, width, height))


def read(path, dimensions, view):
    return read_mask(mask_bytes(path), path, canvas_of(*dimensions), view)


def geojson(path, *rings, name=None):
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": ring}, "properties": {}}
        for ring in rings
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_an_image_covers_level_0_at_any_scale(tmp_path):
    """A mask of 6 x 4 pixels for 600 x 400: its pixel (4, 1) is x 400 to 500, y 100 to 200,
    whatever not-zero value it has.
    """
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1, 4] = 3
    Image.fromarray(pixels).save(tmp_path / "m.png")
    whole = read(tmp_path / "m.png", (600, 400), view_of(12, 8, scale=(50.0, 50.0)))
    assert np.argwhere(whole).tolist() == [[2, 8], [2, 9], [3, 8], [3, 9]]
    scan = read(
        tmp_path / "m.png", (600, 400), view_of(4, 4, x=350, y=50, scale=(50.0, 25.0))
    )  # x 350 to 550, y 50 to 150
    assert np.argwhere(scan).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]


def test_half_of_the_pixels_under_a_thumbnail_pixel_make_it_tissue(tmp_path):
    pixels = np.zeros((4, 8), np.uint8)
    pixels[0, 0] = pixels[0:2, 4] = pixels[1, 5] = 255  # 1 of 4, 3 of 4
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert read(tmp_path / "m.png", (80, 40), view_of(4, 2, scale=(20.0, 20.0))).tolist() == [
        [False, False, True, False],
        [False] * 4,
    ]


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB"])
def test_images_of_any_depth(tmp_path, mode):
    image = Image.fromarray(np.array([[0, 255], [0, 0]], np.uint8))
    image = (
        Image.fromarray(np.array([[0, 700], [0, 0]], np.uint16))
        if mode == "I;16"
        else image.convert(mode)
    )
    image.save(tmp_path / "m.png")
    assert read(tmp_path / "m.png", (20, 20), view_of(2, 2)).tolist() == [
        [False, True],
        [False, False],
    ]


def test_polygons_with_and_without_names(tmp_path):
    """A square of x, y 0 to 50 with a hole of 20 to 40, and a triangle; pixel centres are 5, 15,
    25, …
    """
    square = [
        [[0, 0], [50, 0], [50, 50], [0, 50], [0, 0]],
        [[20, 20], [40, 20], [40, 40], [20, 40], [20, 20]],
    ]
    triangle = [[[60, 0], [80, 0], [60, 20], [60, 0]]]
    mask = read(geojson(tmp_path / "m.geojson", square, triangle), (80, 60), view_of(8, 6))
    expected = np.zeros((6, 8), bool)
    expected[:5, :5] = True
    expected[2:4, 2:4] = False
    expected[0, 6] = True
    np.testing.assert_array_equal(mask, expected)


@given(st.integers(0, 2**32), st.integers(-20, 60), st.floats(2, 9), st.floats(2, 9))
def test_rasterised_as_a_loop_over_centres(seed, x, scale_x, scale_y):
    corners = np.random.default_rng(seed).uniform(0, 100, (2, 7, 2))
    regions = [Region("", shapely.MultiPoint(points).convex_hull) for points in corners]
    mask = rasterised(regions, view_of(9, 7, x=x, y=11, scale=(scale_x, scale_y)))
    for row in range(7):
        for column in range(9):
            centre = shapely.Point(x + (column + 0.5) * scale_x, 11 + (row + 0.5) * scale_y)
            assert mask[row, column] == any(region.geometry.contains(centre) for region in regions)


def test_what_is_wrong_with_a_mask(tmp_path):
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "empty.png")
    Image.fromarray(np.ones((60, 40), np.uint8)).save(tmp_path / "turned.png")
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no image")
    geojson(tmp_path / "other.geojson", [[[900, 0], [950, 0], [950, 50], [900, 0]]])
    (tmp_path / "torn.geojson").write_text("{")
    for name, message in (
        ("empty.png", "its mask empty.png has no tissue within the scan"),
        (
            "turned.png",
            (
                r"its mask turned.png has 40 x 60 pixels, which is not the aspect of the slide's"
                r" 600 x 400; it must cover all of level 0"
            ),
        ),
        (
            "colour.png",
            (
                "its mask colour.png is a picture in colour; save it with one channel that is 0 on"
                " glass"
            ),
        ),
        (
            "text.png",
            (
                r"its mask text.png cannot be read: it is no image \(PNG, TIFF, JPEG\), or not a"
                r" whole one \(UnidentifiedImageError\); correct the manifest's"
            ),
        ),
        (
            "none.png",
            "its mask none.png does not exist; correct the manifest's column mask, or --mask",
        ),
        (
            "none.geojson",
            "its mask none.geojson does not exist; correct the manifest's column mask",
        ),
        (
            "other.geojson",
            (
                r"its mask other.geojson, feature 1 \(\) lies at x 900 to 950, y 0 to 50, 300"
                r" pixels outside the scan of the slide, which"
            ),
        ),
        ("torn.geojson", "its mask torn.geojson is not JSON: "),
    ):
        with pytest.raises(SlideError, match=f"^{message}") as caught:
            read(tmp_path / name, (600, 400), view_of(60, 40))
        assert caught.value.step == "tissue"


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], pixels: bytes | None = None
) -> bytes:
    """A PNG image of 8-bit grey with more chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    raw = zlib.compress(
        b"".join(b"\0" + b"\1" * width for _ in range(height)) if pixels is None else pixels
    )
    parts = [(b"IHDR", header), *chunks, (b"IDAT", raw), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            png(6, 4, (b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20)))),
            r"or not a whole one \(ValueError\); correct the manifest's column mask",
        ),
        (png(60_000, 60_000, pixels=b""), "has more than 89478485 pixels; shrink it"),
        (png(12_000, 12_000, pixels=b""), "has more than 89478485 pixels; shrink it"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\nshowpage\n",
            r"it is no image \(PNG, TIFF, JPEG\)",
        ),
        (png(6, 4)[:50], r"or not a whole one \((OSError|SyntaxError)\)"),
        (
            png(6, 4)[:30] + b"\xff" * 40,
            r"or not a whole one \((SyntaxError|OSError|UnidentifiedImageError)\)",
        ),
        (b"", r"or not a whole one \(UnidentifiedImageError\)"),
    ],
    ids=["text bomb", "bomb", "half a bomb", "PostScript", "cut short", "overwritten", "empty"],
)
def test_hostile_images(content, message):
    with pytest.raises(SlideError, match=f"^its mask m.png .*{message}") as caught:
        read_mask(content, Path("m.png"), canvas_of(600, 400), view_of(60, 40))
    assert caught.value.step == "tissue"


def test_no_mutated_image_is_more_than_an_error_of_its_slide():
    draw = random.Random(5)
    image = io.BytesIO()
    Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (40, 1))).save(image, "PNG")
    tiff = io.BytesIO()
    Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (40, 1))).save(tiff, "TIFF")
    refused = 0
    for number in range(600):
        content = bytearray((image, tiff)[number % 2].getvalue())
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            read_mask(bytes(content), Path("m.png"), canvas_of(600, 400), view_of(60, 40))
        except SlideError:
            refused += 1
    assert 100 < refused < 600


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def coloured(*colours: tuple[int, ...]) -> Image.Image:
    """The colours as 2 x 2 pixels, the second the tissue."""
    return Image.fromarray(np.array(colours, np.uint8).reshape(2, 2, -1).squeeze())


def with_palette(*palette: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(np.array([[0, 1], [0, 0]], np.uint8), "P")
    image.putpalette([channel for colour in palette for channel in colour])
    return image


def floating(value: float) -> Image.Image:
    return Image.fromarray(np.array([[0, value], [0, 0]], np.float32))


BLACK, WHITE = (0, 0, 0), (255, 255, 255)
IMAGES = {
    "opaque grey": (
        encoded(coloured((0, 255), (7, 255), (0, 255), (0, 255)).convert("LA"), "PNG"),
        None,
    ),
    "opaque colours": (
        encoded(coloured((*BLACK, 255), (*WHITE, 255), (*BLACK, 255), (*BLACK, 255)), "PNG"),
        None,
    ),
    "half transparent": (
        encoded(coloured((*BLACK, 255), (*WHITE, 255), (*BLACK, 0), (*BLACK, 255)), "PNG"),
        "is transparent in places; save it without",
    ),
    "palette": (encoded(with_palette(BLACK, (9, 0, 0)), "PNG"), None),
    "palette upside down": (
        encoded(with_palette(WHITE, BLACK), "PNG"),
        "has a palette whose colour 0 is not the only black; save it with one channel",
    ),
    "palette of two blacks": (
        encoded(with_palette(BLACK, BLACK), "PNG"),
        "has a palette whose colour 0 is not the only black",
    ),
    "transparent by key": (
        encoded(coloured((0,), (9,), (0,), (0,)), "PNG", transparency=0),
        "is transparent in places",
    ),
    "1-bit TIFF": (encoded(coloured((0,), (255,), (0,), (0,)).convert("1"), "TIFF"), None),
    "16-bit TIFF": (
        encoded(Image.fromarray(np.array([[0, 256], [0, 0]], np.uint16)), "TIFF"),
        None,
    ),
    "32-bit TIFF": (
        encoded(Image.fromarray(np.array([[0, 1 << 20], [0, 0]], np.int32)), "TIFF"),
        None,
    ),
    "floats": (encoded(floating(0.5), "TIFF"), None),
    "NaN": (encoded(floating(float("nan")), "TIFF"), "holds values that are no numbers"),
    "BMP": (
        encoded(coloured((0,), (255,), (0,), (0,)), "BMP"),
        r"cannot be read: it is no image \(PNG, TIFF, JPEG\)",
    ),
    "CMYK": (
        encoded(
            coloured((0, 0, 0, 9), (0, 0, 0, 0), (0, 0, 0, 9), (0, 0, 0, 9))
            .convert("RGB")
            .convert("CMYK"),
            "TIFF",
        ),
        "is ",
    ),
}


@pytest.mark.parametrize(("content", "refusal"), IMAGES.values(), ids=IMAGES)
def test_images_of_any_kind_have_the_right_values_or_are_refused(content, refusal):
    if refusal is None:
        assert read_mask(content, Path("m.png"), canvas_of(20, 20), view_of(2, 2)).tolist() == [
            [False, True],
            [False, False],
        ]
    else:
        with pytest.raises(SlideError, match=f"^its mask m.png {refusal}"):
            read_mask(content, Path("m.png"), canvas_of(20, 20), view_of(2, 2))


def test_a_tiff_image_whose_0_is_white():
    """Pillow turns 8 bits round, and 16 not."""
    for bits, inverted in ((np.uint8, 255), (np.uint16, 65535)):
        stream = io.BytesIO()
        tifffile.imwrite(
            stream, np.array([[inverted, 0], [inverted, inverted]], bits), photometric="miniswhite"
        )
        if bits is np.uint8:
            assert read_mask(
                stream.getvalue(), Path("m.tif"), canvas_of(20, 20), view_of(2, 2)
            ).tolist() == [[False, True], [False, False]]
        else:
            with pytest.raises(
                SlideError,
                match=r"^its mask m.tif is a TIFF image whose 0 is white; save it as PNG",
            ):
                read_mask(stream.getvalue(), Path("m.tif"), canvas_of(20, 20), view_of(2, 2))


def test_a_jpeg_image_has_no_exact_0(tmp_path):
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:31, 13:50] = 255
    content = encoded(Image.fromarray(pixels), "JPEG", quality=60)
    assert (np.asarray(Image.open(io.BytesIO(content))) > 0).sum() > 1.05 * (pixels > 0).sum()
    assert (
        read_mask(content, Path("m.jpg"), canvas_of(640, 640), view_of(64, 64)) == (pixels > 0)
    ).mean() > 0.999


def test_bytes_that_are_none_of_a_mask(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "large.png").write_bytes(bytes(101))
    monkeypatch.setattr(masks, "MOST_BYTES", 100)
    for name, message in (
        (
            "pipe.png",
            (
                "its mask pipe.png is no regular file but a named pipe; correct the manifest's"
                " column mask, or --mask"
            ),
        ),
        ("folder.png", "its mask folder.png is no regular file but a folder; correct"),
        (
            "round.png",
            "its mask round.png cannot be read: Too many levels of symbolic links; correct",
        ),
        ("large.png", "its mask large.png has 101 bytes, more than the 100 that are read; correct"),
        ("a\0.png", "its mask a .png has a name that no file can have; correct"),
        ("none.png", "its mask none.png does not exist; correct"),
    ):
        with pytest.raises(SlideError, match=f"^{message}") as caught:
            mask_bytes(tmp_path / name)
        assert caught.value.step == "tissue"
    with pytest.raises(
        MachineError,
        match=(
            r"^its mask m.png is not there, and its folder is missing or empty; mount it; correct"
            r" the manifest's column mask"
        ),
    ):
        mask_bytes(tmp_path / "away" / "m.png")


def test_a_mask_whose_storage_fails_is_no_bad_mask(tmp_path, monkeypatch):
    (tmp_path / "m.png").write_bytes(png(6, 4))

    def fails(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdopen", fails)
    with pytest.raises(StorageError, match=r"^its mask m.png cannot be read: Input/output error$"):
        mask_bytes(tmp_path / "m.png")


def test_the_bytes_of_a_mask_are_those_of_its_digest(tmp_path):
    (tmp_path / "m.png").write_bytes(png(6, 4))
    digest = digest_of(tmp_path / "m.png")
    assert mask_bytes(tmp_path / "m.png", digest) == png(6, 4)
    (tmp_path / "m.png").write_bytes(png(6, 4, (b"tEXt", b"a\0b")))
    with pytest.raises(
        ChangedError,
        match=r"^its mask m.png changed since its digest was taken; nothing of the slide is kept",
    ):
        mask_bytes(tmp_path / "m.png", digest)


def test_polygons_are_those_of_the_bytes_that_were_digested(tmp_path):
    """The file may have changed since: it is not read again."""
    content = geojson(
        tmp_path / "m.geojson", [[[0, 0], [20, 0], [20, 10], [0, 10], [0, 0]]]
    ).read_bytes()
    (tmp_path / "m.geojson").write_text("{")
    assert read_mask(
        content, tmp_path / "m.geojson", canvas_of(40, 20), view_of(4, 2)
    ).tolist() == [[True, True, False, False], [False] * 4]
    for hostile in (
        b"[" * 100_000,
        (
            b'{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1e999, 0], [1,'
            b" 0], [1, 1], [1e999, 0]]]}}"
        ),
    ):
        with pytest.raises(SlideError, match=r"^its mask m.geojson ") as caught:
            read_mask(hostile, tmp_path / "m.geojson", canvas_of(40, 20), view_of(4, 2))
        assert caught.value.step == "tissue"
