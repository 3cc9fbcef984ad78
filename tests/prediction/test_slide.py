import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hnm.errors import PredictionError, SlideError
from hnm.params import Compute
from hnm.prediction.files import PREDICTIONS, write_predictions
from hnm.prediction.model import read_model
from hnm.prediction.reading import OVERVIEW_PX, Reading, read_slide
from hnm.prediction.slide import Prediction, Refusal, machine_of, predict_slides
from hnm.slides.annotations import read_annotation
from hnm.slides.cutting.pack import Pack
from hnm.tables import TILE_SCORES
from tests.support import model as tiny_model


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny):
    """Four files, of which one can be predicted, and what is written of them."""
    folder = tmp_path_factory.mktemp("predict")
    tissue = tiny.painted(128, 384, (32, 32, 96, 64, tiny.STROMA))
    paths = [
        tiny.aperio(folder / "good one.svs", tissue),
        tiny.aperio(folder / "no_mpp.svs", tissue, mpp=None),
        tiny.aperio(folder / "glass.svs", tiny.painted(128, 384)),
        folder / "nowhere.svs",
    ]
    lines: list[str] = []
    model = read_model(tiny_model.make_model(folder), "round 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HNM_WORKERS", "1")
        patch.setenv(
            "HNM_EXECUTOR", "slurm"
        )  # a cluster's nodes would not see the packs of a prediction: it stays here
        write_predictions(model, list(map(str, paths)), folder / "out", say=lines.append)
    return folder / "out", model, lines, paths


def test_each_slide_has_its_row_and_those_that_cannot_be_used_their_reason(written):
    out, model, lines, paths = written
    table = PREDICTIONS.read(out / "predictions.csv").set_index("slide_id")
    assert list(table.index) == ["glass", "good_one", "no_mpp", "nowhere"]
    assert table["step"].fillna("").to_dict() == {
        "glass": "tissue",
        "good_one": "",
        "no_mpp": "mpp",
        "nowhere": "open",
    }
    assert table.loc["no_mpp", "reason"] == (
        "its file states no µm per pixel; give them in the manifest's column mpp, or by hnm predict"
        " --mpp, or set cohort.mpp_from_objective: its objective has power 20"
    )
    assert table.loc["nowhere", "reason"] == "nowhere.svs does not exist"
    assert table["score"].isna().to_dict() == {
        "glass": True,
        "good_one": False,
        "no_mpp": True,
        "nowhere": True,
    }
    good = table.loc["good_one"]
    assert (good["source"], good["tiles"], good["mpp"], good["threshold"]) == (
        str(paths[0]),
        6,
        1.0,
        0.375,
    )
    assert good["called"] == ("positive" if good["score"] >= 0.375 else "negative")
    assert set(table["model_digest"]) == {model.digest}
    assert sum("not predicted" in line for line in lines) == 3 and len(lines) == 4


def test_the_json_tells_of_which_data_the_model_was_made(written):
    out, model, _, _ = written
    story = json.loads((out / "predictions.json").read_text())
    assert story["model"]["versions"] == {"data/mined/1/mined.parquet": "0f" * 16}
    assert (story["model"]["name"], story["model"]["digest"], story["model"]["commit"]) == (
        "round 1",
        model.digest,
        "c0ffee",
    )
    assert (
        story["slides"][0]["reason"].startswith("it has no tissue")
        and story["slides"][0]["score"] is None
    )


def test_each_predicted_slide_has_its_files_and_no_other(written):
    out, _, _, _ = written
    assert {path.name for path in out.iterdir()} == {
        "predictions.csv",
        "predictions.json",
        "good_one.png",
        "good_one.geojson",
        "good_one.tiles.parquet",
    }
    tiles = TILE_SCORES.read(out / "good_one.tiles.parquet")
    assert list(zip(tiles["x"], tiles["y"], strict=True)) == [
        (x, y) for y in (32, 64) for x in (32, 64, 96)
    ]
    assert Image.open(out / "good_one.png").size == (384, 128)
    regions = read_annotation(out / "good_one.geojson")
    assert [region.name for region in regions if region.name == "top tile"] == ["top tile"] * 6


def test_a_prediction_does_not_depend_on_what_is_predicted_beside_it(written, monkeypatch):
    out, model, _, paths = written
    monkeypatch.setenv("HNM_WORKERS", "1")
    (alone,) = predict_slides(model, {"good_one": str(paths[0])})
    assert isinstance(alone, Prediction)
    assert (
        alone.score
        == PREDICTIONS.read(out / "predictions.csv").set_index("slide_id").loc["good_one", "score"]
    )
    pd.testing.assert_frame_equal(
        TILE_SCORES.check(alone.tiles, "alone"), TILE_SCORES.read(out / "good_one.tiles.parquet")
    )


def test_a_mask_says_where_the_tissue_is(written, tmp_path):
    _, model, _, paths = written
    left = Image.fromarray(
        np.repeat(np.array([[1] * 6 + [0] * 6], np.uint8), 4, axis=0)
    )  # the slide is 384 x 128, its tissue 32 to 128 x 32 to 96
    left.save(tmp_path / "left.png")
    (masked,) = predict_slides(model, {"good_one": str(paths[0])}, mask=tmp_path / "left.png")
    (whole,) = predict_slides(model, {"good_one": str(paths[0])})
    assert isinstance(masked, Prediction) and isinstance(whole, Prediction)
    assert set(masked.tiles["x"]) == {0, 32, 64, 96, 128, 160} and set(whole.tiles["x"]) == {
        32,
        64,
        96,
    }


def test_a_slide_with_bounds(written, tmp_path, tiny):
    """Tissue at x 64 to 128, y 64 to 128 of a scan that begins at x 128, y 64 of level 0: tables
    count from level 0, what QuPath reads from the scan.
    """
    _, model, _, _ = written
    slide = tiny.mirax(
        tmp_path / "m.mrxs", tiny.painted(192, 256, (64, 64, 64, 64, tiny.STROMA)), before=(2, 1)
    )
    write_predictions(model, [str(slide)], tmp_path / "out", say=lambda line: None)
    tiles = TILE_SCORES.read(tmp_path / "out" / "m.tiles.parquet")
    assert list(zip(tiles["x"], tiles["y"], strict=True)) == [
        (192, 128),
        (224, 128),
        (192, 160),
        (224, 160),
    ]
    drawn = json.loads((tmp_path / "out" / "m.geojson").read_text())
    corners = {
        tuple(feature["geometry"]["coordinates"][0][0])
        for feature in drawn["features"]
        if feature["properties"]["name"].startswith("tile")
    }
    assert (drawn["hnm_origin"], corners) == ("bounds", {(64, 64), (96, 64), (64, 96), (96, 96)})


def test_what_a_mask_counts_from(written, tmp_path, tiny, caplog):
    """Two tiles, at x 64 to 128, y 64 to 96 of a scan that begins at x 128, y 64 of level 0."""
    _, model, _, _ = written
    slide = tiny.mirax(
        tmp_path / "m.mrxs", tiny.painted(192, 256, (64, 64, 64, 64, tiny.STROMA)), before=(2, 1)
    )
    for name, (x, y) in (("scan", (64, 64)), ("level_0", (192, 128))):
        square = {
            "type": "Polygon",
            "coordinates": [[[x, y], [x + 64, y], [x + 64, y + 32], [x, y + 32], [x, y]]],
        }
        (tmp_path / f"{name}.geojson").write_text(
            json.dumps([{"type": "Feature", "geometry": square, "properties": {}}])
        )
    mask = tmp_path / "scan.geojson"
    (masked,) = predict_slides(model, {"m": str(slide)}, mask=mask, origin="bounds")
    assert isinstance(masked, Prediction)
    assert list(zip(masked.tiles["x"], masked.tiles["y"], strict=True)) == [(192, 128), (224, 128)]
    assert not caplog.records
    (refused,) = predict_slides(model, {"m": str(slide)}, mask=mask)
    assert isinstance(refused, Refusal)
    assert str(refused.error).endswith(
        "counted from bounds it lies in the scan: set cohort.origin (of hnm predict --origin) to"
        " bounds"
    )
    (unsaid,) = predict_slides(model, {"m": str(slide)}, mask=tmp_path / "level_0.geojson")
    assert isinstance(unsaid, Prediction)
    pd.testing.assert_frame_equal(unsaid.tiles, masked.tiles)
    (message,) = (record.getMessage() for record in caplog.records)
    assert (
        message.startswith("files of kind mask do not say what they count from")
        and "m (128, 64)" in message
    )


def test_a_mask_that_is_not_there_or_of_no_one_slide_is_refused(written, tmp_path):
    _, model, _, paths = written
    slides = {path.stem: str(path) for path in paths}
    with pytest.raises(
        PredictionError,
        match=r"--mask .*none.png is no file; name GeoJSON or an image of the slide's tissue",
    ):
        next(predict_slides(model, {"good_one": str(paths[0])}, mask=tmp_path / "none.png"))
    with pytest.raises(
        PredictionError,
        match=(
            r"--mask m.png is of one slide, but 4 are named; predict the slides with masks one"
            r" by one"
        ),
    ):
        next(predict_slides(model, slides, mask=Path("m.png")))


def reading(path: Path, **changes) -> Reading:
    settings = {
        "mpp": None,
        "mpp_from_objective": False,
        "mask": None,
        "tissue": tiny_model.RECORD["tissue"],
        "tiles": tiny_model.RECORD["tiles"],
    }
    return Reading("s", str(path), **{**settings, "pack": path.with_suffix(".h5"), **changes})


def test_mpp_may_be_given_or_come_from_the_objective(tmp_path, tiny):
    path = tiny.aperio(
        tmp_path / "s.svs",
        tiny.painted(128, 384, (32, 32, 96, 64, tiny.STROMA)),
        mpp=None,
        power=10,
    )
    assert read_slide(reading(path, mpp=0.5)).mpp == (0.5, 0.5)
    pack = Pack(tmp_path / "s.h5")
    assert pack.side == 64
    assert read_slide(reading(path, mpp_from_objective=True)).mpp == (1.0, 1.0)
    with pytest.raises(
        SlideError,
        match=(
            r"400 x 400 µm per pixel are not within 0\.05 and 20; give the true value in the"
            r" manifest's column mpp, or by hnm predict --mpp"
        ),
    ):
        read_slide(reading(path, mpp=400.0))


def test_the_overview_is_no_larger_than_its_limit(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "s.svs", tiny.painted(256, 2400, (32, 32, 96, 64, tiny.STROMA)))
    assert read_slide(reading(path)).overview.pixels.shape == (128, OVERVIEW_PX, 3)


def test_a_model_that_was_trained_on_a_gpu_computes_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine_of(Compute(device="cuda", threads=1), None).device.type == "cpu"
    assert machine_of(Compute(device="cuda", threads=1), "cpu").device.type == "cpu"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
