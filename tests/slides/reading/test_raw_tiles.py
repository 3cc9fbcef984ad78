import os
import shutil

import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from hnm.slides.reading.failures import ChangedError
from hnm.slides.reading.raw_tiles import RawTileReader, levels_of, open_slide
from hnm.slides.reading.reader import OpenSlideReader, cache_bytes
from hnm.slides.reading.slide import RegionError

WIDTH, HEIGHT = 304, 208  # 5 x 4 TIFF tiles of 64 pixels, the last of each row and column cut off


def texture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Colours with edges in all three channels, so that a change of colour space or of chroma's
    filter shows.
    """
    y, x = np.mgrid[:height, :width]
    smooth = np.stack(
        [128 + 90 * np.sin(x / 7), 128 + 90 * np.cos(y / 5), (2 * x + y) % 256], axis=2
    )
    return (
        (smooth + np.random.default_rng(2).normal(0, 12, smooth.shape))
        .clip(0, 255)
        .astype(np.uint8)
    )


def write(path, pixels, *, vendor="aperio", levels=1, **options):
    """A slide of JPEG tiles; each level has half the side of the one before."""
    options = {
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 80},
        "tile": (64, 64),
    } | options
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            text = (
                "Aperio Image Library v11.2.1 \r\n1x1 [0,0 1x1] (64x64) JPEG/RGB Q=80"
                if vendor == "aperio"
                else None
            )
            file.write(
                pixels[:: 2**level, :: 2**level],
                description=text,
                metadata=None,
                subfiletype=1 if level else 0,
                **options,
            )
    return path


def with_common_tables(path):
    """Moves the quantisation and Huffman tables of all tiles into the page's JPEGTables, as
    scanners write them.
    """
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        pixels = page.asarray()
        tiles = [
            file.filehandle.read_array("u1", count, offset=offset).tobytes()
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    tables = b"".join(segment for marker, segment in segments(tiles[0]) if marker in {0xDB, 0xC4})
    short = [
        b"\xff\xd8"
        + b"".join(segment for marker, segment in segments(tile) if marker not in {0xDB, 0xC4})
        for tile in tiles
    ]
    assert all(
        b"".join(s for m, s in segments(tile) if m in {0xDB, 0xC4}) == tables for tile in tiles
    )
    whole = b"\xff\xd8" + tables + b"\xff\xd9"
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter(short),
            shape=pixels.shape,
            dtype=np.uint8,
            tile=(64, 64),
            photometric="ycbcr",
            compression="jpeg",
            subsampling=(2, 2),
            jpegtables=whole,
            metadata=None,
        )
    return path


def segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """The segments after the start of image; the last holds the scan and all that follows."""
    parts = []
    at = 2
    while jpeg[at + 1] != 0xDA:
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        parts.append((jpeg[at + 1], jpeg[at : at + length]))
        at += length
    return [*parts, (0xDA, jpeg[at:])]


PLAIN_RGB = {"level": 80, "outcolorspace": "rgb"}  # else tifffile writes YCbCr
KINDS = {
    "aperio in RGB": {"compressionargs": PLAIN_RGB},
    "generic in RGB": {"vendor": "generic", "compressionargs": PLAIN_RGB},
    "aperio in YCbCr": {"photometric": "ycbcr"},
    "generic in YCbCr, chroma halved": {
        "vendor": "generic",
        "photometric": "ycbcr",
        "subsampling": (2, 2),
    },
    "aperio in YCbCr, chroma halved along x": {"photometric": "ycbcr", "subsampling": (2, 1)},
    "generic with three levels": {
        "vendor": "generic",
        "photometric": "ycbcr",
        "subsampling": (2, 2),
        "levels": 3,
    },
    "oblong tiles": {"tile": (32, 96)},
}


@pytest.fixture(scope="module", params=KINDS)
def slide(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("raw") / "a.tif", texture(), **KINDS[request.param])


def test_both_colour_spaces_are_tried(tmp_path):
    for number, (kind, photometric) in enumerate(
        {"aperio in RGB": 2, "aperio in YCbCr": 6}.items()
    ):
        with tifffile.TiffFile(write(tmp_path / f"{number}.svs", texture(), **KINDS[kind])) as file:
            assert file.pages[0].photometric == photometric


def test_every_region_has_the_bytes_that_openslide_reads(slide):
    """Within one tile, across tiles, over each edge, outside, and at every pixel of a level between
    those of level 0.
    """
    with OpenSlideReader(slide) as authority, open_slide(slide) as raw:
        assert isinstance(raw, RawTileReader)
        assert (raw.dimensions, raw.bounds) == (
            authority.dimensions,
            authority.bounds,
        )
        regions = [
            (3, 5, 20, 30),
            (40, 50, 70, 90),
            (0, 0, WIDTH, HEIGHT),
            (290, 190, 40, 50),
            (-9, -12, 40, 50),
            (500, 20, 10, 10),
            (-40, -40, 15, 20),
        ]
        for level, downsample in enumerate(raw.level_downsamples):
            for x, y, width, height in [*regions, (1, 3, 50, 40), (2, 2, 50, 40)]:
                region = raw.read(x, y, level, width, height)
                np.testing.assert_array_equal(
                    region,
                    authority.read(x, y, level, width, height),
                    err_msg=f"{level=} {downsample=} {x=} {y=}",
                )
                assert region.shape == (height, width, 3)


def test_tables_that_stand_once_for_all_tiles(tmp_path):
    path = write(
        tmp_path / "a.tif", texture(), vendor="generic", photometric="ycbcr", subsampling=(2, 2)
    )
    with open_slide(path) as slide:
        expected = slide.read(0, 0, 0, WIDTH, HEIGHT)
    size = path.stat().st_size
    with_common_tables(path)
    assert path.stat().st_size < size
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].jpegtables
    with open_slide(path) as slide:
        assert isinstance(slide, RawTileReader)
        np.testing.assert_array_equal(slide.read(0, 0, 0, WIDTH, HEIGHT), expected)


@given(
    x=st.integers(-80, 340),
    y=st.integers(-80, 250),
    width=st.integers(1, 150),
    height=st.integers(1, 150),
)
def test_any_region(shared_slide, x, y, width, height):
    authority, raw = shared_slide
    np.testing.assert_array_equal(
        raw.read(x, y, 0, width, height), authority.read(x, y, 0, width, height)
    )


@pytest.fixture(scope="module")
def shared_slide(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("any") / "a.svs", texture())
    with OpenSlideReader(path) as authority, open_slide(path) as raw:
        assert isinstance(raw, RawTileReader)
        yield authority, raw


def test_few_decoded_tiles_give_the_same_pixels(tmp_path, monkeypatch):
    path = write(tmp_path / "a.svs", texture())
    with open_slide(path) as slide:
        expected = slide.read(0, 0, 0, WIDTH, HEIGHT)
    monkeypatch.setattr("hnm.slides.reading.reader.MOST_CACHE_BYTES", 1)
    with open_slide(path) as slide:
        for _ in range(2):
            np.testing.assert_array_equal(slide.read(0, 0, 0, WIDTH, HEIGHT), expected)
        assert slide._tile.cache_info().currsize == 4


def test_a_grid_row_by_row_decodes_each_source_tile_once(tmp_path, monkeypatch):
    monkeypatch.setattr("hnm.slides.reading.reader.LEAST_CACHE_BYTES", 1)
    decoded = []
    for most in (10**9, 5 * 3 * 64 * 64):  # room for two rows of 5 source tiles; for one row
        monkeypatch.setattr("hnm.slides.reading.reader.MOST_CACHE_BYTES", most)
        with open_slide(write(tmp_path / f"{most}.svs", texture())) as slide:
            slide._tile.cache_clear()
            for y in range(0, 180, 60):
                for x in range(0, 300, 60):
                    slide.read(x, y, 0, 60, 60)
            decoded.append(slide._tile.cache_info().misses)
    assert decoded[0] == 5 * 3 < decoded[1]


def test_what_is_kept_is_two_rows_of_source_tiles_within_bounds():
    mib = 1 << 20
    assert [cache_bytes(row) for row in (1, 16 * mib, 64 * mib, 200 * mib)] == [
        32 * mib,
        36 * mib,
        144 * mib,
        256 * mib,
    ]


@pytest.mark.parametrize("compression", ["deflate", "lzw", None])
def test_other_tiles_than_jpeg_are_openslide_s(tmp_path, compression):
    path = write(tmp_path / "a.svs", texture(), compression=compression, compressionargs=None)
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideReader)
        np.testing.assert_array_equal(slide.read(10, 20, 0, 100, 50), texture()[20:70, 10:110])


def test_a_format_of_another_layout_is_openslide_s(tmp_path, tiny):
    with open_slide(tiny.leica(tmp_path / "l.scn", tiny.painted(200, 300), margin=500)) as slide:
        assert isinstance(slide, OpenSlideReader)


def test_pixels_that_differ_are_openslide_s(tmp_path):
    """The tiles are JFIF, which is YCbCr, but the page says RGB: decoders believe the tile,
    OpenSlide believes the page.
    """
    path = write(tmp_path / "a.svs", texture(), photometric="ycbcr")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(2)
    with OpenSlideReader(path) as authority, path.open("rb") as file, open_slide(path) as slide:
        levels = levels_of(file, authority)
        assert list(levels) == [0]
        assert isinstance(slide, OpenSlideReader)
        with RawTileReader(path, file, authority, levels) as raw:
            assert not raw.agrees()
            assert (
                np.abs(raw.read(0, 0, 0, 64, 64).astype(int) - slide.read(0, 0, 0, 64, 64)).mean()
                > 20
            )


def test_a_tile_that_was_left_out_is_openslide_s(tmp_path):
    path = write(tmp_path / "a.svs", texture())
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideReader)


def test_a_damaged_tile_costs_only_itself(tmp_path, tiny):
    path = tiny.damage(write(tmp_path / "a.svs", texture()), 2)
    with open_slide(path) as slide:
        assert isinstance(slide, RawTileReader)
        with pytest.raises(
            RegionError, match=r"region x=131 y=5 level=0 width=7 height=9 cannot be read: "
        ):
            slide.read(131, 5, 0, 7, 9)
        with OpenSlideReader(path) as authority:
            np.testing.assert_array_equal(
                slide.read(40, 0, 0, 88, 60), authority.read(40, 0, 0, 88, 60)
            )


def test_a_file_that_openslide_knows_and_tifffile_does_not_is_openslide_s(tmp_path, monkeypatch):
    path = write(tmp_path / "a.svs", texture())

    def refused(path):
        raise tifffile.TiffFileError("not a TIFF file")

    monkeypatch.setattr(tifffile, "TiffFile", refused)
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideReader)


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("loop"),
        MemoryError(),
        KeyError(7),
        ZeroDivisionError(),
        AttributeError("x"),
        OverflowError(),
        AssertionError(),
    ],
)
def test_whatever_tifffile_raises_openslide_reads_the_slide(tmp_path, monkeypatch, error):
    path = write(tmp_path / "a.svs", texture())

    def refused(path):
        raise error

    monkeypatch.setattr(tifffile, "TiffFile", refused)
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideReader)


def test_a_tile_of_another_size_is_known_before_it_is_decoded(tmp_path, monkeypatch):
    """Its first tile is replaced by one of 16 x 16 pixels, and by one whose header claims 65,500 x
    65,500.
    """
    path = write(tmp_path / "a.svs", texture())
    small = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    at = small.index(b"\xff\xc0") + 5
    huge = small[:at] + (65_500).to_bytes(2, "big") * 2 + small[at + 4 :]
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    assert len(small) <= count
    for tile in (small, huge):
        with path.open("r+b") as stream:
            stream.seek(offset)
            stream.write(tile)
        with (
            OpenSlideReader(path) as authority,
            path.open("rb") as file,
            RawTileReader(path, file, authority, levels_of(file, authority)) as raw,
        ):
            monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
            with pytest.raises(
                ValueError, match=r"^tile 0 of level 0 has \((16, 16|65500, 65500)\) pixels$"
            ):
                raw._decoded(0, 0)
            monkeypatch.undo()


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("TileByteCounts", lambda counts: [2**31, *counts[1:]]),
        ("TileOffsets", lambda offsets: [*offsets[:6], 2**31, *offsets[7:]]),
    ],
)
def test_tiles_that_are_said_to_lie_outside_of_the_file_are_openslide_s(tmp_path, tag, values):
    path = write(
        tmp_path / "a.svs", texture(), levels=2
    )  # the tiles of the last are part of OpenSlide's quickhash
    with tifffile.TiffFile(path, mode="r+b") as file:
        entry = file.pages[0].tags[tag]
        entry.overwrite(values(list(entry.value)))
    with OpenSlideReader(path) as authority, path.open("rb") as file:
        assert levels_of(file, authority) == {}


def test_pixels_come_from_the_file_that_is_at_the_path(tmp_path):
    """Two files of one content: what was opened and replaced is another file, even where
    fingerprints are equal.
    """
    path = write(tmp_path / "a.svs", texture())
    copy = shutil.copy2(path, tmp_path / "b.svs")
    with OpenSlideReader(path) as slide:
        fingerprint = slide.fingerprint()
    with open_slide(path, fingerprint) as slide:
        assert isinstance(slide, RawTileReader)
        slide.check_unchanged()
        os.replace(copy, path)  # noqa: PTH105
        with pytest.raises(ChangedError, match=r"^a.svs changed since its fingerprint was taken"):
            slide.check_unchanged()
    with pytest.raises(ChangedError, match=r"^a.svs changed"), open_slide(path, "another"):
        pass
