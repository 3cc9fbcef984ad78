"""`mlflow models serve` of a registered slide classifier: a slide's path over HTTP, its scores
back.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from hnm.models.predictor import default_store, save_predictor
from hnm.prediction.model import read_model
from hnm.prediction.slide import Prediction, predict_slides
from tests.support.model import make_model

pytestmark = pytest.mark.services
PATIENCE_SECONDS = 180


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of the scoring server of `models:/hnm-tiny@champion`, and the model folder that was
    registered.
    """
    model = make_model(tmp_path)
    save_predictor(model, tmp_path / "mlflow")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(store)
    client.create_registered_model("hnm-tiny")
    with default_store(store):
        version = client.create_model_version("hnm-tiny", (tmp_path / "mlflow").as_uri())
    client.set_registered_model_alias("hnm-tiny", "champion", version.version)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DVC", "HNM", "MLFLOW", "PYTHONPATH"))
    }
    settings = {
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HNM_WORKERS": "1",
    }
    settings["PATH"] = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    command = [
        "mlflow",
        "models",
        "serve",
        "--model-uri",
        "models:/hnm-tiny@champion",
        "--env-manager",
        "local",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=inherited | settings,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _await(f"http://127.0.0.1:{port}/ping", process, tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}", model
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _await(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def _asked(address: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
        return json.load(response)


def test_a_slide_is_scored_over_http_as_in_this_process(
    server: tuple[str, Path], tiny: Any, tmp_path: Path
) -> None:
    address, model = server
    slide = tiny.aperio(tmp_path / "s1.svs", tiny.painted(128, 384, (32, 32, 96, 64, tiny.STROMA)))
    tiny.aperio(tmp_path / "glass.svs", tiny.painted(128, 384))
    answer, refused = _asked(
        address,
        {
            "dataframe_split": {
                "columns": ["path"],
                "data": [[str(slide)], [str(tmp_path / "glass.svs")]],
            }
        },
    )["predictions"]
    (outcome,) = predict_slides(read_model(model, "tiny"), {"s1": str(slide)})
    assert isinstance(outcome, Prediction)
    assert (
        answer["class_scores"] == {"negative": 1 - outcome.score, "positive": outcome.score}
        and answer["called"] == outcome.called
    )
    assert (
        answer["tile_scores"] == pytest.approx(outcome.tiles["score"].tolist(), abs=1e-7)
        and answer["x"] == outcome.tiles["x"].tolist()
    )
    assert refused["reason"].startswith("it has no tissue") and refused["class_scores"] == {}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        _asked(address, {"dataframe_split": {"columns": ["slide"], "data": [[str(slide)]]}})
