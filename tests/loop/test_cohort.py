import csv
import hashlib
import json
from pathlib import Path

import pytest

from hnm.errors import CohortError
from hnm.loop.cohort import check_cohort
from hnm.loop.paths import CohortFiles
from hnm.params import Cohort, Split
from hnm.slides.annotations import read_annotation
from hnm.tables import LABELS, PATIENTS, QUARANTINE, SLIDES

COHORT = Cohort(name="c", manifest="in/slides.csv", max_quarantined_share=0.3)
COLUMNS = ("slide_id", "path", "label", "patient_id", "split", "mpp", "annotation", "mask")
OUTPUTS = (
    "slides.parquet",
    "patients.csv",
    "labels/train.csv",
    "labels/validation.csv",
    "labels/test.csv",
    "annotations",
    "quarantine.csv",
)


@pytest.fixture
def rows(tmp_path, tiny, monkeypatch):
    """Twelve slides, four a split, half of them positive; the manifest's rows by slide id."""
    monkeypatch.chdir(tmp_path)
    rows = {}
    for number in range(12):
        slide_id = f"s{number:02d}"
        tiny.aperio(
            tmp_path / "in" / f"{slide_id}.svs", tiny.painted(80, 100, seed=number), mpp=0.5
        )
        rows[slide_id] = {
            "slide_id": slide_id,
            "path": f"{slide_id}.svs",
            "label": number % 2,
            "split": ("train", "validation", "test")[number // 4],
        }
    return rows


def run(rows, out: Path, section: Cohort = COHORT) -> Path:
    with Path("in/slides.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, restval="")
        table.writeheader()
        table.writerows(rows.values() if isinstance(rows, dict) else rows)
    files = CohortFiles(*(out / name for name in OUTPUTS))
    check_cohort(files, cohort=section, split=Split())
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_checked_cohort(rows, tmp_path):
    rows["s02"] |= {"patient_id": "p", "mpp": 0.25}
    rows["s03"] |= {"patient_id": "p"}
    out = run(rows, tmp_path / "out")
    slides = SLIDES.read(out / "slides.parquet").set_index("slide_id")
    assert list(slides.index) == sorted(rows)
    assert slides.loc["s02"].drop("fingerprint").to_dict() == {
        "path": "s02.svs", "patient_id": "p", "split": "train", "vendor": "aperio",
        "mpp_x": 0.25, "mpp_y": 0.25, "width": 100, "height": 80,
        "bounds_x": 0, "bounds_y": 0, "bounds_width": 100, "bounds_height": 80,
        "origin": "auto", "mask": "", "mask_digest": "",
    }  # fmt: skip
    assert slides.loc["s05", ["patient_id", "split", "mpp_x"]].tolist() == [
        "s05",
        "validation",
        0.5,
    ]
    assert slides["fingerprint"].is_unique
    assert (
        PATIENTS.read(out / "patients.csv").set_index("slide_id")["patient_id"].to_dict()
        == slides["patient_id"].to_dict()
    )
    assert LABELS.read(out / "labels/validation.csv").to_numpy().tolist() == [
        ["s04", 0],
        ["s05", 1],
        ["s06", 0],
        ["s07", 1],
    ]
    assert LABELS.read(out / "labels/test.csv")["slide_id"].tolist() == ["s08", "s09", "s10", "s11"]
    assert QUARANTINE.read(out / "quarantine.csv").empty
    assert (out / "annotations").is_dir()
    assert list((out / "annotations").iterdir()) == []


def test_equal_input_gives_equal_bytes(rows, tmp_path, monkeypatch):
    rows["s00"]["path"] = "gone.svs"
    monkeypatch.setenv("HNM_WORKERS", "1")
    known = contents(run(rows, tmp_path / "a"))
    monkeypatch.setenv("HNM_WORKERS", "3")
    assert contents(run(list(rows.values())[::-1], tmp_path / "b")) == known


def test_a_changed_slide_changes_its_own_row_only(rows, tmp_path, tiny):
    before = SLIDES.read(run(rows, tmp_path / "a") / "slides.parquet")
    tiny.aperio(tmp_path / "in" / "s07.svs", tiny.painted(80, 100, seed=99), mpp=0.5)
    after = SLIDES.read(run(rows, tmp_path / "b") / "slides.parquet")
    changed = (before != after).any(axis=1)
    assert before.loc[changed, "slide_id"].tolist() == ["s07"]


def test_bad_slides_go_to_quarantine_and_the_others_go_on(rows, tmp_path, tiny, capsys):
    (tmp_path / "in" / "s02.svs").write_text("no slide")
    tiny.aperio(tmp_path / "in" / "s05.svs", tiny.painted(80, 100, seed=5), mpp=None)
    rows["s08"]["path"] = "gone.svs"
    out = run(rows, tmp_path / "out")
    assert QUARANTINE.read(out / "quarantine.csv").to_numpy().tolist() == [
        ["s02", "open", "s02.svs is no slide that OpenSlide can read"],
        [
            "s05",
            "mpp",
            (
                "its file states no µm per pixel; give them in the manifest's column mpp, or by hnm"
                " predict --mpp, or set cohort.mpp_from_objective: its objective has power 20"
            ),
        ],
        ["s08", "open", "gone.svs does not exist"],
    ]
    assert len(SLIDES.read(out / "slides.parquet")) == 9
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told[:12]] == [f"{number}/12" for number in range(1, 13)]
    assert {"s08: gone.svs does not exist", "s03: 100 x 80 pixels of 0.5 µm"} < {
        line.partition(" ")[2] for line in told
    }
    assert told[12] == "12 slides found, 9 opened, 3 in quarantine"
    assert (
        told[13] == "12 slides name no patient, or themselves: each counts as a patient of its own"
    )
    assert [
        LABELS.read(out / f"labels/{split}.csv")["slide_id"].tolist()
        for split in ("train", "validation", "test")
    ] == [
        ["s00", "s01", "s03"],
        ["s04", "s06", "s07"],
        ["s09", "s10", "s11"],
    ]


def test_too_many_bad_slides_stop_the_stage(rows, tmp_path):
    rows["s02"]["path"] = rows["s09"]["path"] = "gone.svs"
    rows["s09"]["path"] = "lost.svs"
    message = (
        r"2 of 12 slides are in quarantine, more than cohort.max_quarantined_share=0.1 allows:\n "
        r" s02: gone.svs does not exist\n  s09: lost.svs does not exist"
    )
    with pytest.raises(CohortError, match=message):
        run(rows, tmp_path / "out", COHORT.model_copy(update={"max_quarantined_share": 0.1}))


def test_a_split_that_loses_a_class_stops_the_stage(rows, tmp_path):
    for slide_id in ("s04", "s06"):
        (tmp_path / "in" / f"{slide_id}.svs").unlink()
    with pytest.raises(
        CohortError,
        match=r"without the slides in quarantine: split validation has only slides of label 1",
    ):
        run(rows, tmp_path / "out")


def test_copies_of_a_slide_stop_the_stage(rows, tmp_path):
    (tmp_path / "in" / "s09.svs").write_bytes((tmp_path / "in" / "s03.svs").read_bytes())
    with pytest.raises(CohortError, match="slides s03 and s09 are copies of one file"):
        run(rows, tmp_path / "out")


def test_annotations_are_normalised(rows, tmp_path):
    square = {
        "type": "Polygon",
        "coordinates": [[[10, 10], [30, 10], [30, 25], [10, 25], [10, 10]]],
    }
    feature = {
        "type": "Feature",
        "id": "x",
        "geometry": square,
        "properties": {"classification": {"name": "tumour", "color": [1, 2, 3]}, "date": "today"},
    }
    (tmp_path / "in" / "a.geojson").write_text(json.dumps([feature]))
    rows["s01"]["annotation"] = rows["s03"]["annotation"] = "a.geojson"
    rows["s03"]["path"] = "gone.svs"
    out = run(rows, tmp_path / "out")
    assert [path.name for path in (out / "annotations").iterdir()] == ["s01.geojson"]
    (written,) = json.loads((out / "annotations" / "s01.geojson").read_text())["features"]
    assert written["properties"] == {"classification": {"name": "tumour"}}
    assert sorted(written["geometry"]["coordinates"][0][:-1]) == [
        [10, 10],
        [10, 25],
        [30, 10],
        [30, 25],
    ]
    run({slide_id: {**row, "annotation": ""} for slide_id, row in rows.items()}, tmp_path / "out")
    assert list((out / "annotations").iterdir()) == []


def test_an_annotation_of_another_slide_is_refused(rows, tmp_path):
    square = {
        "type": "Polygon",
        "coordinates": [[[1000, 10], [3000, 10], [3000, 25], [1000, 25], [1000, 10]]],
    }
    (tmp_path / "in" / "a.geojson").write_text(
        json.dumps(
            {
                "type": "Feature",
                "geometry": square,
                "properties": {"classification": {"name": "tumour"}},
            }
        )
    )
    rows["s01"]["annotation"] = "a.geojson"
    with pytest.raises(
        CohortError,
        match=(
            r"a.geojson, feature 1 \(tumour\) lies at x 1000 to 3000, y 10 to 25, 900 pixels"
            r" outside the scan of slide s01"
        ),
    ):
        run(rows, tmp_path / "out")


@pytest.fixture
def mirax_rows(rows, tmp_path, tiny):
    """The twelve slides, of which s01, s03 and s05 are of MIRAX: their scan of 128 x 64 pixels
    begins at x 128, y 64 of level 0.
    """
    for slide_id in ("s01", "s03", "s05"):
        tiny.mirax(
            tmp_path / "in" / f"{slide_id}.mrxs",
            tiny.painted(64, 128, seed=int(slide_id[1:])),
            mpp=0.5,
        )
        rows[slide_id]["path"] = f"{slide_id}.mrxs"
    return rows


def annotate(rows, slide_id: str, x: int, y: int, **members) -> None:
    """Draws a square of 20 pixels at (x, y) of whatever the file counts from."""
    square = {
        "type": "Polygon",
        "coordinates": [[[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20], [x, y]]],
    }
    feature = {
        "type": "Feature",
        "geometry": square,
        "properties": {"objectType": "annotation", "classification": {"name": "tumour"}},
    }
    identifier = members.pop("id", None)
    features = [{**feature, "id": identifier} if identifier else feature]
    Path("in", f"{slide_id}.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": features, **members})
    )
    rows[slide_id]["annotation"] = f"{slide_id}.geojson"


def corners_of(out: Path) -> dict[str, tuple[float, float]]:
    """The upper left corner of each slide's region, as `evaluate` reads it."""
    return {
        path.stem: read_annotation(path)[0].geometry.bounds[:2]
        for path in sorted((out / "annotations").iterdir())
    }


def test_the_table_holds_where_the_scan_lies_and_annotations_come_out_in_level_0(
    mirax_rows, tmp_path, caplog
):
    """A square at (10, 30) of the scan is at (138, 94) of level 0, whoever says so; a slide without
    bounds keeps its own.
    """
    annotate(mirax_rows, "s01", 10, 30, hnm_origin="bounds")
    annotate(mirax_rows, "s03", 138, 94, hnm_origin="level_0")
    annotate(mirax_rows, "s05", 10, 30)
    annotate(mirax_rows, "s07", 10, 30)
    out = run(mirax_rows, tmp_path / "out", COHORT.model_copy(update={"origin": "bounds"}))
    slides = SLIDES.read(out / "slides.parquet").set_index("slide_id")
    columns = ["width", "height", "bounds_x", "bounds_y", "bounds_width", "bounds_height", "origin"]
    assert slides.loc["s01", columns].tolist() == [320, 256, 128, 64, 128, 64, "bounds"]
    assert corners_of(out) == {
        "s01": (138, 94),
        "s03": (138, 94),
        "s05": (138, 94),
        "s07": (10, 30),
    }
    assert json.loads((out / "annotations" / "s05.geojson").read_text())["hnm_origin"] == "level_0"
    assert not caplog.records


def test_annotations_that_do_not_say_what_they_count_from_are_told(mirax_rows, tmp_path, caplog):
    annotate(mirax_rows, "s01", 138, 94)
    annotate(mirax_rows, "s03", 10, 30, id="6c1f9a52-5a0e-4e0f-9a3f-0d1c2b3a4f5e")
    annotate(
        mirax_rows, "s05", 118, 94, hnm_origin="level_0"
    )  # 10 of its 20 pixels lie left of the scan
    annotate(mirax_rows, "s07", 10, 30)
    out = run(mirax_rows, tmp_path / "out")
    assert corners_of(out) == {
        "s01": (138, 94),
        "s03": (138, 94),
        "s05": (118, 94),
        "s07": (10, 30),
    }
    beyond, nothing, qupath = (record.getMessage() for record in caplog.records)
    assert (
        "s05.geojson, feature 1 (tumour) reaches 10 pixels beyond the scan of slide s05, with 50%"
        " of its box" in beyond
    )
    assert nothing.startswith(
        "files of kind annotation do not say what they count from, and were read as level-0"
        " pixels; "
    )
    assert "s01 (128, 64). Say which it is: set cohort.origin" in nothing
    assert qupath.startswith(
        "files of kind annotation look as QuPath exports them, and were read as counting from their"
        " slide's bounds"
    )
    assert "s03 (128, 64)" in qupath


def test_an_annotation_that_lies_in_the_scan_from_the_other_origin_is_refused_with_the_cure(
    mirax_rows, tmp_path
):
    annotate(mirax_rows, "s01", 10, 30)
    message = (
        r"s01.geojson, feature 1 \(tumour\) lies at x 10 to 30, y 30 to 50, 98 pixels outside the"
        r" scan of slide s01, which has x 128 to 256, y 64 to 128 of"
        r" level 0; counted from bounds it lies in the scan: set cohort.origin \(of hnm predict"
        r" --origin\) to bounds"
    )
    with pytest.raises(CohortError, match=message):
        run(mirax_rows, tmp_path / "out")


def test_masks_that_do_not_say_what_they_count_from_are_told(mirax_rows, tmp_path, caplog):
    annotate(mirax_rows, "s01", 138, 94)
    annotate(mirax_rows, "s03", 10, 30, hnm_origin="bounds")
    annotate(
        mirax_rows, "s05", 118, 94, hnm_origin="level_0"
    )  # 10 of its 20 pixels lie left of the scan
    for slide_id in ("s01", "s03", "s05"):
        mirax_rows[slide_id] |= {"mask": mirax_rows[slide_id]["annotation"], "annotation": ""}
    run(mirax_rows, tmp_path / "out")
    beyond, message = (record.getMessage() for record in caplog.records)
    assert (
        "mask s05.geojson, feature 1 (tumour) reaches 10 pixels beyond the scan of slide s05"
        in beyond
    )
    assert (
        message.startswith("files of kind mask do not say what they count from")
        and ": s01 (128, 64). Say" in message
    )


def test_masks_from_elsewhere(rows, tmp_path):
    rows["s01"]["mask"], rows["s03"]["mask"] = "masks/m.png", "masks/none.png"
    (tmp_path / "in" / "masks").mkdir()
    (tmp_path / "in" / "masks" / "m.png").write_bytes(b"mask")
    out = run(rows, tmp_path / "out")
    slides = SLIDES.read(out / "slides.parquet").set_index("slide_id")
    assert slides.loc["s01", ["mask", "mask_digest"]].tolist() == [
        "masks/m.png",
        hashlib.sha256(b"mask").hexdigest(),
    ]
    assert slides.loc["s00", ["mask", "mask_digest"]].tolist() == ["", ""]
    reason = "its mask none.png does not exist; correct the manifest's column mask, or --mask"
    assert QUARANTINE.read(out / "quarantine.csv").to_numpy().tolist() == [
        ["s03", "tissue", reason]
    ]


def test_a_slide_may_take_its_mpp_from_its_objective_power(rows, tmp_path, tiny, capsys):
    tiny.aperio(tmp_path / "in" / "s05.svs", tiny.painted(80, 100, seed=5), mpp=None, power=40)
    slides = SLIDES.read(
        run(rows, tmp_path / "out", COHORT.model_copy(update={"mpp_from_objective": True}))
        / "slides.parquet"
    ).set_index("slide_id")
    assert slides.loc["s05", ["mpp_x", "mpp_y"]].tolist() == [0.25, 0.25]
    assert "s05: 0.25 µm per pixel, from its objective power 40\n" in capsys.readouterr().out


def test_a_manifest_without_splits_is_split(rows, tmp_path):
    for row in rows.values():
        del row["split"]
    with Path("in/slides.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ("slide_id", "path", "label"))
        table.writeheader()
        table.writerows(rows.values())
    check_cohort(
        CohortFiles(*(tmp_path / "out" / name for name in OUTPUTS)),
        cohort=COHORT,
        split=Split(validation_share=0.3, test_share=0.2),
    )
    assert [
        len(LABELS.read(tmp_path / "out" / f"labels/{split}.csv"))
        for split in ("train", "validation", "test")
    ] == [6, 4, 2]
