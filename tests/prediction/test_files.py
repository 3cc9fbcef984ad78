"""What `hnm predict` leaves in its folder, whatever ends it, and how it goes on."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hnm.errors import MachineError, PredictionError, SlideError
from hnm.prediction import files
from hnm.prediction.files import PREDICTIONS, write_predictions
from hnm.prediction.model import Model, read_model
from hnm.prediction.reading import SlideRead
from hnm.prediction.slide import Prediction, Refusal, Unchanged
from hnm.slides.cutting.masks import Placement
from hnm.slides.reading.canvas import Box, Canvas
from hnm.slides.reading.slide import Mpp
from hnm.slides.reading.thumbnails import Thumbnail
from hnm.tables import TILE_SCORES
from tests.support import model as tiny_model

SLIDES = ["a.svs", "b.svs", "c.svs"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return read_model(tiny_model.make_model(tmp_path_factory.mktemp("model")), "round 1")


class Slides:
    """Stands for the slides: what each is, and which were looked at, in the place of
    `predict_slides`.
    """

    def __init__(self) -> None:
        self.fingerprints: dict[str, str] = {}
        self.scores: dict[str, float] = {}
        self.fails: Callable[[str], BaseException | None] = lambda slide_id: None
        self.predicted: list[str] = []
        self.origins: list[str] = []

    def __call__(
        self, model: Model, slides: dict[str, str], *, done: dict[str, str], **settings: Any
    ) -> Iterator[Prediction | Refusal | Unchanged]:
        self.origins.append(settings["origin"])
        for slide_id, source in slides.items():
            if error := self.fails(slide_id):
                if isinstance(error, SlideError):
                    yield Refusal(slide_id, source, error)
                    continue
                raise error
            fingerprint = self.fingerprints.get(slide_id, f"of {slide_id}")
            if done.get(slide_id) == fingerprint:
                yield Unchanged(slide_id, source)
                continue
            self.predicted.append(slide_id)
            overview = Thumbnail(
                np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool), 0, 0, (4.0, 4.0), 2.0
            )
            read = SlideRead(
                Mpp(0.1 + 0.2, 0.5),
                fingerprint,
                overview,
                Canvas(32, 32, Box(0, 0, 32, 32)),
                Placement(),
            )
            rows = {
                "slide_id": slide_id,
                "tile": [0],
                "x": [0],
                "y": [0],
                "side": [16],
                "logit": [0.5],
                "score": [0.62],
                "attention": [1.0],
            }
            tiles = pd.DataFrame(rows).astype(
                {name: str(column.dtype) for name, column in TILE_SCORES.columns.items()}
            )
            yield Prediction(
                slide_id, source, self.scores.get(slide_id, 1 / 3), "negative", tiles, read
            )


@pytest.fixture
def slides(monkeypatch: pytest.MonkeyPatch) -> Slides:
    double = Slides()
    monkeypatch.setattr(files, "predict_slides", double)
    return double


def predict(model: Model, folder: Path, *names: str, **settings: Any) -> list[str]:
    lines: list[str] = []
    write_predictions(model, names or SLIDES, folder, say=lines.append, **settings)
    return lines


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_command_predicts_nothing_again_and_changes_nothing(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    predict(model, tmp_path / "out")
    before = content(tmp_path / "out")
    lines = predict(model, tmp_path / "out")
    assert slides.predicted == ["a", "b", "c"] and lines == [
        f"{name}\tdone before\tscore 0.3333" for name in "abc"
    ]
    assert content(tmp_path / "out") == before


def test_a_slide_that_changed_lacks_a_file_or_has_other_settings_is_predicted_again(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    predict(model, tmp_path / "out")
    slides.fingerprints["b"], slides.scores["b"] = "another", 0.75
    (tmp_path / "out" / "c.geojson").unlink()
    predict(model, tmp_path / "out")
    assert slides.predicted == ["a", "b", "c", "b", "c"]
    assert PREDICTIONS.read(tmp_path / "out" / "predictions.csv")["score"].tolist() == [
        1 / 3,
        0.75,
        1 / 3,
    ]
    predict(model, tmp_path / "out", "a.svs", mpp=0.25)
    Image.new("L", (4, 4)).save(tmp_path / "mask.png")
    predict(model, tmp_path / "out", "a.svs", mask=tmp_path / "mask.png")
    Image.new("L", (5, 4)).save(tmp_path / "mask.png")
    predict(model, tmp_path / "out", "a.svs", mask=tmp_path / "mask.png")
    predict(model, tmp_path / "out", "a.svs", mask=tmp_path / "mask.png", origin="bounds")
    predict(model, tmp_path / "out", "a.svs", mask=tmp_path / "mask.png", origin="bounds")
    assert slides.predicted[5:] == ["a", "a", "a", "a"]
    assert slides.origins[-4:] == ["auto", "auto", "bounds", "bounds"]
    assert len(PREDICTIONS.read(tmp_path / "out" / "predictions.csv")) == 3


def test_what_fails_is_tried_again_and_stops_no_other(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    slides.fails = lambda slide_id: (
        SlideError("it is no slide", step="open") if slide_id == "a" else None
    )
    predict(model, tmp_path / "out")
    assert PREDICTIONS.read(tmp_path / "out" / "predictions.csv")["step"].fillna("").tolist() == [
        "open",
        "",
        "",
    ]
    slides.fails = lambda slide_id: None
    predict(model, tmp_path / "out")
    assert slides.predicted == ["b", "c", "a"] and len(list((tmp_path / "out").glob("*.png"))) == 3
    slides.fails = lambda slide_id: (
        SlideError("it is no slide any more", step="open") if slide_id == "a" else None
    )
    predict(model, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["b.png", "c.png"]


@pytest.mark.parametrize(
    "error",
    [
        MachineError("slides b, c: their processes were killed"),
        KeyboardInterrupt(),
        RuntimeError("a defect"),
    ],
)
def test_whatever_ends_it_keeps_what_is_finished(
    model: Model, slides: Slides, tmp_path: Path, error: BaseException
) -> None:
    slides.fails = lambda slide_id: error if slide_id == "b" else None
    with pytest.raises(type(error), match=str(error) or "^$"):
        predict(model, tmp_path / "out")
    table = PREDICTIONS.read(tmp_path / "out" / "predictions.csv")
    assert table["slide_id"].tolist() == ["a"] and table["score"].tolist() == [1 / 3]
    assert [
        slide["slide_id"]
        for slide in json.loads((tmp_path / "out" / "predictions.json").read_text())["slides"]
    ] == ["a"]
    slides.fails = lambda slide_id: None
    predict(model, tmp_path / "out")
    assert slides.predicted == ["a", "b", "c"]


def test_each_row_is_on_the_disk_before_the_next_slide(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    seen = []
    slides.fails = lambda slide_id: (
        seen.append((tmp_path / "out" / "predictions.csv").read_text().count("\n"))
        if slide_id
        else None
    )  # type: ignore[func-returns-value]
    predict(model, tmp_path / "out")
    assert seen == [1, 2, 3]


def test_a_full_disk_costs_the_rows_that_are_not_written(
    model: Model, slides: Slides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNM_FAILPOINT", "predictions.appending=ENOSPC@2")
    with pytest.raises(OSError, match="No space left"):
        predict(model, tmp_path / "out")
    monkeypatch.delenv("HNM_FAILPOINT")
    predict(model, tmp_path / "out")
    assert slides.predicted == ["a", "b", "c"] or slides.predicted == ["a", "b", "b", "c"]


@pytest.mark.parametrize("lost", [1, 10, 40, 150])
def test_a_torn_last_row_is_mended(model: Model, slides: Slides, tmp_path: Path, lost: int) -> None:
    predict(model, tmp_path / "out")
    table = tmp_path / "out" / "predictions.csv"
    whole = table.read_bytes()
    assert len(whole.splitlines()[-1]) > 150
    table.write_bytes(whole[:-lost])
    predict(model, tmp_path / "out")
    assert slides.predicted == ["a", "b", "c", "c"] and table.read_bytes() == whole


def test_predictions_of_another_model_are_refused_and_stay(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    predict(model, tmp_path / "out")
    before = content(tmp_path / "out")
    other = read_model(tiny_model.make_model(tmp_path / "other", threshold=0.5), "round 2")
    message = (
        rf"out holds predictions of another model, round 1 of digest {model.digest[:16]}, not of"
        rf" round 2 of digest {other.digest[:16]}; name another folder"
    )
    with pytest.raises(PredictionError, match=message):
        predict(other, tmp_path / "out")
    assert content(tmp_path / "out") == before and slides.predicted == ["a", "b", "c"]


def test_a_folder_that_holds_other_things_is_refused_and_stays(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_text("a picture of my own")
    with pytest.raises(
        PredictionError,
        match=(
            r"holds other things \(a\.png\) and no predictions\.csv; name a new or empty folder by"
            r" --out"
        ),
    ):
        predict(model, tmp_path)
    assert content(tmp_path) == {"a.png": b"a picture of my own"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "slide_id,score\n",
            (
                r"predictions\.csv is no table of predictions of this version of hnm: its columns"
                r" are not slide_id, source"
            ),
        ),
        ("", r"is no table of predictions of this version of hnm"),
        (
            ",".join(PREDICTIONS.columns) + "\n../../x" + "," * 12 + "\n",
            r"column tiles, row 0: value '': must be of type int64",
        ),
        (
            ",".join(PREDICTIONS.columns) + "\n../../x,s,0.5,c,0.5,1,1,f,m,d,s,,\n",
            (
                r"column slide_id, row 0: value '\.\./\.\./x': must be letters, digits.*; name"
                r" another folder"
            ),
        ),
        (
            ",".join(PREDICTIONS.columns) + "\nx,s,inf,c,0.5,1,1,f,m,d,s,,\n",
            r"column score, row 0: value 'inf': must be of type float64",
        ),
        (
            ",".join(PREDICTIONS.columns) + "\nx,s,y,c,0.5,1,1,f,m,d,s,,\n",
            r"column score, row 0: value 'y': must be of type float64",
        ),
        ("a" * 200_000 + "\n", r"field larger than field limit"),
        ('"' + "\n" * 3, r"unexpected end of data"),
    ],
)
def test_a_table_of_somebody_else_is_refused_and_stays(
    model: Model, slides: Slides, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(PredictionError, match=message):
        predict(model, tmp_path)
    assert content(tmp_path) == {"predictions.csv": text.encode()}


def test_a_named_pipe_in_the_place_of_the_table_does_not_hang(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "predictions.csv")
    with pytest.raises(
        PredictionError, match=r"predictions\.csv is no regular file; name another folder"
    ):
        predict(model, tmp_path)


def test_two_commands_do_not_write_into_one_folder_at_once(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    def another(slide_id: str) -> None:
        with pytest.raises(
            PredictionError, match=r"another hnm predict writes into .*out; wait for it"
        ):
            predict(model, tmp_path / "out", "d.svs")

    slides.fails = another
    predict(model, tmp_path / "out", "a.svs")
    assert slides.predicted == ["a"]


def test_names_of_any_bytes_and_formulas_stand_in_the_table_and_break_nothing(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    names = [os.fsdecode(b"caf\xe9.svs"), "=HYPERLINK(A1).svs", "样本.svs", "标本.svs", "@a\nb.svs"]
    folder = os.getcwd()  # noqa: PTH109
    lines = predict(model, tmp_path / "out", *names)
    assert all(line.replace("\t", "").isprintable() for line in lines)
    table = PREDICTIONS.read(tmp_path / "out" / "predictions.csv")
    assert sorted(table["source"]) == sorted(
        f"{folder}/{name}"
        for name in ("caf\\xe9.svs", "=HYPERLINK(A1).svs", "样本.svs", "标本.svs", "@a\\x0ab.svs")
    )
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not any(cell.startswith(tuple("=+-@\t\r")) for cell in cells)
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())["slides"]
    assert f"{folder}/=HYPERLINK(A1).svs" in {slide["source"] for slide in rows}
    predict(model, tmp_path / "out", *reversed(names))
    assert len(slides.predicted) == 5


def test_equal_names_in_two_working_directories_are_two_slides(
    model: Model, slides: Slides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides.scores["s"] = 0.125
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        predict(model, tmp_path / "out", "s.svs", "../a/other.svs")
    first, second = slides.predicted[0], slides.predicted[2]
    assert (first, second[:2], len(slides.predicted)) == ("s", "s-", 3)
    table = PREDICTIONS.read(tmp_path / "out" / "predictions.csv").set_index("slide_id")
    assert table["source"][["s", second, "other"]].tolist() == [
        str(tmp_path / name) for name in ("a/s.svs", "b/s.svs", "a/other.svs")
    ]
    assert (
        table["score"]["s"] == 0.125
        and (tmp_path / "out" / "s.png").is_file()
        and (tmp_path / "out" / f"{second}.png").is_file()
    )


def test_a_signed_url_s_token_is_not_kept_and_a_new_token_is_the_same_slide(
    model: Model, slides: Slides, tmp_path: Path
) -> None:
    predict(model, tmp_path / "out", "https://host/s.svs?token=abcdefgh")
    predict(model, tmp_path / "out", "https://host/s.svs?token=ijklmnop")
    assert slides.predicted == ["s"] and not any(
        b"abcdefgh" in text or b"ijklmnop" in text for text in content(tmp_path / "out").values()
    )


def test_a_real_slide_is_cut_once(
    model: Model, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNM_WORKERS", "1")
    slide = tiny.aperio(tmp_path / "=a.svs", tiny.painted(128, 384, (32, 32, 96, 64, tiny.STROMA)))
    first = predict(model, tmp_path / "out", str(slide))
    before = content(tmp_path / "out")
    again = predict(model, tmp_path / "out", str(slide))
    assert [line.split("\t")[1] for line in (*first, *again)][1] == "done before" and content(
        tmp_path / "out"
    ) == before
    shutil.copy(
        tiny.aperio(tmp_path / "b.svs", tiny.painted(128, 384, (64, 32, 96, 64, tiny.STROMA))),
        slide,
    )
    assert "done before" not in predict(model, tmp_path / "out", str(slide))[0]
