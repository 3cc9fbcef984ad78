import contextlib
import os
import resource
import socket
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from hnm.errors import MachineError, SlideError
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.failures import ChangedError
from hnm.slides.reading.raw_tiles import open_slide
from hnm.slides.reading.reader import OpenSlideReader, expecting
from hnm.slides.reading.slide import RegionError
from hnm.slides.reading.slide_files import HEAD_BYTES
from hnm.slides.reading.thumbnails import thumbnail


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
        assert last > HEAD_BYTES
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
