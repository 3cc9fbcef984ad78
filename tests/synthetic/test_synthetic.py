import hashlib
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon, box, contains_xy, unary_union
from shapely.geometry import shape

from hnm.errors import CohortError, ParamsError, SlideError
from hnm.files import digest_of
from hnm.params import Tissue
from hnm.slides.cutting.tissue import tissue_mask
from hnm.synthetic import make_demo_cohort
from hnm.synthetic.cohort import _paint, _subjects, _write_svs
from hnm.synthetic.fields import COSINES, ONE, SINES, Dice, both, noise, ramp, raster, smooth, star
from hnm.synthetic.nuclei import LYMPHOCYTE, MARGIN, directions_along, large_cells, scatter, stamp
from hnm.synthetic.painting import (
    INKS,
    TRANSMITTED,
    Stain,
    _islands,
    _scanned,
    _spots,
    mark_with_pen,
    paint_glass,
    paint_tissue,
)

PLAIN = Stain(haematoxylin=(640, 730, 350), eosin=(150, 880, 430), glass=(243, 241, 244))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_cohort(tmp_path_factory.mktemp("demo"), slides=8, width_px=640).parent


def level_0(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def truth(path: Path) -> list[tuple[str, Polygon]]:
    return [
        (feature["properties"]["classification"]["name"], shape(feature["geometry"]))
        for feature in json.loads(path.read_text())["features"]
    ]


# ---- the plan of a cohort


def test_thirty_six_slides_are_balanced_in_every_split() -> None:
    subjects = _subjects(0, 36, odd_slides=True)
    counts = pd.Series([(s.split, s.label) for s in subjects]).value_counts().to_dict()
    assert counts == {
        (split, label): count
        for split, count in (("train", 10), ("validation", 4), ("test", 4))
        for label in (0, 1)
    }
    assert [s.slide_id for s in subjects] == [f"demo-{number:03d}" for number in range(1, 37)]


def test_two_patients_have_two_slides_and_no_patient_has_two_splits() -> None:
    subjects = pd.DataFrame(_subjects(5, 36, odd_slides=True))
    slides_of = subjects.groupby("patient_id").size()
    assert sorted(slides_of[slides_of > 1]) == [2, 2]
    assert subjects.groupby("patient_id").split.nunique().max() == 1


def test_one_negative_train_slide_is_glass_and_one_has_pen_marks() -> None:
    odd = {
        s.content: (s.label, s.split)
        for s in _subjects(0, 36, odd_slides=True)
        if s.content != "tissue"
    }
    assert odd == {"glass": (0, "train"), "tissue and pen": (0, "train")}
    assert {s.content for s in _subjects(0, 36, odd_slides=False)} == {"tissue"}


def test_each_split_has_small_and_large_tumours() -> None:
    subjects = pd.DataFrame(_subjects(0, 36, odd_slides=True))
    shares = subjects[subjects.label == 1].groupby("split").tumour_share
    assert (shares.min() < 0.08).all()
    assert (shares.max() > 0.16).all()
    assert subjects.tumour_share.max() <= 0.35
    assert (subjects[subjects.label == 0].tumour_share == 0).all()


def test_some_negative_slides_of_each_split_have_look_alikes_and_some_have_none() -> None:
    subjects = pd.DataFrame(_subjects(0, 36, odd_slides=True))
    having = (
        subjects[subjects.label == 0]
        .groupby("split")
        .look_alike_share.agg(lambda shares: (shares > 0).mean())
    )
    assert having.between(0.1, 0.9).all(), having


def test_labels_do_not_follow_the_order_of_slide_ids() -> None:
    labels = [s.label for s in _subjects(0, 36, odd_slides=True)]
    assert 9 < sum(labels[0::2]) + sum(1 - label for label in labels[1::2]) < 27
    assert 5 < sum(labels[:18]) < 13


@pytest.mark.parametrize("slides", [7, 6, 37])
def test_too_few_or_odd_slides_are_refused(slides: int, tmp_path: Path) -> None:
    with pytest.raises(
        CohortError,
        match=(
            f"slides={slides} cannot be split with both labels in each; ask for an even number"
            " from 8"
        ),
    ):
        make_demo_cohort(tmp_path, slides=slides)


def test_a_slide_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CohortError, match="width_px=511 leaves no room for tissue; ask for at least 512"
    ):
        make_demo_cohort(tmp_path, width_px=511)


# ---- the files


def test_manifest(cohort: Path) -> None:
    manifest = pd.read_csv(cohort / "slides.csv", keep_default_na=False)
    assert list(manifest) == ["slide_id", "path", "label", "patient_id", "split", "annotation"]
    assert manifest.split.value_counts().to_dict() == {"train": 4, "validation": 2, "test": 2}
    assert all((cohort / path).is_file() for path in manifest.path)
    assert sorted(manifest.path) == sorted(
        file.relative_to(cohort).as_posix() for file in (cohort / "slides").iterdir()
    )
    annotated = manifest[manifest.annotation != ""]
    assert sorted(annotated.annotation) == sorted(
        file.relative_to(cohort).as_posix() for file in (cohort / "annotations").iterdir()
    )
    assert len(annotated) == 7  # all but the empty glass


def test_openslide_sees_an_aperio_slide(cohort: Path) -> None:
    for path in sorted((cohort / "slides").iterdir()):
        with openslide.OpenSlide(path) as slide:
            properties = slide.properties
            assert properties["openslide.vendor"] == "aperio"
            assert (
                properties["openslide.mpp-x"],
                properties["openslide.mpp-y"],
                properties["openslide.objective-power"],
            ) == ("0.5", "0.5", "20")
            assert slide.level_count == 2
            assert slide.level_dimensions[1] == (slide.dimensions[0] // 4, slide.dimensions[1] // 4)
            assert set(slide.associated_images) == {"thumbnail"}
            assert 576 <= slide.dimensions[0] <= 640


def test_no_file_tells_when_or_by_what_it_was_made(cohort: Path) -> None:
    bytes_of = next((cohort / "slides").iterdir()).read_bytes()
    assert b"tifffile" not in bytes_of
    assert b"Date" not in bytes_of


def test_levels_show_the_same_colours(cohort: Path) -> None:
    with openslide.OpenSlide(cohort / "slides" / "demo-001.svs") as slide:
        fine, coarse = (
            np.asarray(
                slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB")
            ).astype(float)
            for level in (0, 1)
        )
    height, width, _ = coarse.shape
    means = fine[: height * 4, : width * 4].reshape(height, 4, width, 4, 3).mean(axis=(1, 3))
    assert np.abs(means - coarse).mean() < 8  # each level loses other detail to JPEG
    assert means.mean(axis=(0, 1)) == pytest.approx(coarse.mean(axis=(0, 1)), abs=1)


def test_the_file_shows_what_was_painted(tmp_path: Path) -> None:
    painting = paint_tissue(Dice(3), PLAIN, 600, 700, tumour_share=0.2, look_alike_share=0.1)
    _write_svs(painting.pixels, tmp_path / "a.svs")
    assert (
        np.abs(level_0(tmp_path / "a.svs").astype(int) - painting.pixels).mean() < 4
    )  # JPEG with half the colour


def test_truth_has_valid_polygons_that_do_not_overlap(cohort: Path) -> None:
    manifest = pd.read_csv(cohort / "slides.csv", keep_default_na=False)
    for row in manifest[manifest.annotation != ""].itertuples():
        named = truth(cohort / row.annotation)
        assert {name for name, _ in named} - {"look-alike"} == ({"tumour"} if row.label else set())
        assert all(polygon.is_valid for _, polygon in named)
        assert unary_union([polygon for _, polygon in named]).area == pytest.approx(
            sum(polygon.area for _, polygon in named)
        )


def test_the_same_bytes_in_another_process_locale_zone_and_folder(
    cohort: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from hnm.synthetic import make_demo_cohort;"
        " make_demo_cohort(Path('here'), slides=8, width_px=640)"
    )
    odd = {
        "PYTHONHASHSEED": "77",
        "TZ": "Pacific/Chatham",
        "LC_ALL": "tr_TR.UTF-8",
        "HNM_WORKERS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | odd, check=True)
    assert digest_of(tmp_path / "here") == digest_of(cohort)


def test_another_seed_another_cohort() -> None:
    assert _subjects(0, 8, odd_slides=True) != _subjects(1, 8, odd_slides=True)
    one, two = (_paint(seed, 512, _subjects(0, 8, odd_slides=True)[0]).pixels for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_a_wrong_number_of_workers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNM_WORKERS", "many")
    with pytest.raises(ParamsError, match="HNM_WORKERS='many'"):
        make_demo_cohort(tmp_path, slides=8, width_px=512)


# ---- the painting


def test_pixels_are_the_same_on_every_machine() -> None:
    """The painting is made of whole numbers alone, which no processor rounds."""
    painting = paint_tissue(
        Dice(20), Stain.drawn(Dice(21)), 560, 640, tumour_share=0.2, look_alike_share=0.15
    )
    corners = [
        [int(part) for part in corner]
        for spot in painting.tumour + painting.look_alike
        for corner in spot.exterior.coords
    ]
    assert (
        hashlib.sha256(painting.pixels.tobytes()).hexdigest()
        == "4e37bc1a3604a930c9503b82adfdf29350f4b069d9af57a1dd4ffb09b3670388"
    )
    assert (
        hashlib.sha256(json.dumps(corners).encode()).hexdigest()
        == "8f6026afb4a5b58cd66e376c2bf0545c22c6415b35fb728cf54ac21268635517"
    )


def test_no_rounded_constant_is_near_a_tie() -> None:
    exact = [65536 * Decimal(10) ** (Decimal(-step) / 1024) for step in range(len(TRANSMITTED))]
    assert [int(value.to_integral_value()) for value in exact] == TRANSMITTED.tolist()
    assert min(abs(value % 1 - Decimal("0.5")) for value in exact) > Decimal("1e-5")
    cosines = 4096 * np.cos(2 * np.pi * np.arange(32) / 32)
    assert np.abs(cosines % 1 - 0.5).min() > 1e-3


def test_dice_keep_their_sequence() -> None:
    dice = Dice(0)
    assert dice.many(-5, 6, 2, 4).tolist() == [[2, -3, -5, -5], [3, 5, 1, 3]]
    assert dice.one(0, 1000) == 543
    assert dice.bytes(2, 5).tolist() == [[237, 191, 86, 143, 7], [232, 96, 239, 76, 55]]


def test_shares_are_about_what_was_asked() -> None:
    painting = paint_tissue(Dice(11), PLAIN, 1000, 1000, tumour_share=0.2, look_alike_share=0.1)
    stained = (
        painting.pixels.min(axis=2) < 225
    ).sum() / 0.9  # a tenth of the tissue is clear: cracks, fat
    assert sum(spot.area for spot in painting.tumour) / stained == pytest.approx(0.2, rel=0.35)
    assert sum(spot.area for spot in painting.look_alike) / stained == pytest.approx(0.1, rel=0.35)


def test_spots_lie_where_the_truth_says() -> None:
    """Their cytoplasm leaves no clear gaps, which lymphoid tissue is full of."""
    painting = paint_tissue(Dice(11), PLAIN, 900, 900, tumour_share=0.2, look_alike_share=0.1)
    y, x = np.mgrid[:900, :900]
    clear = painting.pixels.min(axis=2) > 205
    spots, middle = unary_union(painting.tumour + painting.look_alike), box(220, 220, 680, 680)
    assert clear[contains_xy(spots.buffer(-30), x, y)].mean() < 0.01
    assert clear[contains_xy(middle.difference(spots.buffer(20)), x, y)].mean() > 0.05


def test_spots_lie_mostly_on_their_slide() -> None:
    """Islands reach beyond it."""
    slide = box(0, 0, 500, 450)
    for number in range(60):
        dice = Dice(number)
        islands = _islands(dice, 450, 500)
        for spot in _spots(dice, slide, islands, 3000, ()):
            assert contains_xy(slide, *np.asarray(spot.exterior.coords[1:]).T).mean() >= 0.5


def test_glass_is_empty() -> None:
    pixels = paint_glass(Dice(1), PLAIN, 300, 400).pixels
    assert pixels.shape == (300, 400, 3)
    assert pixels.reshape(-1, 3).mean(axis=0).round().tolist() == list(PLAIN.glass)
    assert np.ptp(pixels[..., 0].astype(int)) <= 8
    with pytest.raises(SlideError, match="no tissue"):
        tissue_mask(pixels, 8.0, Tissue())


def test_pen_marks_cover_glass_and_leave_the_truth() -> None:
    painting = paint_tissue(Dice(3), PLAIN, 600, 700, tumour_share=0, look_alike_share=0.1)
    marked = mark_with_pen(Dice(4), painting)
    changed = (marked.pixels != painting.pixels).any(axis=2)
    assert 0.005 < changed.mean() < 0.15
    on_glass = changed & (painting.pixels.min(axis=2) > 230)
    assert on_glass.any()
    assert {tuple(colour) for colour in marked.pixels[on_glass].tolist()} >= set(INKS[:1])
    assert (marked.tumour, marked.look_alike) == (painting.tumour, painting.look_alike)


def test_the_stains_absorb_as_beer_and_lambert_say() -> None:
    haematoxylin, eosin = np.full((64, 64), 700, np.int32), np.full((64, 64), 300, np.int32)
    pixels = _scanned(Dice(0), haematoxylin, eosin, PLAIN).reshape(-1, 3).mean(axis=0)
    expected = [
        glass * 10 ** -((0.7 * h + 0.3 * e) / 1024)
        for h, e, glass in zip(PLAIN.haematoxylin, PLAIN.eosin, PLAIN.glass, strict=True)
    ]
    assert pixels == pytest.approx(expected, abs=0.7)


# ---- nuclei


def drawn_nuclei(pleomorphism: int, seed: int) -> np.ndarray:
    """Areas, in pixels, of 300 nuclei of one slide."""
    dice = Dice(seed)
    kind = large_cells(dice, pleomorphism)
    at = np.arange(300, dtype=np.int32)
    canvas = np.zeros((64 + 2 * MARGIN, 300 * 64 + 2 * MARGIN), np.int16)
    stamp(dice, canvas, kind, at * 64 + 32, np.full(300, 32, np.int32))
    return (canvas[MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(64, 300, 64) > 150).sum(axis=(0, 2))


def test_tumour_nuclei_differ_from_each_other_and_look_alikes_do_not() -> None:
    tumour, alike = drawn_nuclei(90, 5), drawn_nuclei(5, 5)  # the same slide otherwise
    assert tumour.mean() == pytest.approx(alike.mean(), rel=0.15)
    assert tumour.std() / tumour.mean() > 2 * alike.std() / alike.mean()


def test_overlapping_nuclei_show_the_darker_and_order_does_not_matter() -> None:
    x, y = np.array([20, 26, 31], np.int32), np.array([22, 20, 27], np.int32)
    canvases = []
    for order in ([0, 1, 2], [2, 0, 1]):
        canvas = np.zeros((64 + 2 * MARGIN, 64 + 2 * MARGIN), np.int16)
        for cell in order:
            one = np.zeros_like(canvas)
            stamp(Dice(cell), one, LYMPHOCYTE, x[[cell]], y[[cell]])
            np.maximum(canvas, one, out=canvas)
        canvases.append(canvas)
    assert np.array_equal(*canvases)


def test_cells_keep_to_their_place() -> None:
    where = np.zeros((100, 120), np.int32)
    where[10:40, 50:110] = ONE
    x, y = scatter(Dice(0), LYMPHOCYTE, where, grain=2)
    assert ((x >= 100) & (x < 220) & (y >= 20) & (y < 80)).all()
    assert len(x) == pytest.approx(120 * 60 / (16 * 14), rel=0.2)
    half, _ = scatter(Dice(0), LYMPHOCYTE, where // 2, grain=2)
    assert len(half) == pytest.approx(len(x) / 2, rel=0.35)


def test_fibres_run_along_contours() -> None:
    slope_x, slope_y = np.array([10, 0, -7], np.int32), np.array([0, 5, 0], np.int32)
    # uphill to the right: contours run up and down the picture (8 of 32 directions further); and so
    # on
    assert directions_along(slope_x, slope_y).tolist() == [8, 16, 24]


# ---- fields


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(-10, 90), st.integers(-10, 70))
def test_raster_against_shapely(seed: int, step: int, x: int, y: int) -> None:
    stars = (star(Dice(seed), x, y, 30, 20, 90), star(Dice(seed + 1), 40, 30, 12, 25, 60))
    rows, columns = np.mgrid[0:60:step, 0:80:step]
    union = unary_union(stars)
    field = raster(stars, step, 60, 80)
    borders = unary_union([polygon.boundary for polygon in stars])
    clear = shapely.distance(borders, shapely.points(columns, rows)) > 1e-9
    assert np.array_equal(field[clear], ONE * contains_xy(union, columns, rows)[clear])


def test_raster_by_hand() -> None:
    triangle = Polygon([(1, 0), (5, 0), (1, 4)])
    assert (raster((triangle,), 1, 5, 6) // ONE).tolist() == [
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


@given(st.integers(1, 9), st.integers(-300, 300), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_constant_stays_itself_when_spread(
    step: int, value: int, height: int, width: int
) -> None:
    coarse = np.full((-(-height // step), -(-width // step)), value, np.int32)
    assert (smooth(coarse, step, height, width) == value).all()


def test_smooth_by_hand() -> None:
    # step 2: knots at pixel 1, 3, 5 ... weights (9, 22, 1) / 32 left of a knot, (1, 22, 9) / 32
    # right of it
    assert smooth(np.array([[0, 320, 640]], np.int32), 2, 2, 6)[0].tolist() == [
        10,
        90,
        240,
        400,
        550,
        630,
    ]


def test_noise_is_smooth_centred_and_fills_its_range() -> None:
    field = noise(Dice(2), 16, 300, 400)
    assert field.shape == (300, 400)
    assert abs(field.mean()) < 40
    assert 120 < field.std() < 260
    assert np.abs(np.diff(field, axis=1)).max() < 1024 / 16 * 1.5


def test_weights_by_hand() -> None:
    assert ramp(np.array([-5, 10, 15, 20, 99], np.int32), 10, 20).tolist() == [0, 0, 128, 256, 256]
    assert both(np.array([256, 128, 0], np.int32), np.array([64, 128, 256], np.int32)).tolist() == [
        64,
        64,
        0,
    ]


def test_directions_are_unit_vectors() -> None:
    assert np.abs(COSINES**2 + SINES**2 - 4096**2).max() < 2 * 4096
    assert (SINES[8], COSINES[0], SINES[24]) == (4096, 4096, -4096)
