import errno
import os
from pathlib import Path

import openslide
import pytest

from hnm.errors import HnmError, MachineError, SlideError
from hnm.params import Tiles, Tissue
from hnm.slides.cutting.cut import Cutting, Layout, cut
from hnm.slides.cutting.pack import Pack
from hnm.slides.reading import failures as storage
from hnm.slides.reading.failures import StorageError, patiently
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.reading.slide import RegionError
from hnm.slides.workers import each


@pytest.fixture
def slept(monkeypatch):
    """Seconds that were waited, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", seconds.append)
    return seconds


class Failing:
    """Fails as the given errors say, one a call, then gives the job back."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, job: str) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return job


def fault(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def test_storage_that_fails_twice(slept):
    assert (
        patiently(Failing(fault(errno.ESTALE), StorageError("a.svs cannot be read")), "job")
        == "job"
    )
    assert slept == [1.0, 4.0]


def test_storage_that_does_not_come_back(slept):
    with pytest.raises(
        StorageError, match=r"^its storage failed: Stale file handle; tried 4 times$"
    ):
        patiently(Failing(*(fault(errno.ESTALE) for _ in range(4))), "job")
    with pytest.raises(
        StorageError, match=r"^a.svs cannot be read: Input/output error; tried 4 times$"
    ):
        patiently(
            Failing(*(StorageError("a.svs cannot be read: Input/output error") for _ in range(4))),
            "job",
        )
    assert slept == [1.0, 4.0, 16.0] * 2


@pytest.mark.parametrize(
    "error",
    [
        fault(errno.ENOSPC),
        fault(errno.EACCES),
        FileNotFoundError(errno.ENOENT, "x"),
        SlideError("no tissue"),
        ValueError("x"),
    ],
)
def test_other_errors_are_not_tried_again(slept, error):
    with pytest.raises(type(error)) as caught:
        patiently(Failing(error), "job")
    assert caught.value is error
    assert slept == []


def fails_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        raise fault(errno.EIO)
    return path.name


def test_a_worker_is_patient(tmp_path):
    assert list(each(fails_once, [tmp_path / "a"], seconds=60, step="tiles")) == [
        (tmp_path / "a", "a")
    ]


def test_a_slide_whose_folder_vanishes_for_a_moment(tmp_path, tiny, monkeypatch):
    path = tiny.aperio(
        tmp_path / "mount" / "a.svs", tiny.painted(128, 128, (0, 0, 128, 128, tiny.STROMA))
    )
    tissue, tiles = Tissue(mpp=8.0, min_area_um2=1000.0), Tiles(mpp=1.0, tile_px=32, min_tissue=0.5)
    with OpenSlideReader(path) as slide:
        layout = Layout("a", str(path), (1.0, 1.0), slide.fingerprint(), None, "", tissue, tiles)
    cutting = Cutting(layout, tmp_path / "a.h5")
    (tmp_path / "mount").rename(tmp_path / "away")
    with pytest.raises(
        StorageError,
        match=(
            r"^a.svs is gone since the cohort was checked; mount its folder, or run again"
            r" without it$"
        ),
    ):
        cut(cutting)
    monkeypatch.setattr(
        storage.time,
        "sleep",
        lambda seconds: seconds == 4.0 and (tmp_path / "away").rename(tmp_path / "mount"),
    )
    patiently(cut, cutting)
    pack = Pack(tmp_path / "a.h5")
    assert len(pack) == 16


def test_a_slide_that_goes_away_while_it_is_read(tmp_path, tiny):
    path = tiny.damage(tiny.aperio(tmp_path / "a.svs", tiny.painted(128, 128)), 0)
    with OpenSlideReader(path) as slide:
        path.unlink()
        with pytest.raises(
            StorageError,
            match=(
                r"^a.svs is not there, and its folder is missing or empty; mount it, or correct the"
                r" path$"
            ),
        ):
            slide.read(0, 0, 0, 10, 10)
        (tmp_path / "b.svs").touch()
        with pytest.raises(StorageError, match=r"^a.svs does not exist$"):
            slide.read(0, 0, 0, 10, 10)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Couldn't open /x/a.svs: Stale file handle", StorageError),
        ("I/O error reading file /x/a.svs", StorageError),
        ("Couldn't open /x/a.svs: Too many open files", MachineError),
        ("Couldn't open /x/a.svs: Permission denied", MachineError),
        ("TIFFRGBAImageGet failed", RegionError),
    ],
)
def test_openslide_s_words_for_storage(tmp_path, tiny, monkeypatch, words, kind):
    def refused(*_):
        raise openslide.OpenSlideError(words)

    with OpenSlideReader(tiny.aperio(tmp_path / "a.svs", tiny.painted(128, 128))) as slide:
        monkeypatch.setattr(openslide.OpenSlide, "read_region", refused)
        with pytest.raises(HnmError) as caught:
            slide.read(0, 0, 0, 10, 10)
    assert type(caught.value) is kind


def test_a_stale_handle_when_opening(tmp_path, monkeypatch):
    def stale(self):
        raise fault(errno.ESTALE)

    monkeypatch.setattr(Path, "stat", stale)
    with pytest.raises(StorageError, match=r"^a.svs cannot be read: Stale file handle$"):
        OpenSlideReader(tmp_path / "a.svs")
