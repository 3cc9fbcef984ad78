import contextlib
import os
import resource
import shutil
import socket
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.errors import MachineError, SlideError
from hnm.slides.reading import reader
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.failures import ChangedError, StorageError
from hnm.slides.reading.raw_tiles import open_slide
from hnm.slides.reading.reader import (
    OpenSlideReader,
    RegionError,
    expecting,
    files_of,
    finest_sufficient_level,
    thumbnail,
)


def test_levels_hold_the_pixels_that_were_written(tmp_path, tiny):
    pixels = tiny.painted(200, 300, (50, 40, 120, 90, tiny.STROMA))
    with OpenSlideReader(tiny.aperio(tmp_path / "a.svs", pixels, mpp=0.25, levels=2)) as slide:
        assert (slide.vendor, slide.dimensions, slide.mpp, slide.level_downsamples) == (
            "aperio",
            (300, 200),
            (0.25, 0.25),
            (1.0, 2.0),
        )
        assert slide.bounds == Box(0, 0, 300, 200)
        np.testing.assert_array_equal(slide.read(31, 17, 0, 70, 50), pixels[17:67, 31:101])
        np.testing.assert_array_equal(
            slide.read(40, 60, 1, 33, 21), tiny.halved(pixels)[30:51, 20:53]
        )


def test_what_was_not_scanned_has_the_background_colour(tmp_path, tiny):
    pixels = tiny.painted(100, 130)
    with OpenSlideReader(tiny.trestle(tmp_path / "t.tif", pixels, "e6d4c8")) as slide:
        assert slide.background == (230, 212, 200)
        region = slide.read(120, 90, 0, 20, 15)
        np.testing.assert_array_equal(region[:10, :10], pixels[90:, 120:])
        assert (region[10:] == (230, 212, 200)).all()
        assert (region[:, 10:] == (230, 212, 200)).all()
    with OpenSlideReader(tiny.aperio(tmp_path / "a.svs", pixels)) as slide:
        assert (slide.read(130, 0, 0, 5, 5) == 255).all()


def test_bounds_say_where_the_scan_lies_on_its_canvas(tmp_path, tiny):
    pixels = tiny.painted(200, 300, (50, 40, 120, 90, tiny.STROMA))
    with OpenSlideReader(tiny.leica(tmp_path / "l.scn", pixels, margin=500)) as slide:
        assert slide.dimensions == (1300, 1200)
        assert slide.bounds == Box(500, 500, 300, 200)
        view = thumbnail(slide, 10.0, (1.0, 1.0))
    assert (view.x, view.y, view.pixels.shape) == (500, 500, (20, 30, 3))
    assert np.abs(view.pixels[8, 10] - np.array(tiny.STROMA)).max() < 6


def test_a_damaged_tile_costs_only_itself(tmp_path, tiny):
    pixels = tiny.painted(200, 300)  # 5 x 4 TIFF tiles of 64 pixels
    path = tiny.damage(tiny.aperio(tmp_path / "d.svs", pixels), 1, 7)
    lost = []
    with OpenSlideReader(path) as slide:
        for y in range(0, 192, 32):
            for x in range(0, 288, 32):
                try:
                    np.testing.assert_array_equal(
                        slide.read(x, y, 0, 32, 32), pixels[y : y + 32, x : x + 32]
                    )
                except RegionError:
                    lost.append((x, y))
    assert lost == [
        (64, 0),
        (96, 0),
        (64, 32),
        (96, 32),
        (128, 64),
        (160, 64),
        (128, 96),
        (160, 96),
    ]


def test_the_message_of_a_damaged_tile_names_the_region_and_no_folder(tmp_path, tiny):
    with (
        OpenSlideReader(
            tiny.damage(tiny.aperio(tmp_path / "d.svs", tiny.painted(128, 128)), 0)
        ) as slide,
        pytest.raises(RegionError) as caught,
    ):
        slide.read(3, 5, 0, 7, 9)
    assert str(caught.value).startswith("region x=3 y=5 level=0 width=7 height=9 cannot be read: ")
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.step == "tiles"


def test_files_that_are_no_slides(tmp_path, tiny):
    (tmp_path / "text.svs").write_text("no slide")
    (tmp_path / "folder.svs").mkdir()
    whole = tiny.aperio(tmp_path / "whole.svs", tiny.painted(300, 300)).read_bytes()
    (tmp_path / "half.svs").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.svs").write_bytes(b"II*\0\x08\0\0\0")
    for name, message in (
        ("none.svs", "none.svs does not exist"),
        ("text.svs", "text.svs is no slide that OpenSlide can read"),
        ("cut.svs", "cut.svs is no slide"),
        ("folder.svs", "folder.svs is a folder; name the file of its slide, of DICOM any one"),
        ("half.svs", r"half.svs is damaged or not whole \(.*half.svs.*\); copy it again"),
    ):
        with pytest.raises(SlideError, match=message) as caught:
            OpenSlideReader(tmp_path / name)
        assert caught.value.step == "open"
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(
        MachineError, match=r"a.svs: Permission denied; give this user the right to it"
    ):
        OpenSlideReader(tmp_path / "closed" / "a.svs")


def test_a_file_that_goes_away_while_open(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    with OpenSlideReader(path) as slide:
        path.unlink()
        with pytest.raises(
            StorageError,
            match=r"^a.svs or a file of it is gone since it was opened; mount its folder$",
        ):
            slide.fingerprint()


def test_a_fingerprint_is_the_contents_and_not_the_place(tmp_path, tiny):
    def fingerprint(path: Path) -> str:
        with OpenSlideReader(path) as slide:
            return slide.fingerprint()

    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(200, 300))
    known = fingerprint(path)
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copyfile(path, tmp_path / "elsewhere" / "b.svs"))
    os.utime(moved, (1, 1))
    assert fingerprint(moved) == known
    assert fingerprint(tiny.aperio(tmp_path / "c.svs", tiny.painted(200, 300, seed=1))) != known
    longer = Path(shutil.copyfile(path, tmp_path / "longer.svs"))
    longer.write_bytes(path.read_bytes() + b"\0")
    assert fingerprint(longer) != known


def test_a_slide_of_several_files_is_all_of_them(tmp_path):
    for name in ("a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "other/Data0000.dat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(files_of(tmp_path / "a.mrxs", {"openslide.vendor": "mirax"})) == [
        "",
        "Data0000.dat",
        "Slidedat.ini",
    ]
    for name, series in (
        ("level0.dcm", b"1.2.3"),
        ("level1.dcm", b"1.2.3"),
        ("stranger.dcm", b"1.2.9"),
    ):
        (tmp_path / name).write_bytes(b"DICM" + series)
    properties = {"openslide.vendor": "dicom", "dicom.SeriesInstanceUID": "1.2.3"}
    assert sorted(files_of(tmp_path / "level0.dcm", properties)) == ["", "level1.dcm"]
    (tmp_path / "h.vms").write_text("ImageFile=h_0.jpg\nMacroImage=h_macro.jpg\n")
    (tmp_path / "h_0.jpg").touch()
    (tmp_path / "unrelated.jpg").touch()
    assert sorted(files_of(tmp_path / "h.vms", {"openslide.vendor": "hamamatsu"})) == [
        "",
        "h_0.jpg",
    ]


@pytest.mark.parametrize(
    ("photometric", "marker", "expected"),
    [
        ("RGB", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", True),
        ("YBR_FULL_422", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", False),
        ("RGB", b"\xff\xd8\xff\xdb\x00C", False),
    ],
)
def test_dicom_that_calls_jfif_frames_rgb_is_recognised(tmp_path, photometric, marker, expected):
    (tmp_path / "a.dcm").write_bytes(b"DICM header" + marker)
    properties = {
        "dicom.PhotometricInterpretation": photometric,
        "dicom.TransferSyntaxUID": "1.2.840.10008.1.2.4.50",
    }
    assert reader.is_mislabelled_ycbcr(tmp_path / "a.dcm", properties) is expected


def test_a_thumbnail_averages_areas(tmp_path, tiny):
    pixels = np.random.default_rng(3).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    with OpenSlideReader(tiny.aperio(tmp_path / "a.svs", pixels)) as slide:
        view = thumbnail(slide, 8.0, (1.0, 2.0))  # 8 x 4 level-0 pixels each
    expected = pixels.reshape(24, 4, 20, 8, 3).mean((1, 3))
    assert view.scale == (8.0, 4.0)
    assert np.abs(view.pixels - expected).max() <= 1


def test_a_thumbnail_is_the_same_whatever_the_size_of_its_reads(tmp_path, tiny, monkeypatch):
    y, x = np.mgrid[:203, :317]
    pixels = np.stack([x % 251, y, (x + 2 * y) / 4], axis=2).astype(np.uint8)
    path = tiny.aperio(tmp_path / "a.svs", pixels)
    with OpenSlideReader(path) as slide:
        at_once = thumbnail(slide, 3.0, (1.0, 1.0))
    monkeypatch.setattr(reader, "READ_PX", 51)
    with OpenSlideReader(path) as slide:
        in_blocks = thumbnail(slide, 3.0, (1.0, 1.0))
    assert (
        np.abs(at_once.pixels.astype(int) - in_blocks.pixels)[:, :80].max() <= 1
    )  # beyond, red falls from 250 to 0


def test_a_thumbnail_is_never_finer_than_the_slide(tmp_path, tiny):
    with OpenSlideReader(
        tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130), mpp=10.0)
    ) as slide:
        view = thumbnail(slide, 8.0, (10.0, 10.0))
    assert (view.mpp, view.scale, view.pixels.shape) == (10.0, (1.0, 1.0), (100, 130, 3))


def test_a_thumbnail_marks_what_cannot_be_read(tmp_path, tiny):
    path = tiny.damage(
        tiny.aperio(tmp_path / "d.svs", tiny.painted(256, 256, (0, 0, 256, 256, tiny.STROMA))), 5
    )  # x and y from 64 to 128
    with OpenSlideReader(path) as slide:
        view = thumbnail(slide, 2.0, (1.0, 1.0))
    assert view.lost[32:64, 32:64].all()
    assert view.lost.sum() < 1.6 * 32 * 32
    assert (view.pixels[view.lost] == 255).all()
    assert np.abs(view.pixels[~view.lost] - np.array(tiny.STROMA)).max() < 6


def test_jpeg_2000(tmp_path):
    y, x = np.mgrid[:128, :192]
    pixels = np.stack([x, y, (x + y) // 2], axis=2).astype(np.uint8)
    text = (
        "Aperio Image Library v11.2.1 \r\n192x128 [0,0 192x128] (64x64) J2K/KDU Q=70|AppMag ="
        " 40|MPP = 0.25"
    )
    tifffile.imwrite(
        tmp_path / "j.svs",
        pixels,
        tile=(64, 64),
        photometric="rgb",
        compression="aperio_jp2000_rgb",
        compressionargs={"level": 0},
        description=text,
        metadata=None,
    )
    with open_slide(tmp_path / "j.svs") as slide:
        assert (slide.vendor, slide.mpp) == ("aperio", (0.25, 0.25))
        assert (
            np.abs(slide.read(50, 30, 0, 100, 90).astype(int) - pixels[30:120, 50:150]).max() <= 1
        )


def test_an_associated_thumbnail_is_not_trusted(tmp_path, tiny):
    """The file's own thumbnail shows another slide; ours shows the pyramid."""
    pixels = tiny.painted(128, 192, (64, 0, 64, 128, tiny.STROMA))
    text = "Aperio Image Library v11.2.1 \r\n192x128"
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        options = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
        file.write(
            pixels,
            tile=(64, 64),
            description=f"{text} [0,0 192x128] (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 1.0",
            **options,
        )
        file.write(
            np.full((32, 48, 3), (20, 200, 20), np.uint8),
            rowsperstrip=16,
            description=f"{text} -> 48x32 - ",
            **options,
        )
    with openslide.OpenSlide(tmp_path / "a.svs") as raw:
        assert set(raw.associated_images) == {"thumbnail"}
    with OpenSlideReader(tmp_path / "a.svs") as slide:
        view = thumbnail(slide, 8.0, (1.0, 1.0))
    assert view.pixels.shape == (16, 24, 3)
    assert np.abs(view.pixels[:, 9:15].astype(int) - np.array(tiny.STROMA)).max() < 8
    assert np.abs(view.pixels[:, :7].astype(int) - np.array(tiny.GLASS)).max() < 8


@pytest.mark.parametrize(
    ("wanted", "tolerance", "level"),
    [(0.5, 0, 0), (1, 0, 0), (3.9, 0, 0), (4, 0, 1), (15.9, 0, 1), (15.9, 0.02, 2), (1e6, 0, 2)],
)
def test_the_nearest_finer_level_is_read(wanted, tolerance, level):
    assert finest_sufficient_level((1.0, 4.0, 16.0), wanted, tolerance) == level


@settings(deadline=None)
@given(st.lists(st.floats(1.1, 4), max_size=5), st.floats(0.3, 200))
def test_the_nearest_finer_level_as_a_loop(factors, wanted):
    downsamples = tuple(np.cumprod([1.0, *factors]))
    expected = 0
    for level, downsample in enumerate(downsamples):
        if downsample <= wanted:
            expected = level
    assert finest_sufficient_level(downsamples, wanted) == expected


def claiming(path: Path, tiny, width: int, height: int, tile: int = 64) -> Path:
    """A slide of a few tiles whose header claims more."""
    tiny.aperio(path, tiny.painted(128, 128))
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[0].tags
        tile_height = min(tile, max(64, height // 2))
        for name, value in (
            ("ImageWidth", width),
            ("ImageLength", height),
            ("TileWidth", tile),
            ("TileLength", tile_height),
        ):
            tags[name].overwrite(value)
    return path


@pytest.mark.parametrize(
    ("width", "height", "tile", "message"),
    [
        (
            30_000,
            30_000,
            15_008,
            (
                r"claims 30000 x 30000 pixels, but has \d+ bytes, which cannot hold them; copy it"
                r" again"
            ),
        ),
        (
            2**31 - 1,
            2**31 - 1,
            2**30,
            (
                "claims 2147483647 x 2147483647 pixels at level 0, not 1 to 4000000 along each"
                " side; copy or convert it again"
            ),
        ),
        (
            2_000_000,
            2_000_000,
            1 << 20,
            (
                "claims source tiles of 1048576 x 1000000 pixels, more than are decoded at once;"
                " convert it again"
            ),
        ),
        (2**31 - 1, 100, 1 << 30, "claims 2147483647 x 100 pixels at level 0, not 1 to 4000000"),
        (
            60_000,
            60_000,
            1 << 15,
            (
                "claims source tiles of 32768 x 30000 pixels, more than are decoded at once;"
                " convert it again"
            ),
        ),
    ],
)
def test_a_slide_that_claims_more_than_it_holds(tmp_path, tiny, width, height, tile, message):
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SlideError, match=f"^a.svs {message}") as caught:
        OpenSlideReader(claiming(tmp_path / "a.svs", tiny, width, height, tile))
    assert caught.value.step == "open"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin < 50_000  # KiB


class Claims:
    """A slide that fails where it is read, since nothing of it should be."""

    dimensions, level_downsamples, background = (3_000_000, 3_000_000), (1.0,), (255, 255, 255)
    bounds = Box(0, 0, 3_000_000, 3_000_000)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        if width * height > reader.MOST_REGION_PX:
            raise AssertionError((width, height))
        return np.full((1, 1, 3), 255, np.uint8).repeat(height, 0).repeat(width, 1)


def test_a_thumbnail_is_held_against_a_bound_before_it_is_made():
    message = (
        r"^its scan would have 93750 x 93750 pixels at 8 µm per pixel, more than the 100000000 in"
        r" which tissue is looked for; raise tissue.mpp, or give"
    )
    with pytest.raises(SlideError, match=message) as caught:
        thumbnail(Claims(), 8.0, (0.25, 0.25))
    assert caught.value.step == "tissue"


def test_a_thumbnail_from_afar_reads_no_region_that_is_too_large(monkeypatch):
    monkeypatch.setattr(reader, "MOST_REGION_PX", 1 << 18)
    monkeypatch.setattr(Claims, "bounds", Box(0, 0, 12_000, 2_000))
    view = thumbnail(Claims(), 100.0, (0.25, 0.25))  # 400 pixels of the only level for each
    assert view.pixels.shape == (5, 30, 3)
    assert not view.lost.any()


def test_a_region_that_is_too_large_is_not_read(tmp_path, tiny):
    with OpenSlideReader(tiny.aperio(tmp_path / "a.svs", tiny.painted(128, 128))) as slide:
        with pytest.raises(
            RegionError,
            match=(
                r"^region x=0 y=0 level=0 width=20000 height=20000 has more than 134217728 pixels$"
            ),
        ):
            slide.read(0, 0, 0, 20_000, 20_000)
        assert slide.read(0, 0, 0, 1, 1).shape == (1, 1, 3)


def slide_with(monkeypatch, path: Path, **properties: str | None) -> OpenSlideReader:
    """The slide at `path` with other properties of OpenSlide; None takes one away."""
    names = {f"openslide.{name.replace('__', '-')}": value for name, value in properties.items()}
    monkeypatch.setattr(
        reader,
        "_properties_of",
        lambda slide: {k: v for k, v in (dict(slide.properties) | names).items() if v is not None},
    )
    return OpenSlideReader(path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "abc", "", "1,5", None])
def test_numbers_that_are_none_are_not_stated(tmp_path, tiny, monkeypatch, value):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    with slide_with(
        monkeypatch,
        path,
        mpp__x=value,
        objective__power=value,
        bounds__x=value,
        bounds__width=value,
    ) as slide:
        assert (slide.mpp, slide.objective_power, slide.bounds) == (None, None, Box(0, 0, 130, 100))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (("10", "20", "50", "40"), Box(10, 20, 50, 40)),
        (("-10", "20", "50", "40"), Box(0, 20, 40, 40)),
        (("10", "20", "5000", "4" * 30), Box(10, 20, 120, 80)),
        (("130", "0", "50", "40"), Box(0, 0, 130, 100)),
        (("10", "20", "50", None), Box(0, 0, 130, 100)),
        (("wide", "20", "50", "40"), Box(0, 0, 130, 100)),
        (("10", None, "50", "40"), Box(0, 0, 130, 100)),
        (("0", "0", "-5", "40"), Box(0, 0, 130, 100)),
        (("0", "0", "0", "0"), Box(0, 0, 130, 100)),
    ],
)
def test_bounds_lie_on_the_canvas(tmp_path, tiny, monkeypatch, bounds, expected):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    named = dict(
        zip(("bounds__x", "bounds__y", "bounds__width", "bounds__height"), bounds, strict=True)
    )
    with slide_with(monkeypatch, path, **named) as slide:
        assert slide.bounds == expected


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ("e6d4c8", (230, 212, 200)),
        ("zz", (255, 255, 255)),
        ("FFFFFFFF", (255, 255, 255)),
        ("12 34 5", (255,) * 3),
    ],
)
def test_a_background_that_is_no_colour_is_white(tmp_path, tiny, monkeypatch, colour, expected):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    with slide_with(
        monkeypatch, path, **{"background__color": colour, "level[0].tile-height": "x"}
    ) as slide:
        assert slide.background == expected


def test_a_property_whose_name_is_not_utf_8(tmp_path, tiny):
    """Aperio's description names properties; OpenSlide hands their bytes on, and Python cannot ask
    for them.
    """
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    path.write_bytes(path.read_bytes().replace(b"AppMag = 20", b"App\xffag = 20"))
    with open_slide(path) as slide:
        assert (slide.vendor, slide.mpp) == ("aperio", (1.0, 1.0))
    with OpenSlideReader(path) as slide:
        assert (slide.objective_power, len(slide.fingerprint())) == (None, 64)


def test_a_level_without_pixels(tmp_path, tiny, monkeypatch):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    monkeypatch.setattr(openslide.OpenSlide, "level_dimensions", ((130, 100), (0, 25)))
    with pytest.raises(
        SlideError,
        match=r"^a.svs claims 0 x 25 pixels at level 1, not 1 to 4000000 along each side",
    ):
        OpenSlideReader(path)
    monkeypatch.setattr(openslide.OpenSlide, "level_dimensions", ((130, 100),))
    monkeypatch.setattr(openslide.OpenSlide, "level_downsamples", (float("inf"),))
    with pytest.raises(
        SlideError, match=r"^a.svs has levels whose scales are no numbers; convert it again"
    ):
        OpenSlideReader(path)


def test_paths_that_are_no_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "round.svs").symlink_to("round.svs")
    (tmp_path / "empty.svs").touch()
    (tmp_path / "device.svs").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(tmp_path):
        listening.bind("socket.svs")
    for name, message in (
        ("pipe.svs", "pipe.svs is no regular file but a named pipe"),
        ("device.svs", "device.svs is no regular file but a device"),
        ("socket.svs", "socket.svs is no regular file but a socket"),
        ("round.svs", "round.svs cannot be read: Too many levels of symbolic links"),
        ("empty.svs", "empty.svs is no slide that OpenSlide can read"),
        ("empty.svs/a.svs", "a.svs cannot be read: Not a directory"),
        ("a" * 300 + ".svs", "a{300}… cannot be read: File name too long"),
        ("a\0.svs", "a .svs has a name that no file can have"),
        ("a\n\x1b[2J\udcff.svs", r"a  \[2J\\xff.svs does not exist"),
    ):
        with pytest.raises(SlideError, match=f"^{message}"):
            OpenSlideReader(tmp_path / name)


def test_a_pipe_beside_a_slide_of_several_files_does_not_hang(tmp_path):
    (tmp_path / "a.mrxs").write_bytes(b"\0" * 200)
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "Slidedat.ini")
    with pytest.raises(
        SlideError,
        match=(
            r"^a.mrxs: Slidedat.ini, which lies with its files, is no regular file; take it away$"
        ),
    ):
        OpenSlideReader(tmp_path / "a.mrxs")
    (tmp_path / "no-suffix").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 100)
    os.mkfifo(tmp_path / "level1.dcm")
    with pytest.raises(
        SlideError, match=r"^no-suffix: level1.dcm, which lies with its files, is no regular file"
    ):
        OpenSlideReader(tmp_path / "no-suffix")


def test_a_name_that_is_no_utf_8_is_read_like_any_other(tmp_path, tiny):
    path = tmp_path / os.fsdecode(b"caf\xe9.svs")
    pixels = tiny.painted(128, 128)
    tiny.aperio(tmp_path / "a.svs", pixels).rename(path)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 128, 128), pixels)
    path.write_text("no slide")
    with pytest.raises(SlideError, match=r"^caf\\xe9.svs is no slide") as caught:
        OpenSlideReader(path)
    str(caught.value).encode()  # can be printed and written


def test_a_folder_that_is_missing_or_empty_is_no_fault_of_the_slide(tmp_path):
    (tmp_path / "mount").mkdir()
    for folder in ("mount", "none"):
        with pytest.raises(
            MachineError,
            match=(
                r"^a.svs is not there, and its folder is missing or empty; mount it, or correct the"
                r" path$"
            ),
        ):
            OpenSlideReader(tmp_path / folder / "a.svs")
    (tmp_path / "mount" / "b.svs").touch()
    with pytest.raises(SlideError, match=r"^a.svs does not exist$"):
        OpenSlideReader(tmp_path / "mount" / "a.svs")


def test_too_few_handles_are_no_fault_of_the_slide(tmp_path, tiny, monkeypatch):
    """OpenSlide opens a file several times, and calls one that it cannot open an unsupported
    one.
    """
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))

    def unsupported(_):
        raise openslide.OpenSlideUnsupportedFormatError

    monkeypatch.setattr(openslide, "OpenSlide", unsupported)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, limits[1]))
        with contextlib.suppress(OSError):  # those that are free below
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(4):
            os.close(taken.pop())
        with pytest.raises(
            MachineError, match=r"^a.svs: Too many open files; raise the limit of open files"
        ):
            OpenSlideReader(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for handle in taken:
            os.close(handle)


def expected(path: Path) -> OpenSlideReader:
    """The slide at `path`, whose fingerprint was just taken."""
    slide = OpenSlideReader(path)
    slide.expect(slide.fingerprint())
    return slide


CHANGED = (
    r"^a.svs changed since its fingerprint was taken, and nothing of it is kept; once it is whole,"
    r" run the same command again \(dvc repro\)"
)


def test_a_slide_that_is_replaced_written_to_or_cut_short_while_it_is_open(tmp_path, tiny):
    path = tmp_path / "a.svs"

    def replaced() -> None:
        tiny.aperio(tmp_path / "b.svs", tiny.painted(128, 128, seed=1)).replace(path)

    def written_in_the_middle() -> None:
        with tifffile.TiffFile(path) as file:
            last = file.pages[0].dataoffsets[-1]
        assert last > reader.HEAD_BYTES
        with path.open("r+b") as stream:
            stream.seek(last + 20)
            stream.write(b"\0")

    def cut_short() -> None:
        os.truncate(path, 100)

    for change in (replaced, written_in_the_middle, cut_short, path.touch):
        with expected(tiny.aperio(path, tiny.painted(500, 500), levels=2)) as slide:
            slide.check_unchanged()
            change()
            with pytest.raises(ChangedError, match=CHANGED):
                slide.check_unchanged()
    with expected(tiny.aperio(path, tiny.painted(128, 128))) as slide:
        with pytest.raises(ChangedError, match=CHANGED):
            slide.expect("another")
        path.unlink()
        with pytest.raises(MachineError, match=r"^a.svs "):
            slide.check_unchanged()


def test_a_file_of_a_slide_of_several_that_changes_or_vanishes(tmp_path, tiny, monkeypatch):
    """As the levels of a DICOM series, of which each is a file."""
    path, level = tiny.aperio(tmp_path / "a.svs", tiny.painted(128, 128)), tmp_path / "level1.dcm"
    monkeypatch.setattr(
        reader,
        "files_of",
        lambda path, _: {"": path} | ({"level1.dcm": level} if level.exists() else {}),
    )
    for change in (lambda: level.write_bytes(b"changed"), level.unlink):
        level.write_bytes(b"level 1")
        with expected(path) as slide:
            slide.check_unchanged()
            change()
            with pytest.raises(ChangedError, match=CHANGED):
                slide.check_unchanged()


def test_a_slide_is_called_bad_only_where_it_is_the_one_that_was_meant(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(128, 128))
    with OpenSlideReader(path) as slide:
        fingerprint = slide.fingerprint()
    with pytest.raises(SlideError, match=r"^blank$"), expecting(path, fingerprint):
        raise SlideError("blank")
    for content in (
        tiny.aperio(tmp_path / "b.svs", tiny.painted(128, 128, seed=1)).read_bytes(),
        b"no slide",
    ):
        path.write_bytes(content)
        with pytest.raises(ChangedError, match=CHANGED), expecting(path, fingerprint):
            raise SlideError("blank")


def test_slides_without_a_quickhash_are_told_apart(tmp_path):
    """Of one level of 9 MB, uncompressed: size and header are the same, and OpenSlide hashes
    nothing.
    """
    fingerprints = []
    for value in (0, 1):
        pixels = np.full((1536, 2048, 3), 240, np.uint8)
        pixels[1000:1200, 900:1100] = 100 + value
        tifffile.imwrite(
            tmp_path / f"{value}.tif", pixels, tile=(512, 512), photometric="rgb", metadata=None
        )
        with OpenSlideReader(tmp_path / f"{value}.tif") as slide:
            assert reader.QUICKHASH not in slide._properties
            fingerprints.append(slide.fingerprint())
    assert fingerprints[0] != fingerprints[1]


def test_pixels_that_change_in_place_are_noticed_behind_a_quickhash_too(tmp_path):
    """The quickhash of a pyramid is of its coarsest level; here a sixth of the finest changes, and
    nothing else.
    """
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(90, 200, (1536, 2048, 3), np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(512, 512), photometric="rgb", metadata=None)
        file.write(
            pixels[::4, ::4], tile=(128, 128), photometric="rgb", metadata=None, subfiletype=1
        )
    fingerprints = []
    for _ in range(2):
        with OpenSlideReader(path) as slide:
            assert reader.QUICKHASH in slide._properties and len(slide.level_downsamples) == 2
            fingerprints.append(slide.fingerprint())
        with path.open("r+b") as file:
            file.seek(4_000_000)
            file.write(bytes(1_600_000))
    assert fingerprints[0] != fingerprints[1]
