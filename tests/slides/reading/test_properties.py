from pathlib import Path

import pytest

from hnm.slides.reading import reader
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.raw_tiles import open_slide
from hnm.slides.reading.reader import OpenSlideReader


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
