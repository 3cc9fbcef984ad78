"""What people draw lies where they drew it, whatever it counts from, on a slide of each vendor that
has bounds.

The oracle is the slide itself: a rectangle of stroma at a known place of the scan, read by
OpenSlide.
"""

import json
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from PIL import Image

from hnm.errors import CohortError, SlideError
from hnm.files import digest_of
from hnm.params import Tiles, Tissue
from hnm.slides.annotations import check_inside, drawn_in
from hnm.slides.cutting.cut import Cutting, Layout, cut, layouts_of
from hnm.slides.cutting.masks import Placement, covered_box, placement_of
from hnm.slides.cutting.pack import Pack
from hnm.slides.reading.canvas import Box, Canvas, canvases_of
from hnm.slides.reading.reader import OpenSlideReader
from hnm.tables import SLIDES

LEFT, TOP, WIDTH, HEIGHT = 64, 96, 128, 64
"""The stroma, in pixels of the scan, which is 320 x 256."""
CORNERS = {"leica": (500, 500), "mirax": (128, 64)}
"""Where the scan begins on level 0, by how the slides are made."""
RING = [
    (LEFT, TOP),
    (LEFT + WIDTH, TOP),
    (LEFT + WIDTH, TOP + HEIGHT),
    (LEFT, TOP + HEIGHT),
    (LEFT, TOP),
]
QUPATH_ID = "6c1f9a52-5a0e-4e0f-9a3f-0d1c2b3a4f5e"


@pytest.fixture(params=["leica", "mirax"])
def slide(request, tmp_path, tiny) -> Path:
    pixels = tiny.painted(256, 320, (LEFT, TOP, WIDTH, HEIGHT, tiny.STROMA))
    if request.param == "leica":
        return tiny.leica(tmp_path / "leica.scn", pixels, margin=500)
    return tiny.mirax(tmp_path / "mirax.mrxs", pixels, before=(2, 1))


def canvas_of(slide: Path, origin: str = "auto") -> Canvas:
    with OpenSlideReader(slide) as opened:
        return Canvas(*opened.dimensions, opened.bounds, origin)


def geojson(
    corner: tuple[int, int] = (0, 0),
    collection: dict | None = None,
    identifier: str | None = None,
    **properties: object,
) -> bytes:
    """The stroma as a polygon, in pixels of the scan moved by `corner`."""
    ring = [[x + corner[0], y + corner[1]] for x, y in RING]
    feature = {
        "type": "Feature",
        **({"id": identifier} if identifier else {}),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": "tumour"},
            **properties,
        },
    }
    return json.dumps(
        {"type": "FeatureCollection", "features": [feature], **(collection or {})}
    ).encode()


def drawn_bounds(content: bytes, canvas: Canvas) -> tuple[tuple[float, ...], str]:
    drawn = drawn_in(content, "annotation a", canvas, named=True)
    return drawn.regions[0].geometry.bounds, drawn.by


def test_the_bounds_are_those_that_openslide_states_and_qupath_counts_from(slide):
    with openslide.OpenSlide(slide) as opened:
        stated = tuple(
            int(opened.properties[f"openslide.bounds-{side}"])
            for side in ("x", "y", "width", "height")
        )
    canvas = canvas_of(slide)
    assert stated == (*CORNERS[slide.stem], 320, 256)
    assert canvas.bounds == Box(*stated)
    assert canvas.is_offset
    assert (canvas.corner("bounds"), canvas.corner("level_0")) == (CORNERS[slide.stem], (0, 0))


def test_slides_without_bounds_have_one_origin(tmp_path, tiny):
    canvas = canvas_of(tiny.aperio(tmp_path / "a.svs", tiny.painted(80, 100)))
    assert (canvas, canvas.is_offset) == (Canvas(100, 80, Box(0, 0, 100, 80)), False)
    assert drawn_bounds(geojson(identifier=QUPATH_ID), canvas)[1] == "shape"


@pytest.mark.parametrize(
    ("counts", "how", "param", "by"),
    [
        ("level_0", {"collection": {"hnm_origin": "level_0"}}, "bounds", "file"),
        ("bounds", {"collection": {"hnm_origin": "bounds"}}, "level_0", "file"),
        ("bounds", {"metadata": {"hnm_origin": "bounds", "note": "1"}}, "level_0", "file"),
        ("bounds", {"metadata": {"hnm_origin": "bounds"}, "identifier": QUPATH_ID}, "auto", "file"),
        ("bounds", {}, "bounds", "param"),
        ("level_0", {}, "level_0", "param"),
        ("level_0", {"identifier": QUPATH_ID}, "level_0", "param"),
        ("bounds", {"identifier": QUPATH_ID}, "auto", "qupath"),
        ("bounds", {"identifier": "PathAnnotationObject", "objectType": None}, "auto", "qupath"),
        ("level_0", {"identifier": QUPATH_ID, "objectType": "tile"}, "auto", "nothing"),
        ("level_0", {"identifier": "7"}, "auto", "nothing"),
        ("level_0", {}, "auto", "nothing"),
    ],
)
def test_a_region_lies_on_what_was_drawn(slide, tiny, counts, how, param, by):
    corner = CORNERS[slide.stem]
    canvas = canvas_of(slide, param)
    (left, top, right, bottom), decided = drawn_bounds(
        geojson(corner if counts == "level_0" else (0, 0), **how), canvas
    )
    assert decided == by
    with openslide.OpenSlide(slide) as opened:
        inside = np.asarray(
            opened.read_region(
                (int(left), int(top)), 0, (int(right - left), int(bottom - top))
            ).convert("RGB"),
            int,
        )
        beside = np.asarray(
            opened.read_region((int(left) - 8, int(top) - 8), 0, (6, 6)).convert("RGB"), int
        )
    assert np.abs(inside[2:-2, 2:-2] - np.array(tiny.STROMA)).max() < 20  # Leica's tiles are JPEG
    assert beside[:4, :4].min() > 200


def test_a_curve_is_the_same_to_the_last_bit_from_either_origin(slide):
    """A polygon that crosses itself is mended; it comes out alike, because it is moved before
    anything is computed of it.
    """
    corners = np.random.default_rng(3).integers(1, 250, (40, 2))
    regions = []
    for origin, corner in (("level_0", CORNERS[slide.stem]), ("bounds", (0, 0))):
        feature = {
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    [[int(x) + corner[0], int(y) + corner[1]] for x, y in [*corners, corners[0]]]
                ],
            },
            "properties": {"classification": {"name": "a"}},
        }
        content = json.dumps(
            {"type": "FeatureCollection", "hnm_origin": origin, "features": [feature]}
        ).encode()
        regions.append(drawn_in(content, "a", canvas_of(slide), named=True).regions[0].geometry)
    assert regions[0].wkb == regions[1].wkb


@pytest.mark.parametrize("value", ["level0", "", 3, ["bounds"], {"x": 1}])
def test_an_origin_that_is_none_is_refused(slide, value):
    with pytest.raises(
        CohortError,
        match=r"annotation a has hnm_origin=.*, which is none of level_0, bounds; correct it",
    ):
        drawn_bounds(geojson(collection={"hnm_origin": value}), canvas_of(slide))


def test_a_file_that_says_two_things_is_refused(slide):
    with pytest.raises(
        CohortError,
        match="holds features that count from level_0, and others that count from bounds",
    ):
        drawn_bounds(
            geojson(collection={"hnm_origin": "level_0"}, metadata={"hnm_origin": "bounds"}),
            canvas_of(slide),
        )


def test_what_lies_outside_of_the_scan_is_told_with_its_distance_and_its_cure():
    """A scan at x 400 to 700, y 500 to 700: the stroma at x 64 to 192, y 96 to 160 ends 340 pixels
    above it, and 208 to its left.
    """
    canvas = Canvas(1000, 900, Box(400, 500, 300, 200))
    drawn = drawn_in(geojson(), "annotation a", canvas, named=True)
    with pytest.raises(CohortError) as caught:
        check_inside(drawn, canvas, "annotation a", "slide s")
    assert (
        str(caught.value)
        == "annotation a, feature 1 (tumour) lies at x 64 to 192, y 96 to 160, 340 pixels outside"
        " the scan of slide s, which has x 400 to 700, y 500 to 700 of level 0; counted from"
        " bounds it lies in the scan: set cohort.origin (of hnm predict --origin) to bounds"
    )
    said = drawn_in(
        geojson(collection={"hnm_origin": "level_0"}), "annotation a", canvas, named=True
    )
    with pytest.raises(
        CohortError,
        match=r"coordinates must be level-0 pixels of this slide, counted here from level_0$",
    ):
        check_inside(said, canvas, "annotation a", "slide s")


def test_what_lies_partly_beside_the_scan_is_told():
    """The stroma, moved to x 336 to 464, lies half beside a scan that begins at 400: by 64 pixels.
    A hundredth is no matter.
    """
    canvas = Canvas(1000, 900, Box(400, 0, 300, 900))
    (note,) = check_inside(
        drawn_in(geojson((272, 0)), "annotation a", canvas, named=True),
        canvas,
        "annotation a",
        "slide s",
    )
    assert note.startswith(
        "annotation a, feature 1 (tumour) reaches 64 pixels beyond the scan of slide s, with 50% of"
        " its box; "
    )
    assert (
        check_inside(
            drawn_in(geojson((335, 0)), "annotation a", canvas, named=True),
            canvas,
            "annotation a",
            "slide s",
        )
        == []
    )


def image(slide: Path, path: Path, covers: str, shrink: int) -> Path:
    """A mask of the stroma as an image of the scan, as QuPath exports it, or of all of level 0."""
    canvas, corner = canvas_of(slide), CORNERS[slide.stem]
    size, begin = (
        ((320, 256), (0, 0)) if covers == "bounds" else ((canvas.width, canvas.height), corner)
    )
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[begin[1] + TOP : begin[1] + TOP + HEIGHT, begin[0] + LEFT : begin[0] + LEFT + WIDTH] = (
        255
    )
    Image.fromarray(pixels[::shrink, ::shrink]).save(path)
    return path


@pytest.mark.parametrize(
    "kind", ["polygons", "qupath polygons", "scan", "small scan", "level 0", "small level 0"]
)
def test_a_mask_from_either_origin_cuts_the_same_tiles(slide, tmp_path, kind):
    """Tiles of 32 px on the stroma: four in two rows, by hand from the corner of the scan."""
    mask = tmp_path / ("mask.geojson" if "polygons" in kind else "mask.png")
    if "polygons" in kind:
        mask.write_bytes(
            geojson(identifier=QUPATH_ID)
            if kind == "qupath polygons"
            else geojson(CORNERS[slide.stem])
        )
    else:
        image(slide, mask, "bounds" if "scan" in kind else "level_0", 4 if "small" in kind else 1)
    with OpenSlideReader(slide) as opened:
        fingerprint = opened.fingerprint()
    layout = Layout(
        "s",
        str(slide),
        (1.0, 1.0),
        fingerprint,
        mask,
        digest_of(mask),
        Tissue(mpp=8.0),
        Tiles(mpp=1.0, tile_px=32, min_tissue=0.5),
    )
    cut(Cutting(layout, tmp_path / "s.h5"))
    x, y = CORNERS[slide.stem]
    assert Pack(tmp_path / "s.h5").coords.tolist() == [
        [x + left, y + top] for top in (96, 128) for left in (64, 96, 128, 160)
    ]


def test_a_param_cuts_a_slide_again_where_it_has_a_mask_and_nowhere_else():
    layouts = {
        origin: Layout(
            "s",
            "s",
            (1.0, 1.0),
            "f",
            Path("m.png"),
            "d",
            Tissue(),
            Tiles(mpp=1.0, tile_px=32),
            origin,
        )
        for origin in ("auto", "level_0", "bounds")
    }
    assert layouts["auto"].causes() != layouts["bounds"].causes() != layouts["level_0"].causes()
    bare = [
        Layout(
            "s", "s", (1.0, 1.0), "f", None, "", Tissue(), Tiles(mpp=1.0, tile_px=32), origin
        ).causes()
        for origin in ("auto", "bounds")
    ]
    assert bare[0] == bare[1]


@pytest.mark.parametrize(
    ("size", "origin", "covered", "by"),
    [
        ((2000, 1000), "auto", "whole", "shape"),  # by aspect
        ((125, 63), "bounds", "whole", "shape"),
        ((300, 300), "auto", "scan", "shape"),
        ((37, 38), "level_0", "scan", "shape"),
    ],
)
def test_the_aspect_tells_what_an_image_covers(size, origin, covered, by):
    canvas = Canvas(2000, 1000, Box(700, 100, 600, 600), origin)
    assert covered_box(size, canvas, "its mask m") == (
        canvas.bounds if covered == "scan" else canvas.whole,
        by,
    )


@pytest.mark.parametrize(
    ("size", "origin", "covered", "by"),
    [
        ((2000, 2000), "bounds", "whole", "shape"),  # finer than level 0, were it of the scan
        ((1010, 1000), "level_0", "scan", "shape"),  # to the pixel the scan's sides
        ((1000, 1000), "bounds", "whole", "shape"),
        ((20, 20), "bounds", "scan", "param"),
        ((20, 20), "level_0", "whole", "param"),
        ((20, 20), "auto", "whole", "nothing"),
    ],
)
def test_the_size_tells_between_equal_aspects_and_else_the_param(size, origin, covered, by):
    canvas = Canvas(2000, 2000, Box(700, 100, 1010, 1000), origin)
    assert covered_box(size, canvas, "its mask m") == (
        canvas.bounds if covered == "scan" else canvas.whole,
        by,
    )


def test_an_image_is_no_finer_than_level_0():
    """Of a scan of half the canvas's sides: 1500 pixels would be finer than the slide, 1000 may be
    either.
    """
    canvas = Canvas(2000, 2000, Box(700, 100, 1000, 1000), "bounds")
    assert covered_box((1500, 1500), canvas, "its mask m") == (canvas.whole, "shape")
    assert covered_box((1000, 1000), canvas, "its mask m") == (canvas.bounds, "param")


def test_an_image_that_covers_neither_is_refused():
    with pytest.raises(
        SlideError,
        match=(
            r"^its mask m has 100 x 20 pixels, which is not the aspect of the slide's 2000 x 1000"
            r" nor of its scan of 600 x 600;"
        ),
    ):
        covered_box((100, 20), Canvas(2000, 1000, Box(700, 100, 600, 600), "bounds"), "its mask m")


def test_where_a_mask_lies_is_known_before_it_is_cut(slide, tmp_path):
    canvas = canvas_of(slide)
    polygons = Path("m.geojson")
    assert placement_of(geojson(CORNERS[slide.stem]), polygons, canvas, "slide s") == Placement(
        "nothing"
    )
    assert placement_of(geojson(identifier=QUPATH_ID), polygons, canvas, "slide s") == Placement(
        "qupath"
    )
    assert (
        placement_of(b"{", polygons, canvas, "slide s")
        == placement_of(b"no image", Path("m.png"), canvas, "slide s")
        == Placement("file")
    )
    path = image(slide, tmp_path / "m.png", "bounds", 1)
    assert placement_of(path.read_bytes(), path, canvas, "slide s") == Placement("shape")
    far = geojson(
        (CORNERS[slide.stem][0] - 128, CORNERS[slide.stem][1])
    )  # 64 of 128 pixels beside the scan
    (note,) = placement_of(far, polygons, canvas, "slide s").notes
    assert note.startswith(
        "mask m.geojson, feature 1 (tumour) reaches 64 pixels beyond the scan of slide s, with 50%"
        " of its box"
    )


def test_the_table_of_slides_holds_each_canvas():
    row = {
        "slide_id": "s",
        "path": "s",
        "patient_id": "p",
        "split": "train",
        "vendor": "mirax",
        "mpp_x": 0.5,
        "mpp_y": 0.5,
        "fingerprint": "f",
    }
    scan = {
        "width": 9,
        "height": 8,
        "bounds_x": 1,
        "bounds_y": 2,
        "bounds_width": 3,
        "bounds_height": 4,
        "origin": "bounds",
    }
    table = SLIDES.check(pd.DataFrame([{**row, **scan, "mask": "", "mask_digest": ""}]), "slides")
    assert canvases_of(table) == {"s": Canvas(9, 8, Box(1, 2, 3, 4), "bounds")}
    assert [
        layout.origin for layout in layouts_of(table, Path(), Tissue(), Tiles(mpp=1.0, tile_px=32))
    ] == ["bounds"]
