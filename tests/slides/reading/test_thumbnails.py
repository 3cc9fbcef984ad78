import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.errors import SlideError
from hnm.slides.reading import thumbnails
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.reading.thumbnails import coarsest_sufficient_level, thumbnail


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
    monkeypatch.setattr(thumbnails, "READ_PX", 51)
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
    assert coarsest_sufficient_level((1.0, 4.0, 16.0), wanted, tolerance) == level


@settings(deadline=None)
@given(st.lists(st.floats(1.1, 4), max_size=5), st.floats(0.3, 200))
def test_the_nearest_finer_level_as_a_loop(factors, wanted):
    downsamples = tuple(np.cumprod([1.0, *factors]))
    expected = 0
    for level, downsample in enumerate(downsamples):
        if downsample <= wanted:
            expected = level
    assert coarsest_sufficient_level(downsamples, wanted) == expected


class Claims:
    """A slide that fails where it is read, since nothing of it should be."""

    dimensions, level_downsamples, background = (3_000_000, 3_000_000), (1.0,), (255, 255, 255)
    bounds = Box(0, 0, 3_000_000, 3_000_000)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        if width * height > thumbnails.MOST_REGION_PX:
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
    monkeypatch.setattr(thumbnails, "MOST_REGION_PX", 1 << 18)
    monkeypatch.setattr(Claims, "bounds", Box(0, 0, 12_000, 2_000))
    view = thumbnail(Claims(), 100.0, (0.25, 0.25))  # 400 pixels of the only level for each
    assert view.pixels.shape == (5, 30, 3)
    assert not view.lost.any()
