"""Vetoed tiles are never mined, and a veto that means nothing is an error."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm import params
from hnm.errors import CohortError, MiningError, TableError
from hnm.mining.select import mine, scorer_of
from hnm.mining.vetoes import vetoed_tiles
from hnm.slides.annotations import Region, write_annotation
from hnm.tables import SLIDES
from tests.support.scores import chosen, labels_of, scores_of

# five tiles a slide, 96 wide and, on n1, 48 high, in a row: tile 3 covers x 288 to 384, y 7 to 55
# (or 103)
TILES = scores_of({"n1": [0.5] * 5, "n2": [0.4] * 5}).assign(
    x=lambda tiles: 96 * tiles["tile"].astype("int64")
)
COHORT = SLIDES.check(
    pd.DataFrame(
        {
            "slide_id": ["lost", "n1", "n2"],
            "path": "a.svs",
            "patient_id": "p",
            "split": "train",
            "vendor": "aperio",
            "mpp_x": [0.5, 0.25, 0.5],
            "mpp_y": 0.5,
            "width": 500,
            "height": 200,
            "bounds_x": 0,
            "bounds_y": 0,
            "bounds_width": 500,
            "bounds_height": 200,
            "origin": "auto",
            "fingerprint": "f",
            "mask": "",
            "mask_digest": "",
        }
    ),
    "slides",
)


def folder_with(folder: Path, *lines: str, **drawn: Region) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vetoes.csv").write_text("\n".join(["slide_id,tile,x,y,reason", *lines]) + "\n")
    for slide_id, region in drawn.items():
        write_annotation([region], folder / f"{slide_id}.geojson")
    return folder


def vetoed(folder: Path) -> list[list[object]]:
    return vetoed_tiles(folder, TILES, COHORT).values.tolist()


def test_no_vetoes(tmp_path: Path) -> None:
    assert vetoed(folder_with(tmp_path)) == []
    assert vetoed(Path(__file__).parents[2] / "vetoes") == []


def test_listed_by_tile_or_by_a_point_in_it(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        "n2,4,,,fold",
        "n1,,288,7,pen",
        "n2,,287,102,blur",
        "n2,2,,,seen before",
        "lost,9,,,quarantined",
    )
    assert vetoed(folder) == [
        ["n1", 3, "pen"],
        ["n2", 2, "seen before"],
        ["n2", 4, "fold"],
    ]  # lines that name a tile come first


def test_drawn_tiles_by_centre_or_larger_part(tmp_path: Path) -> None:
    # tile 1 has its centre at (144, 55): a sliver over it, but not over tile 2's; of tile 3 two
    # thirds, beside its centre, of tile 4 nothing
    sliver, above, below = (
        shapely.box(140, 54, 150, 56),
        shapely.box(288, 7, 384, 54),
        shapely.box(288, 56, 384, 90),
    )
    folder = folder_with(tmp_path, n2=Region("pen", shapely.MultiPolygon([sliver, above, below])))
    assert vetoed(folder) == [["n2", 1, "pen"], ["n2", 3, "pen"]]


def test_a_slides_own_aspect_counts(tmp_path: Path) -> None:
    """A tile of n1 is 48 pixels high: its lower half is out of reach of a polygon that covers the
    lower half of n2's.
    """
    lower = Region("fold", shapely.box(0, 56, 96, 103))
    assert vetoed(folder_with(tmp_path, n1=lower)) == []
    assert vetoed(folder_with(tmp_path / "b", n2=Region("fold", shapely.box(0, 54, 96, 103)))) == [
        ["n2", 0, "fold"]
    ]


def test_areas_drawn_from_the_scans_corner(tmp_path: Path) -> None:
    """The scan of n2 begins at x 96, y 7: what QuPath shows at x 0 to 96 is tile 1, and at x 192 to
    288 tile 3. A line of the table stays in level 0.
    """
    cohort = COHORT.assign(
        bounds_x=96, bounds_y=7, bounds_width=404, bounds_height=190, origin="bounds"
    )
    folder = folder_with(tmp_path, "n2,,96,7,listed")
    ring = [[192, 0], [288, 0], [288, 96], [192, 96], [192, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "pen"}},
    }
    (folder / "n2.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": [feature]})
    )
    assert vetoed_tiles(folder, TILES, cohort).values.tolist() == [
        ["n2", 1, "listed"],
        ["n2", 3, "pen"],
    ]
    assert vetoed_tiles(folder, TILES, cohort.assign(origin="level_0")).values.tolist() == [
        ["n2", 1, "listed"],
        ["n2", 2, "pen"],
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "n7,1,,,fold",
            (
                r"vetoes.csv: slide_id=n7 is not among the cohort's slides; correct it, or remove"
                r" its veto"
            ),
        ),
        ("n1,5,,,fold", r"slide_id=n1 has no tile=5; correct or remove the veto"),
        ("n1,,288,56,fold", r"slide_id=n1 has no tile at x=288, y=56"),
        (
            "n1,,,,fold",
            r"must name either a tile or a point x, y, but has tile=<NA>, x=<NA>, y=<NA>",
        ),
        ("n1,2,10,20,fold", r"must name either a tile or a point"),
        ("n1,,10,,fold", r"must name either a tile or a point"),
    ],
)
def test_a_veto_that_means_nothing_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(MiningError, match=message):
        vetoed(folder_with(tmp_path, line))


def test_files_that_mean_nothing_are_errors(tmp_path: Path) -> None:
    region = Region("pen", shapely.box(0, 0, 9, 9))
    with pytest.raises(
        MiningError, match=r"n7.geojson: slide_id=n7 is not among the cohort's slides"
    ):
        vetoed(folder_with(tmp_path / "a", n7=region))
    with pytest.raises(
        CohortError,
        match="100 pixels outside the scan of slide n1, which has x 0 to 500, y 0 to 200",
    ):
        vetoed(folder_with(tmp_path / "b", n1=Region("pen", shapely.box(600, 0, 700, 9))))
    strange = folder_with(tmp_path / "c")
    (strange / ".DS_Store").write_bytes(b"\0")  # of a desktop, not of anybody
    assert vetoed(strange) == []
    (strange / "n1.json").write_text("{}")
    with pytest.raises(MiningError, match=r"n1.json is neither vetoes.csv nor <slide_id>.geojson"):
        vetoed(strange)
    with pytest.raises(TableError, match=r"vetoes.csv: column reason, row 0: .* must not be empty"):
        vetoed(folder_with(tmp_path / "d", "n1,1,,,"))


SCORES = scores_of({"n1": [0.9, 0.8, 0.7], "n2": [0.6, 0.5], "p1": [0.95, 0.85, 0.75]})
LABELS = labels_of({"n1": 0, "n2": 0, "p1": 1})
KEYS = st.sampled_from([("n1", 0), ("n1", 1), ("n1", 2), ("n2", 0), ("p1", 0), ("p1", 2)])


@settings(max_examples=10)
@given(
    st.sets(KEYS),
    st.sampled_from(["hard", "semi_hard", "mixed", "random", "all"]),
    st.integers(0, 9),
)
def test_a_vetoed_tile_is_never_mined(keys: set[tuple[str, int]], policy: str, seed: int) -> None:
    forbidden = pd.DataFrame(sorted(keys), columns=["slide_id", "tile"]).astype({"tile": "int32"})
    section = params.Mining(
        policy=policy,
        negative_fraction=1.0,
        positive_fraction=1.0,
        max_slide_share=1.0,
        max_patient_share=1.0,
        skip_fraction=0.0,
        seed=seed,
    )
    mined = mine(SCORES, LABELS, section, 1, vetoed=forbidden).tiles
    expected = {
        (slide_id, tile) for slide_id, tile in zip(SCORES["slide_id"], SCORES["tile"], strict=True)
    } - keys
    assert {*chosen(mined, "positive"), *chosen(mined, "hard_negative")} == expected
    assert set(mined["scorer"]) == {scorer_of(SCORES)}


def test_vetoes_that_leave_no_negative_are_an_error() -> None:
    every = SCORES.loc[SCORES["slide_id"].isin(["n1", "n2"]), ["slide_id", "tile"]]
    with pytest.raises(
        MiningError, match=r"no negative train slide has tiles that may be mined.* or lift vetoes"
    ):
        mine(SCORES, LABELS, params.Mining(), 1, vetoed=every)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n1,-1,,,fold", "column tile, row 0: value -1: must be at least 0"),
        ("n1,9223372036854775808,,,fold", r"vetoes.csv: "),
        (
            "n1,,1e30,5,fold",
            r"vetoes.csv: column x, row 0: value '1e30': must be of type int64|vetoes.csv: ",
        ),
        ("n1,1.5,,,fold", "vetoes.csv: column tile, row 0: value '1.5': must be of type int64"),
        ("n1\n,1,,,fold", r"vetoes.csv, row 2: has fewer cells than the header \(1, not 5\)"),
        ('n1,1,,,"fold', "vetoes.csv is not CSV in UTF-8: line 2: .*a quote may be open"),
        ("n1,1,,,f\0ld", "vetoes.csv is not CSV in UTF-8: line 2 holds a null character"),
        ("n1,1,,,fold,more", r"vetoes.csv, row 2: has more cells than the header \(6, not 5\)"),
    ],
)
def test_numbers_and_cells_of_a_stranger(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        vetoed(folder_with(tmp_path, line))


def test_points_outside_of_every_slide(tmp_path: Path) -> None:
    with pytest.raises(
        MiningError,
        match=r"slide_id=n1 has no tile at x=9223372036854775807, y=0; correct or remove",
    ):
        vetoed(folder_with(tmp_path, "n1,,9223372036854775807,0,fold"))


def test_folders_that_hold_no_vetoes(tmp_path: Path) -> None:
    with pytest.raises(
        MiningError,
        match=(
            r"none is no folder; make it, with a file vetoes.csv whose only line is"
            r" slide_id,tile,x,y,reason"
        ),
    ):
        vetoed(tmp_path / "none")
    with pytest.raises(
        MiningError,
        match=r"vetoes.csv does not exist; make it, with the line slide_id,tile,x,y,reason alone",
    ):
        vetoed(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MiningError, match="file is no folder"):
        vetoed(tmp_path / "file")


def test_drawn_vetoes_that_are_no_files(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "v")
    os.mkfifo(folder / "n1.geojson")
    (folder / "n2.geojson").symlink_to(folder / "n2.geojson")
    with pytest.raises(CohortError) as caught:
        vetoed(folder)
    first, *others = str(caught.value).splitlines()
    assert first == "2 of 2 files of regions cannot be used:"
    assert (
        others[0] == f"  veto {folder}/n1.geojson is no regular file; export it again, or remove it"
    )
    assert others[1].startswith(
        f"  veto {folder}/n2.geojson cannot be read: Too many levels of symbolic links"
    )
    (folder / "vetoes.csv").unlink()
    os.mkfifo(folder / "vetoes.csv")
    with pytest.raises(TableError, match=r"vetoes.csv is no regular file"):
        vetoed(folder)
