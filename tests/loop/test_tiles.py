import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest

from hnm import store
from hnm.errors import CohortError, MachineError, SlideError
from hnm.files import digest_of
from hnm.loop.paths import TilesFiles
from hnm.params import Cohort, Tiles, Tissue
from hnm.processes import one_read
from hnm.slides.cutting.cut import Cutting, cut
from hnm.slides.cutting.pack import Pack
from hnm.slides.reading.reader import OpenSlideReader
from hnm.tables import PACKS, QUARANTINE, SLIDES, TILES
from pipelines import tiles

COHORT = Cohort(name="c", manifest="in/slides.csv", max_quarantined_share=0.4)
TISSUE = Tissue(mpp=8.0, min_area_um2=1000.0)
TILES_SECTION = Tiles(mpp=1.0, tile_px=32, min_tissue=0.5)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, tiny, monkeypatch):
    """Five slides with 2, 4, 6, 8 and 10 tiles, as the stage cohort leaves them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HNM_STORE", str(tmp_path / "store"))
    for number in range(5):
        tiny.aperio(
            tmp_path / "in" / f"s{number}.svs",
            tiny.painted(128, 384, (32, 32, 32 * (number + 1), 64, tiny.STROMA), seed=number),
        )
    refresh(tmp_path)
    QUARANTINE.write(
        pd.DataFrame(
            [("gone", "open", "gone.svs does not exist")], columns=list(QUARANTINE.columns)
        ),
        tmp_path / "cohort" / "quarantine.csv",
    )
    return tmp_path


def refresh(folder: Path) -> None:
    """Slides.parquet of the slides in `folder`/in."""
    rows = []
    for path in sorted((folder / "in").glob("*.svs")):
        try:
            with OpenSlideReader(path) as slide:
                fingerprint = slide.fingerprint()
        except SlideError:
            fingerprint = "unreadable"
        rows.append(
            (
                path.stem,
                path.name,
                path.stem,
                "train",
                "aperio",
                1.0,
                1.0,
                384,
                128,
                0,
                0,
                384,
                128,
                "auto",
                fingerprint,
                "",
                "",
            )
        )
    SLIDES.write(
        pd.DataFrame(rows, columns=list(SLIDES.columns)), folder / "cohort" / "slides.parquet"
    )


def run(folder: Path, out: str = "out", **changes) -> Path:
    sections = {"cohort": COHORT, "tissue": TISSUE, "tiles": TILES_SECTION} | changes
    cohort, written = folder / "cohort", ("packs", "packs.csv", "index.parquet", "quarantine.csv")
    tiles.main(
        TilesFiles(
            cohort / "slides.parquet",
            cohort / "quarantine.csv",
            *(folder / out / name for name in written),
        ),
        **sections,
    )
    return folder / out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kept(folder: Path) -> dict[str, int]:
    """When each kept result was made."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "store").rglob("[!.]*.h5")}


def test_packs_and_index(folder):
    out = run(folder)
    index = TILES.read(out / "index.parquet")
    assert index.groupby("slide_id").size().to_dict() == {
        "s0": 2,
        "s1": 4,
        "s2": 6,
        "s3": 8,
        "s4": 10,
    }
    assert index.loc[index["slide_id"] == "s1", ["tile", "x", "y", "side"]].to_numpy().tolist() == [
        [0, 32, 32, 32],
        [1, 64, 32, 32],
        [2, 32, 64, 32],
        [3, 64, 64, 32],
    ]
    assert sorted(path.name for path in (out / "packs").iterdir()) == [f"s{i}.h5" for i in range(5)]
    pack = Pack(out / "packs" / "s1.h5")
    pd.testing.assert_frame_equal(
        pack.index(), index[index["slide_id"] == "s1"].reset_index(drop=True)
    )
    assert QUARANTINE.read(out / "quarantine.csv")["slide_id"].tolist() == ["gone"]


def test_the_stage_says_how_many_tiles_each_rule_took(folder, tiny, capsys):
    """Five grids of 12 x 4 tiles, of which 30 lie on tissue; TIFF tile 7 of s4, x 64 to 128 and y
    64 to 128, is damaged and holds two of them.
    """
    path = tiny.aperio(
        folder / "in" / "s4.svs",
        tiny.painted(128, 384, (32, 32, 160, 64, tiny.STROMA), seed=4),
        levels=2,
    )
    tiny.damage(path, 7)
    refresh(folder)
    out = run(folder, tiles=TILES_SECTION.model_copy(update={"max_lost_share": 0.5}))
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "6 slides found, 5 opened, 5 with tissue, 5 cut into 28 tiles: of 240 tiles of their"
        " grids 210 hold less than tiles.min_tissue=0.5 of tissue, and 2 could not be read"
    )
    pack = Pack(out / "packs" / "s4.h5")
    assert (len(pack), pack.lost, pack.places) == (8, 2, 48)


def test_equal_input_gives_equal_bytes(folder, monkeypatch):
    monkeypatch.setenv("HNM_WORKERS", "1")
    known = contents(run(folder))
    monkeypatch.setenv("HNM_WORKERS", "3")
    monkeypatch.setenv("HNM_STORE", str(folder / "other-store"))
    assert contents(run(folder, "again")) == known


def test_the_digests_of_packs_are_written_down_and_taken_from_the_store(folder, monkeypatch):
    hashed = []
    monkeypatch.setattr(store, "digest_of", lambda path: hashed.append(path) or digest_of(path))
    out = run(folder)
    table = PACKS.read(out / "packs.csv").set_index("slide_id")
    packs = {path.stem: path.read_bytes() for path in (out / "packs").iterdir()}
    assert table["sha256"].to_dict() == {
        name: hashlib.sha256(content).hexdigest() for name, content in packs.items()
    }
    assert table["bytes"].to_dict() == {name: len(content) for name, content in packs.items()}
    assert len(hashed) == 5  # when they were cut
    run(folder, "again")
    assert len(hashed) == 5 and contents(folder / "again") == contents(out)


def test_another_openslide_cuts_anew_and_another_pandas_does_not(folder, monkeypatch):
    said, true = {}, metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: said.get(name) or true(name))
    run(folder)
    first = kept(folder)
    said |= {"pandas": "99.1", "mlflow": "99.1", "torch": "99.1"}
    run(folder)
    assert kept(folder) == first
    for number, name in enumerate(
        ("openslide-bin", "simplejpeg", "imagecodecs", "pillow", "numpy"), 2
    ):
        said[name] = "99.1"
        run(folder)
        assert len(kept(folder)) == number * len(first) and first.items() <= kept(folder).items()


def test_one_slide_more_cuts_one_slide(folder, tiny):
    run(folder)
    before = kept(folder)
    tiny.aperio(
        folder / "in" / "new.svs", tiny.painted(128, 384, (32, 32, 64, 64, tiny.STROMA), seed=7)
    )
    refresh(folder)
    run(folder)
    after = kept(folder)
    assert len(after) == 6
    assert before.items() <= after.items()


def test_a_changed_slide_is_cut_again_and_it_alone(folder, tiny):
    run(folder)
    before = kept(folder)
    tiny.aperio(
        folder / "in" / "s3.svs", tiny.painted(128, 384, (32, 32, 96, 64, tiny.STROMA), seed=3)
    )
    refresh(folder)
    index = TILES.read(run(folder) / "index.parquet")
    assert index.groupby("slide_id").size().to_dict() == {
        "s0": 2,
        "s1": 4,
        "s2": 6,
        "s3": 6,
        "s4": 10,
    }
    assert before.items() <= kept(folder).items()
    assert len(kept(folder)) == 6


def test_a_param_changed_back_costs_nothing(folder):
    known = contents(run(folder))
    run(folder, tiles=TILES_SECTION.model_copy(update={"jpeg_quality": 60}))
    before = kept(folder)
    assert len(before) == 10
    assert contents(run(folder)) == known
    assert kept(folder) == before


def test_a_slide_that_left_leaves_no_pack(folder):
    run(folder)
    (folder / "in" / "s4.svs").unlink()
    refresh(folder)
    assert sorted(path.name for path in (run(folder) / "packs").iterdir()) == [
        f"s{i}.h5" for i in range(4)
    ]


def test_bad_slides_go_to_quarantine_and_the_others_go_on(folder, tiny):
    tiny.aperio(folder / "in" / "s1.svs", tiny.painted(128, 384, seed=1))
    tiny.damage(folder / "in" / "s3.svs", *range(12))
    refresh(folder)
    out = run(folder, cohort=COHORT.model_copy(update={"max_quarantined_share": 0.5}))
    table = QUARANTINE.read(out / "quarantine.csv")
    assert table[["slide_id", "step"]].to_numpy().tolist() == [
        ["gone", "open"],
        ["s1", "tissue"],
        ["s3", "tiles"],
    ]
    assert table["reason"].tolist() == [
        "gone.svs does not exist",
        "it has no tissue of at least tissue.min_area_um2=1000",
        "more than tiles.max_lost_share=0.01 of its area cannot be read",
    ]
    assert TILES.read(out / "index.parquet")["slide_id"].unique().tolist() == ["s0", "s2", "s4"]
    again = run(folder, "again", cohort=COHORT.model_copy(update={"max_quarantined_share": 0.5}))
    assert contents(again) == contents(out)


FAILS = (
    r"^1 of 5 slides could not be read for causes of the machine, and not of the slides, each tried"
    r" twice. All others are done, and what was finished is kept:"
    r" mend the causes, or take these slides out of the manifest, and run the same command again:\n"
    r"  s3: "
)


def hangs(cutting: Cutting) -> int:
    """As `cut`, but one slide hangs in a read."""
    if cutting.slide_id == "s3":
        with one_read():
            time.sleep(60)
    return cut(cutting)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("slide_seconds", "it took longer than 4 s and was given up; raise tiles.slide_seconds$"),
        (
            "read_seconds",
            "one read took longer than 4 s and was given up; raise tiles.read_seconds$",
        ),
    ],
)
def test_a_slide_that_hangs_fails_the_stage_after_all_others_are_kept(
    folder, monkeypatch, limit, reason
):
    monkeypatch.setattr("hnm.loop.tiles.cut", hangs)
    with pytest.raises(MachineError, match=FAILS + reason):
        run(folder, tiles=TILES_SECTION.model_copy(update={limit: 4.0}))
    assert not (folder / "out").exists()
    finished = kept(folder)
    assert len(finished) == 4
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HNM_STORE", str(folder / "store"))
    assert sorted(path.name for path in (run(folder) / "packs").iterdir()) == [
        f"s{i}.h5" for i in range(5)
    ]
    assert finished.items() <= kept(folder).items()


def test_a_slide_that_was_replaced_since_the_cohort_is_not_kept_under_its_key(folder, tiny):
    """Cut under the old fingerprint, it would be taken for the old slide for ever."""
    tiny.aperio(
        folder / "in" / "s3.svs", tiny.painted(128, 384, (32, 32, 96, 64, tiny.STROMA), seed=9)
    )
    with pytest.raises(
        MachineError,
        match=FAILS + r"s3.svs changed since its fingerprint was taken, and nothing of it is kept",
    ):
        run(folder)
    assert len(kept(folder)) == 4
    refresh(folder)  # as the stage cohort does
    index = TILES.read(run(folder) / "index.parquet")
    assert index.groupby("slide_id").size().to_dict() == {
        "s0": 2,
        "s1": 4,
        "s2": 6,
        "s3": 6,
        "s4": 10,
    }


def test_a_disk_that_is_full_for_one_pack_is_no_fault_of_its_slide(folder, monkeypatch):
    monkeypatch.setattr("hnm.loop.tiles.cut", disk_full_for_s3)
    with pytest.raises(MachineError, match=FAILS + r".*No space left on device; free some room"):
        run(folder)
    assert len(kept(folder)) == 4


def disk_full_for_s3(cutting: Cutting) -> int:
    os.environ["HNM_FAILPOINT"] = "whole.syncing=ENOSPC" if cutting.slide_id == "s3" else ""
    return cut(cutting)


def test_a_mask_from_elsewhere_replaces_the_classical_one(folder):
    """Polygons give s1 the tile at (96, 0) alone; s2's mask is broken; a changed mask cuts its own
    slide again.
    """
    run(folder)
    known = kept(folder)
    table = SLIDES.read(folder / "cohort" / "slides.parquet").set_index("slide_id")
    square = [[[96, 0], [128, 0], [128, 32], [96, 32], [96, 0]]]
    (folder / "in" / "m.geojson").write_text(
        json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square}})
    )
    (folder / "in" / "broken.png").write_text("no image")
    table.loc["s1", ["mask", "mask_digest"]] = ["m.geojson", digest_of(folder / "in" / "m.geojson")]
    table.loc["s2", ["mask", "mask_digest"]] = [
        "broken.png",
        digest_of(folder / "in" / "broken.png"),
    ]
    SLIDES.write(table.reset_index(), folder / "cohort" / "slides.parquet")
    out = run(folder)
    index = TILES.read(out / "index.parquet")
    assert index.loc[index["slide_id"] == "s1", ["x", "y"]].to_numpy().tolist() == [[96, 0]]
    reason = (
        "its mask broken.png cannot be read: it is no image (PNG, TIFF, JPEG), or not a whole one"
        " (UnidentifiedImageError); correct the manifest's column mask, or --mask"
    )
    assert QUARANTINE.read(out / "quarantine.csv").to_numpy().tolist()[1:] == [
        ["s2", "tissue", reason]
    ]
    before = kept(folder)
    (folder / "in" / "m.geojson").write_text((folder / "in" / "m.geojson").read_text() + "\n")
    table.loc["s1", "mask_digest"] = digest_of(folder / "in" / "m.geojson")
    SLIDES.write(table.reset_index(), folder / "cohort" / "slides.parquet")
    run(folder)
    assert known.items() <= before.items() <= kept(folder).items()
    assert len(kept(folder)) == len(before) + 1


def test_too_many_bad_slides_stop_the_stage(folder, tiny):
    tiny.aperio(folder / "in" / "s1.svs", tiny.painted(128, 384, seed=1))
    refresh(folder)
    message = (
        r"2 of 6 slides are in quarantine, more than cohort.max_quarantined_share=0.2 allows:\n"
        r"  gone: gone.svs does not exist\n  s1: it has no tissue of at least"
        r" tissue.min_area_um2=1000"
    )
    with pytest.raises(CohortError, match=message):
        run(folder, cohort=COHORT.model_copy(update={"max_quarantined_share": 0.2}))


def test_a_pack_that_was_damaged_in_the_store_is_made_again(folder):
    known = contents(run(folder))
    damaged = sorted((folder / "store").rglob("*.h5"))[2]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert contents(run(folder)) == known


def test_a_killed_stage_resumes(folder):
    """Killed after its first slide, the stage leaves no output, keeps that slide, and no worker
    goes on.
    """
    for number in range(5, 14):
        shutil.copy(folder / "in" / f"s{number % 5}.svs", folder / "in" / f"s{number}.svs")
    refresh(folder)
    params = (ROOT / "params.yaml").read_text()
    for old, new in (
        ("data/demo/slides.csv", "in/slides.csv"),
        ("min_area_um2: 10000.0", "min_area_um2: 1000.0"),
        ("tile_px: 96", "tile_px: 32"),
    ):
        assert old in params
        params = params.replace(old, new)
    (folder / "params.yaml").write_text(params)
    paths = {
        "slides": "cohort/slides.parquet",
        "unopened": "cohort/quarantine.csv",
        "packs": "o/packs",
        "pack-digests": "o/packs.csv",
        "index": "o/index.parquet",
        "quarantine": "o/q.csv",
    }
    command = [
        sys.executable,
        "-m",
        "pipelines.tiles",
        *(part for flag, path in paths.items() for part in (f"--{flag}", path)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HNM_WORKERS": "1", "HNM_TRACKING": "off"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as stage:
        assert stage.stdout is not None
        assert "1/14" in stage.stdout.readline()
        stage.send_signal(signal.SIGKILL)
    first = kept(folder)
    assert 1 <= len(first) < 14
    assert not (folder / "o").exists()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    assert len(TILES.read(folder / "o/index.parquet")["slide_id"].unique()) == 14
    assert first.items() <= kept(folder).items()
