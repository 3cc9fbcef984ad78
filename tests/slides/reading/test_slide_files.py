import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from hnm.errors import SlideError
from hnm.slides.reading import slide_files
from hnm.slides.reading.failures import ChangedError, StorageError
from hnm.slides.reading.properties import QUICKHASH
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.reading.slide_files import files_of, is_mislabelled_ycbcr


def test_a_fingerprint_is_the_contents_and_not_the_place(tmp_path, tiny):
    def fingerprint(path: Path) -> str:
        with OpenSlideReader(path) as slide:
            return slide.fingerprint()

    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(200, 300))
    original = fingerprint(path)
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copyfile(path, tmp_path / "elsewhere" / "b.svs"))
    os.utime(moved, (1, 1))
    assert fingerprint(moved) == original
    assert fingerprint(tiny.aperio(tmp_path / "c.svs", tiny.painted(200, 300, seed=1))) != original
    longer = Path(shutil.copyfile(path, tmp_path / "longer.svs"))
    longer.write_bytes(path.read_bytes() + b"\0")
    assert fingerprint(longer) != original


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
    assert is_mislabelled_ycbcr(tmp_path / "a.dcm", properties) is expected


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


def test_a_file_of_a_slide_of_several_that_changes_or_vanishes(tmp_path, tiny, monkeypatch):
    """As the levels of a DICOM series, of which each is a file."""
    path, level = tiny.aperio(tmp_path / "a.svs", tiny.painted(128, 128)), tmp_path / "level1.dcm"
    monkeypatch.setattr(
        slide_files,
        "files_of",
        lambda path, _: {"": path} | ({"level1.dcm": level} if level.exists() else {}),
    )
    for change in (lambda: level.write_bytes(b"changed"), level.unlink):
        level.write_bytes(b"level 1")
        with OpenSlideReader(path) as slide:
            slide.expect(slide.fingerprint())
            slide.check_unchanged()
            change()
            with pytest.raises(
                ChangedError, match=r"^a.svs changed since its fingerprint was taken, and nothing"
            ):
                slide.check_unchanged()


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
            assert QUICKHASH not in slide._properties
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
            assert QUICKHASH in slide._properties and len(slide.level_downsamples) == 2
            fingerprints.append(slide.fingerprint())
        with path.open("r+b") as file:
            file.seek(4_000_000)
            file.write(bytes(1_600_000))
    assert fingerprints[0] != fingerprints[1]


def test_a_file_that_goes_away_while_open(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(100, 130))
    with OpenSlideReader(path) as slide:
        path.unlink()
        with pytest.raises(
            StorageError,
            match=r"^a.svs or a file of it is gone since it was opened; mount its folder$",
        ):
            slide.fingerprint()
