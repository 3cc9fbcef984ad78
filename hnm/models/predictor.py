"""The model that MLflow stores and serves: the path of a slide to class scores, tile scores and the
places of the tiles.

MLflow runs this file to load the model ("models from code"). The weights lie beside it as a model
folder, JSON and safetensors. No pickle is written or read.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import save_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import Array, ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema

import hnm
from hnm.errors import ParamsError, SlideError
from hnm.prediction.model import ModelRecord, read_model, read_record
from hnm.prediction.slide import Outcome, Prediction, Refusal, predict_slides
from hnm.slides.cohort.slide_names import slide_ids_of
from hnm.slides.reading.urls import is_url

ARTIFACT = "model"
"""Name of the model folder among the artifacts."""
URLS_VARIABLE = "HNM_SERVE_URLS"
NO_URLS = (
    "this server fetches no URLs, since whoever may ask it could have it speak to other servers;"
    f" give a path, or start it with {URLS_VARIABLE}=1"
)
EXAMPLE = pd.DataFrame({"path": ["slides/s1.svs"]})
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "path")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "path"),
            # class -> score; empty where there is no prediction
            ColSpec(Map(DataType.double), "class_scores"),
            ColSpec(DataType.string, "called"),  # the class at the threshold
            ColSpec(Array(DataType.double), "tile_scores"),
            ColSpec(Array(DataType.long), "x"),  # level-0 pixels of each tile's corner
            ColSpec(Array(DataType.long), "y"),
            ColSpec(DataType.long, "side"),  # level-0 pixels of a tile's side
            ColSpec(DataType.string, "reason"),  # why there is no prediction
        ]
    ),
    params=ParamSchema([ParamSpec("mpp", DataType.double, None)]),
)


class SlidePredictor(PythonModel):
    """A model folder behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the model folder; refuses one that holds anything else than a model."""
        folder = Path(context.artifacts[ARTIFACT])
        record = read_record(folder)
        self._model = read_model(folder, f"{record.cohort}, round {record.round}")

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Returns a row for each path of `model_input`, in its order.

        `params["mpp"]` stands in place of the µm per pixel of the files. URLs are refused unless
        the environment variable HNM_SERVE_URLS is 1. Slides are read in worker processes, so a
        script calls this under `if __name__ == "__main__":`.
        """
        paths = model_input["path"].tolist()
        serves_urls = _serves_urls()
        outcomes: dict[str, Outcome] = {}
        slides = {}
        for slide_id, source in slide_ids_of(paths).items():
            if is_url(source) and not serves_urls:
                outcomes[source] = Refusal(slide_id, source, SlideError(NO_URLS))
            else:
                slides[slide_id] = source
        for outcome in predict_slides(self._model, slides, mpp=(params or {}).get("mpp")):
            outcomes[outcome.source] = outcome
        return pd.DataFrame([answer(outcomes[path], self._model.record) for path in paths])


def _serves_urls() -> bool:
    """Returns whether the environment allows that URLs are fetched for whoever asks."""
    named = os.environ.get(URLS_VARIABLE, "0")
    if named not in {"0", "1"}:
        raise ParamsError(f"the environment variable {URLS_VARIABLE}={named!r} is neither 0 nor 1")
    return named == "1"


def answer(outcome: Outcome, record: ModelRecord) -> dict[str, Any]:
    """Returns the row of one slide, by the columns of `SIGNATURE`."""
    row: dict[str, Any] = {
        "path": outcome.source,
        "class_scores": {},
        "called": "",
        "tile_scores": [],
        "x": [],
        "y": [],
        "side": 0,
        "reason": "",
    }
    if isinstance(outcome, Refusal):
        row["reason"] = str(outcome.error)
    if isinstance(outcome, Prediction):
        negative, positive = record.classes
        tiles = outcome.tiles
        row |= {
            "class_scores": {negative: 1 - outcome.score, positive: outcome.score},
            "called": outcome.called,
            "tile_scores": tiles["score"].tolist(),
            "x": tiles["x"].tolist(),
            "y": tiles["y"].tolist(),
            "side": int(tiles["side"].iloc[0]),
        }
    return row


def save_predictor(model: Path, folder: Path) -> None:
    """Writes MLflow's model of the model folder `model` into `folder`, with the code of this
    package. The folder `model` must be called `ARTIFACT`.
    """
    save_model(
        folder,
        python_model=str(Path(__file__)),
        artifacts={ARTIFACT: str(model)},
        signature=SIGNATURE,
        input_example=EXAMPLE,
        code_paths=[str(Path(hnm.__file__).parent)],
        pip_requirements=[
            requirement for requirement in requires("hnm") or [] if "extra ==" not in requirement
        ],
    )


@contextmanager
def default_store(tracking_uri: str) -> Iterator[None]:
    """Points MLflow's functions at a store while the block runs. Some of them take no client, and
    clients call some of those.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")  # which MLflow sets for its child processes
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # which puts the default back
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def fetch_model(uri: str, folder: Path) -> Path:
    """Brings MLflow's model at `uri` (`models:/…`) into `folder` and returns the model folder in
    it. Nothing of it is run.
    """
    model = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    return Path(model) / "artifacts" / ARTIFACT


set_model(SlidePredictor())
