"""Hard negatives of another project: which are taken, which are left out, and what does not fit is
an error.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hnm.errors import MiningError, TableError
from hnm.mining.extra import counts_by_project, extra_negatives
from hnm.slides.cutting.pack import PackTile, encode, write_pack
from hnm.tables import MINED
from tests.support.extra import SCORER, mined, pack


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the slides `s1` and `t1`; in `extra`, `other` has mined an s1 of its own, a t1
    that is this project's, and a positive.
    """
    for slide_id, shade in (("s1", 10), ("t1", 50)):
        pack(tmp_path / "packs", slide_id, *range(shade, shade + 4))
    for slide_id, shade in (("s1", 90), ("t1", 50), ("p", 130)):
        pack(tmp_path / "extra" / "other" / "packs", slide_id, *range(shade, shade + 4))
    rows = (
        ("hard_negative", 1, "t1", 0),
        ("hard_negative", 2, "s1", 3),
        ("hard_negative", 3, "s1", 1),
        ("positive", 1, "p", 2),
    )
    mined(tmp_path / "extra" / "other" / "mined.parquet", *rows)
    return tmp_path


def found(project: Path, *names: str) -> pd.DataFrame:
    return extra_negatives(project / "extra", names or ("other",), project / "packs")


def test_hard_negatives_alone_are_taken_and_own_slides_are_marked(project: Path) -> None:
    table = found(project)
    assert table[["project", "slide_id", "tile", "own_slide"]].values.tolist() == [
        ["other", "s1", 1, False],
        ["other", "s1", 3, False],
        ["other", "t1", 0, True],
    ]
    assert set(table["role"]) == {"hard_negative"} and set(table["scorer"]) == {SCORER}
    assert table["pack"].tolist() == [
        str(project / "extra" / "other" / "packs" / slide_id) for slide_id in ("s1", "s1", "t1")
    ]
    assert counts_by_project(table) == {"other": {"hard_negatives": 2, "slides": 1, "left_out": 1}}


@pytest.mark.parametrize("quality", [50, 100])
def test_an_own_slide_is_known_under_other_numbers_and_other_jpeg(
    project: Path, quality: int
) -> None:
    noise = np.random.default_rng(0).integers(-20, 20, (4, 16, 16, 1)).repeat(3, axis=3)
    own = [
        PackTile(32 * n, 7, 1.0, encode((120 + 20 * n + noise[n]).astype(np.uint8), 90))
        for n in range(4)
    ]
    theirs = [
        PackTile(tile.x, tile.y, 1.0, encode((120 + 20 * n + noise[n]).astype(np.uint8), quality))
        for n, tile in enumerate(own)
    ][1:]
    write_pack(
        project / "packs" / "t1.h5", own, slide_id="t1", mpp=0.5, tile_px=16, side=32, planned=4
    )
    write_pack(
        project / "extra" / "other" / "packs" / "t1.h5",
        theirs,
        slide_id="t1",
        mpp=0.5,
        tile_px=16,
        side=32,
        planned=3,
    )
    table = mined(project / "extra" / "other" / "mined.parquet", ("hard_negative", 1, "t1", 0))
    MINED.write(table.assign(x=32), project / "extra" / "other" / "mined.parquet")
    assert found(project)["own_slide"].tolist() == [True]


def test_a_namesake_that_shares_no_tile_is_left_out_for_it_may_be_the_same(project: Path) -> None:
    tiles = [PackTile(1000, 7, 1.0, encode(np.full((16, 16, 3), 90, np.uint8), 100))]
    write_pack(
        project / "extra" / "other" / "packs" / "s1.h5",
        tiles,
        slide_id="s1",
        mpp=0.5,
        tile_px=16,
        side=32,
        planned=1,
    )
    MINED.write(
        mined(project / "m.parquet", ("hard_negative", 1, "s1", 0)).assign(x=1000),
        project / "extra" / "other" / "mined.parquet",
    )
    assert found(project)["own_slide"].tolist() == [True]


def test_a_level_within_the_tolerance_of_the_tiles_mpp_fits(project: Path) -> None:
    for slide_id, mpp in (("s1", 0.49), ("t1", 0.51)):
        pack(project / "extra" / "other" / "packs", slide_id, *range(90, 94), mpp=mpp)
    assert len(found(project)) == 3


def test_a_project_counts_once_and_the_order_of_names_does_not(project: Path) -> None:
    pack(project / "extra" / "third" / "packs", "a.1", 70, 71, 72)
    mined(project / "extra" / "third" / "mined.parquet", ("hard_negative", 1, "a.1", 2))
    table = found(project, "third", "other", "third")
    assert table[["project", "slide_id"]].values.tolist() == [
        ["other", "s1"],
        ["other", "s1"],
        ["other", "t1"],
        ["third", "a.1"],
    ]
    assert table.equals(found(project, "other", "third"))


def test_no_project_is_an_empty_table(project: Path) -> None:
    table = extra_negatives(project / "nowhere", (), project / "nowhere")
    assert (
        table.empty
        and list(table.columns) == list(found(project).columns)
        and counts_by_project(table) == {}
    )


@pytest.mark.parametrize(
    ("tile_px", "mpp", "message"),
    [
        (
            16,
            0.25,
            (
                r"packs/s1\.h5 has tiles of 16 px at 0\.25 µm per pixel, but this project's are of"
                r" 16 px at 0\.5; take mined tiles of a project with the same"
            ),
        ),
        (
            24,
            0.5,
            (
                r"packs/s1\.h5 has tiles of 24 px at 0\.5 µm per pixel, but this project's are of"
                r" 16 px at 0\.5"
            ),
        ),
    ],
)
def test_tiles_cut_otherwise_are_refused(
    project: Path, tile_px: int, mpp: float, message: str
) -> None:
    pack(project / "extra" / "other" / "packs", "s1", 90, 91, 92, 93, tile_px=tile_px, mpp=mpp)
    with pytest.raises(MiningError, match=message):
        found(project)


def test_a_table_of_other_packs_is_refused(project: Path) -> None:
    pack(project / "extra" / "other" / "packs", "s1", 90, 91, 92)
    with pytest.raises(
        MiningError,
        match=(
            r"mined\.parquet: tile=3 of slide_id=s1 at x=96, y=7 is not in .*packs/s1\.h5; bring"
            r" both from one revision"
        ),
    ):
        found(project)


def test_what_is_missing_is_named(project: Path) -> None:
    with pytest.raises(
        MiningError,
        match=(
            r"mining\.extra names absent, but .*extra/absent/mined\.parquet does not exist; bring"
            r" it by dvc import"
        ),
    ):
        found(project, "absent")
    (project / "extra" / "other" / "packs" / "s1.h5").unlink()
    with pytest.raises(
        MiningError,
        match=(
            r"packs/s1\.h5 does not exist, but .*mined\.parquet has 2 hard negatives of it; bring"
            r" it by dvc import"
        ),
    ):
        found(project)
    mined(project / "extra" / "other" / "mined.parquet", ("positive", 1, "p", 2))
    with pytest.raises(
        MiningError,
        match=r"mined\.parquet holds no hard negatives; take other out of mining\.extra",
    ):
        found(project)
    pd.DataFrame({"slide_id": ["s1"]}).to_parquet(project / "extra" / "other" / "mined.parquet")
    with pytest.raises(
        TableError, match=r"mined\.parquet is no mined tiles table: missing columns"
    ):
        found(project)


def test_a_pack_that_is_none_is_one_error_with_the_cure_of_a_stranger(project: Path) -> None:
    path = project / "extra" / "other" / "packs" / "s1.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        TableError,
        match=(
            r"packs/s1\.h5 is no pack of tiles, or was cut short \(.*\); bring it anew from where"
            r" it was made \(dvc update\)"
        ),
    ):
        found(project)


def test_a_pack_of_another_slide_is_refused(project: Path) -> None:
    folder = project / "extra" / "other" / "packs"
    (folder / "p.h5").replace(folder / "s1.h5")
    with pytest.raises(
        MiningError, match=r"packs/s1\.h5 is a pack of slide_id=p, not of s1; bring it anew"
    ):
        found(project)


def _hangs(look: object) -> bool:
    time.sleep(60)
    return False


def test_a_pack_that_hangs_ends_by_its_limit(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnm.mining.extra._look_at", _hangs)
    monkeypatch.setattr("hnm.mining.extra.PACK_SECONDS", 0.5)
    with pytest.raises(
        TableError,
        match=(
            r"(?s)packs in .*/packs cannot be read; bring it anew .*2 of 2 slides .*  s1: it took"
            r" longer than 0\.5 s"
        ),
    ):
        found(project)
