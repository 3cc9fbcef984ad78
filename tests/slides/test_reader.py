import os
import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.errors import MachineError, SlideError
from hnm.slides import reader
from hnm.slides.raw_tiles import open_slide
from hnm.slides.reader import Box, OpenSlideReader, RegionError, files_of, finest_sufficient_level, thumbnail
from hnm.slides.storage import StorageError


def test_levels_hold_the_pixels_that_were_written(tmp_path, tiny):
    pixels = tiny.painted(200, 300, (50, 40, 120, 90, tiny.STROMA))
    with OpenSlideReader(tiny.aperio(tmp_path / "a.svs", pixels, mpp=0.25, levels=2)) as slide:
        assert (slide.vendor, slide.dimensions, slide.mpp, slide.level_downsamples) == ("aperio", (300, 200), (0.25, 0.25), (1.0, 2.0))
        assert slide.bounds == Box(0, 0, 300, 200)
        np.testing.assert_array_equal(slide.read(31, 17, 0, 70, 50), pixels[17:67, 31:101])
        np.testing.assert_array_equal(slide.read(40, 60, 1, 33, 21), tiny.halved(pixels)[30:51, 20:53])


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
                    np.testing.assert_array_equal(slide.read(x, y, 0, 32, 32), pixels[y : y + 32, x : x + 32])
                except RegionError:
                    lost.append((x, y))
    assert lost == [(64, 0), (96, 0), (64, 32), (96, 32), (128, 64), (160, 64), (128, 96), (160, 96)]


def test_the_message_of_a_damaged_tile_names_the_region_and_no_folder(tmp_path, tiny):
    with OpenSlideReader(tiny.damage(tiny.aperio(tmp_path / "d.svs", tiny.painted(128, 128)), 0)) as slide, pytest.raises(RegionError) as caught:
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
    with pytest.raises(MachineError, match=r"a.svs: Permission denied; give this user the right to it"):
        OpenSlideReader(tmp_path / "closed" / "a.svs")


def test_a_file_that_goes_away_while_open(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    with OpenSlideReader(path) as slide:
        path.unlink()
        with pytest.raises(StorageError, match=r"^a.svs or a file of it is gone since it was opened; mount its folder$"):
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
    assert sorted(files_of(tmp_path / "a.mrxs", {"openslide.vendor": "mirax"})) == ["", "Data0000.dat", "Slidedat.ini"]
    for name, series in (("level0.dcm", b"1.2.3"), ("level1.dcm", b"1.2.3"), ("stranger.dcm", b"1.2.9")):
        (tmp_path / name).write_bytes(b"DICM" + series)
    properties = {"openslide.vendor": "dicom", "dicom.SeriesInstanceUID": "1.2.3"}
    assert sorted(files_of(tmp_path / "level0.dcm", properties)) == ["", "level1.dcm"]
    (tmp_path / "h.vms").write_text("ImageFile=h_0.jpg\nMacroImage=h_macro.jpg\n")
    (tmp_path / "h_0.jpg").touch()
    (tmp_path / "unrelated.jpg").touch()
    assert sorted(files_of(tmp_path / "h.vms", {"openslide.vendor": "hamamatsu"})) == ["", "h_0.jpg"]


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
    properties = {"dicom.PhotometricInterpretation": photometric, "dicom.TransferSyntaxUID": "1.2.840.10008.1.2.4.50"}
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
    assert np.abs(at_once.pixels.astype(int) - in_blocks.pixels)[:, :80].max() <= 1  # beyond, red falls from 250 to 0


def test_a_thumbnail_is_never_finer_than_the_slide(tmp_path, tiny):
    with OpenSlideReader(tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130), mpp=10.0)) as slide:
        view = thumbnail(slide, 8.0, (10.0, 10.0))
    assert (view.mpp, view.scale, view.pixels.shape) == (10.0, (1.0, 1.0), (100, 130, 3))


def test_a_thumbnail_marks_what_cannot_be_read(tmp_path, tiny):
    path = tiny.damage(tiny.aperio(tmp_path / "d.svs", tiny.painted(256, 256, (0, 0, 256, 256, tiny.STROMA))), 5)  # x and y from 64 to 128
    with OpenSlideReader(path) as slide:
        view = thumbnail(slide, 2.0, (1.0, 1.0))
    assert view.lost[32:64, 32:64].all()
    assert view.lost.sum() < 1.6 * 32 * 32
    assert (view.pixels[view.lost] == 255).all()
    assert np.abs(view.pixels[~view.lost] - np.array(tiny.STROMA)).max() < 6


def test_jpeg_2000(tmp_path):
    y, x = np.mgrid[:128, :192]
    pixels = np.stack([x, y, (x + y) // 2], axis=2).astype(np.uint8)
    text = "Aperio Image Library v11.2.1 \r\n192x128 [0,0 192x128] (64x64) J2K/KDU Q=70|AppMag = 40|MPP = 0.25"
    tifffile.imwrite(
        tmp_path / "j.svs", pixels, tile=(64, 64), photometric="rgb", compression="aperio_jp2000_rgb", compressionargs={"level": 0}, description=text,
        metadata=None,
    )  # fmt: skip
    with open_slide(tmp_path / "j.svs") as slide:
        assert (slide.vendor, slide.mpp) == ("aperio", (0.25, 0.25))
        assert np.abs(slide.read(50, 30, 0, 100, 90).astype(int) - pixels[30:120, 50:150]).max() <= 1


def test_an_associated_thumbnail_is_not_trusted(tmp_path, tiny):
    """The file's own thumbnail shows another slide; ours shows the pyramid."""
    pixels = tiny.painted(128, 192, (64, 0, 64, 128, tiny.STROMA))
    text = "Aperio Image Library v11.2.1 \r\n192x128"
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        options = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
        file.write(pixels, tile=(64, 64), description=f"{text} [0,0 192x128] (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 1.0", **options)
        file.write(np.full((32, 48, 3), (20, 200, 20), np.uint8), rowsperstrip=16, description=f"{text} -> 48x32 - ", **options)
    with openslide.OpenSlide(tmp_path / "a.svs") as raw:
        assert set(raw.associated_images) == {"thumbnail"}
    with OpenSlideReader(tmp_path / "a.svs") as slide:
        view = thumbnail(slide, 8.0, (1.0, 1.0))
    assert view.pixels.shape == (16, 24, 3)
    assert np.abs(view.pixels[:, 9:15].astype(int) - np.array(tiny.STROMA)).max() < 8
    assert np.abs(view.pixels[:, :7].astype(int) - np.array(tiny.GLASS)).max() < 8


@pytest.mark.parametrize(("wanted", "tolerance", "level"), [(0.5, 0, 0), (1, 0, 0), (3.9, 0, 0), (4, 0, 1), (15.9, 0, 1), (15.9, 0.02, 2), (1e6, 0, 2)])
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
