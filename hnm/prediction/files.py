"""What `hnm predict` leaves in its folder: the table, the whole story as JSON, and a picture and GeoJSON of each slide."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
from PIL import Image

from hnm.files import whole, write_json
from hnm.prediction.model import Model
from hnm.prediction.picture import heat_over
from hnm.prediction.region import prediction_geojson
from hnm.prediction.slide import Prediction, Refusal, predict_slides, slide_ids_of
from hnm.slides.urls import kept_form
from hnm.tables import TILE_SCORES, Table

PREDICTIONS = Table(
    "predictions",
    ("slide_id",),
    {
        "slide_id": pa.Column(str),
        "source": pa.Column(str),  # path, or URL without its query, as the user gave it
        "score": pa.Column(
            "float64", pa.Check.in_range(0, 1, error="must lie in [0, 1]"), nullable=True
        ),  # empty, as the next one, where the slide has no prediction
        "called": pa.Column(str, nullable=True),  # the class at the threshold
        "threshold": pa.Column("float64"),
        "tiles": pa.Column("int64"),
        "mpp": pa.Column("float64", nullable=True),  # µm per level-0 pixel along x
        "fingerprint": pa.Column(str, nullable=True),  # of the file: size, header, OpenSlide's quickhash
        "model": pa.Column(str),
        "model_digest": pa.Column(str),
        "step": pa.Column(str, nullable=True),  # that the slide failed
        "reason": pa.Column(str, nullable=True),
    },
)


def write_predictions(
    model: Model,
    slides: Sequence[str],
    folder: Path,
    *,
    mpp: float | None = None,
    mask: Path | None = None,
    device: str | None = None,
    say: Callable[[str], None],
) -> None:
    """Predicts slides and writes all there is to see of them into `folder`; a line for each slide goes to `say` when it is done.

    `mpp`, `mask` and `device` are those of `predict_slides`.
    """
    rows = []
    for outcome in predict_slides(model, slide_ids_of(slides), mpp=mpp, mask=mask, device=device):
        if isinstance(outcome, Prediction):
            write_slide(outcome, model, folder)
            say(f"{outcome.slide_id}\t{outcome.called}\tscore {outcome.score:.4f} (threshold {model.record.threshold:.4f}), {len(outcome.tiles)} tiles")
        else:
            say(f"{outcome.slide_id}\tnot predicted\t{outcome.error}")
        rows.append(row_of(outcome, model))
    write_table(rows, model, folder)


def write_slide(prediction: Prediction, model: Model, folder: Path) -> None:
    """`<slide_id>.png` (scores over the overview), `<slide_id>.geojson` (region and top tiles) and `<slide_id>.tiles.parquet` (all scores)."""
    read, tiles = prediction.read, prediction.tiles
    with whole(folder / f"{prediction.slide_id}.png") as temporary:
        Image.fromarray(heat_over(read.overview, tiles, read.aspect)).save(temporary)
    write_json(prediction_geojson(tiles, read.aspect, model.record.classes[1]), folder / f"{prediction.slide_id}.geojson")
    TILE_SCORES.write(tiles, folder / f"{prediction.slide_id}.tiles.parquet")


def row_of(outcome: Prediction | Refusal, model: Model) -> dict[str, Any]:
    """The row of a slide in the table `PREDICTIONS`."""
    row = {
        "slide_id": outcome.slide_id,
        "source": kept_form(outcome.source),
        "called": "",
        "fingerprint": "",
        "step": "",
        "reason": "",
        "threshold": model.record.threshold,
        "model": model.name,
        "model_digest": model.digest,
    }
    if isinstance(outcome, Refusal):
        return {**row, "tiles": 0, "step": outcome.error.step, "reason": str(outcome.error)}
    read = outcome.read
    return {**row, "score": outcome.score, "called": outcome.called, "tiles": len(outcome.tiles), "mpp": read.mpp[0], "fingerprint": read.fingerprint}


def write_table(rows: Iterable[dict[str, Any]], model: Model, folder: Path) -> None:
    """`predictions.csv`, and `predictions.json`, which also holds the model's record with its data versions."""
    frame = pd.DataFrame(rows, columns=list(PREDICTIONS.columns)).astype({"score": "float64", "mpp": "float64"})
    PREDICTIONS.write(frame, folder / "predictions.csv")
    record = {"name": model.name, "digest": model.digest, **model.record.model_dump(mode="json")}
    slides = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in frame.sort_values("slide_id").to_dict("records")]
    write_json({"model": record, "slides": slides}, folder / "predictions.json")
