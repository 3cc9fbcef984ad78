import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hnm.errors import CohortError, MachineError
from hnm.files import digest_of
from hnm.params import Cohort, Tiles, Tissue
from hnm.slides.cutting.cut import layouts_of
from hnm.slides.cutting.preview import (
    OUTLINE,
    TILE,
    TOO_LITTLE,
    Sitting,
    preview_cohort,
    preview_slide,
)
from hnm.slides.reading.reader import OpenSlideReader
from hnm.tables import SLIDES

SECTIONS = {
    "cohort": Cohort(name="c", manifest="slides.csv"),
    "tissue": Tissue(mpp=8.0, min_area_um2=1000.0),
    "tiles": Tiles(mpp=1.0, tile_px=32),
}


@pytest.fixture
def table(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.aperio(tmp_path / "a.svs", tiny.painted(256, 320, (64, 96, 128, 64, tiny.STROMA)))
    tiny.aperio(tmp_path / "blank.svs", tiny.painted(256, 320))
    rows = []
    for slide_id in ("blank", "a"):
        with OpenSlideReader(tmp_path / f"{slide_id}.svs") as slide:
            rows.append(
                (
                    slide_id,
                    f"{slide_id}.svs",
                    slide_id,
                    "train",
                    "aperio",
                    1.0,
                    1.0,
                    320,
                    256,
                    0,
                    0,
                    320,
                    256,
                    "auto",
                    slide.fingerprint(),
                    "",
                    "",
                )
            )
    SLIDES.write(pd.DataFrame(rows, columns=list(SLIDES.columns)), tmp_path / "slides.parquet")
    return tmp_path / "slides.parquet"


def test_a_preview_shows_the_mask_and_the_tiles(table, tmp_path):
    paths = preview_cohort(table, ["a"], tmp_path / "out", **SECTIONS)
    assert [path.name for path in paths] == ["a.png", "contact_sheet.png"]
    picture = np.asarray(Image.open(paths[0]))
    assert picture.shape == (256, 320, 3)  # as fine as the slide, no finer
    frames = (picture == TILE).all(axis=2)
    assert frames[96, 64:192].all()
    assert frames[96:160, 128].all()
    assert not frames[:90].any()
    assert not frames[:, :60].any()
    outline = (picture == OUTLINE).all(axis=2)
    assert outline.any()
    assert not outline[:80].any()


def test_a_preview_says_how_many_tiles_each_rule_takes(tmp_path, tiny):
    """Tissue is x 78 to 210 and y 104 to 146: 3 x 2 tiles of 32 px hold at least 56 % of it, the 2
    x 2 beside them less than half.
    """
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(256, 320, (78, 104, 132, 42, tiny.STROMA)))
    with OpenSlideReader(path) as slide:
        row = (
            "a",
            "a.svs",
            "a",
            "train",
            "aperio",
            1.0,
            1.0,
            320,
            256,
            0,
            0,
            320,
            256,
            "auto",
            slide.fingerprint(),
            "",
            "",
        )
    table = pd.DataFrame([row], columns=list(SLIDES.columns))
    [layout] = layouts_of(table, tmp_path, Tissue(mpp=1.0, min_area_um2=1000.0), SECTIONS["tiles"])
    caption = preview_slide(Sitting(layout, tmp_path / "a.png")).caption
    assert (
        " ".join(caption)
        == "a: 6 tiles of a grid of 80, 4 with too little tissue, 70 with none; 0.0 mm2 of tissue"
    )
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    framed = (picture == TOO_LITTLE).all(axis=2)
    assert framed[96, 64:95].all() and framed[96, 194:224].all()
    assert not framed[:, 100:190].any()


def test_a_slide_that_cannot_be_cut_is_shown_bare(table, tmp_path):
    paths = preview_cohort(table, None, tmp_path / "out", **SECTIONS)
    assert sorted(path.name for path in paths) == ["a.png", "blank.png", "contact_sheet.png"]
    assert not (np.asarray(Image.open(tmp_path / "out" / "blank.png")) == TILE).all(axis=2).any()


def test_a_mask_from_elsewhere_is_shown(table, tmp_path):
    square = {
        "type": "Polygon",
        "coordinates": [[[0, 192], [64, 192], [64, 256], [0, 256], [0, 192]]],
    }
    (tmp_path / "m.geojson").write_text(json.dumps({"type": "Feature", "geometry": square}))
    SLIDES.write(
        SLIDES.read(table).assign(mask="m.geojson", mask_digest=digest_of(tmp_path / "m.geojson")),
        table,
    )
    paths = preview_cohort(table, ["blank"], tmp_path / "out", **SECTIONS)
    frames = (np.asarray(Image.open(paths[0])) == TILE).all(axis=2)
    assert frames[192, :64].all()
    assert frames[192:255, 32].all()
    assert not frames[:190].any()
    assert not frames[:, 66:].any()


def test_a_slide_that_changed_is_not_shown(table, tmp_path, tiny):
    tiny.aperio(tmp_path / "a.svs", tiny.painted(256, 320, (64, 96, 128, 64, tiny.NUCLEI)))
    with pytest.raises(
        MachineError,
        match=(
            r"1 of 2 slides could not be read .*\n  a: a.svs changed since its fingerprint was"
            r" taken"
        ),
    ):
        preview_cohort(table, None, tmp_path / "out", **SECTIONS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["blank.png"]


def test_an_unknown_slide(table, tmp_path):
    with pytest.raises(
        CohortError, match=r"slide_id=x is not in .*slides.parquet; it may be in quarantine"
    ):
        preview_cohort(table, ["a", "x"], tmp_path / "out", **SECTIONS)
