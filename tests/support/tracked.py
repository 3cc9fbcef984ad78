"""Small repositories with stages that log runs as the real ones do, each in its own process."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hnm.tracking.connection import connect
from hnm.tracking.record import waiting_records

if TYPE_CHECKING:
    from mlflow.entities import Run

ROOT = Path(__file__).parents[2]

STAGE = """
import sys, time
from pathlib import Path
from hnm.tracking.runs import track_stage
from hnm.params import load_params

round_, seconds = int(sys.argv[1]), float(sys.argv[2])
params = load_params(Path("params.yaml"))
folder = Path(f"heads-{round_}")
folder.mkdir(exist_ok=True)
(folder / "head.json").write_text('{"kind": "dsmil"}')
(folder / "weights.safetensors").write_bytes(b"weights")
arguments = {"features": Path(f"data/features/{round_}"), "folder": folder, "round": round_}
started = time.monotonic()
sections = {"head": params.head, "ranking": params.ranking}
with track_stage("head", arguments, sections, params) as tracker:
    for epoch, auc in ((1, 0.625), (2, 0.75), (3, 0.6875)):
        row = {"epoch": epoch, "loss": 1 / epoch, "validation_auc": auc, "learning_rate": 2e-4}
        tracker.epoch(epoch, row)
    print("training", flush=True)
    time.sleep(seconds)
    tracker.metrics({"validation/auc": 0.75, "validation/loss": float("nan")})
    tracker.file(folder / "head.json")
    tracker.model(folder, "head")
print(time.monotonic() - started - seconds, flush=True)
"""


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new tracking store; a copy is there at once, where making one takes seconds."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(root)
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with this project's params.yaml and an empty tracking store; tracking takes it
    for the project's root.
    """
    for name in ("DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "HNM_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "stage.py").write_text(STAGE)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


StartStage = Callable[..., "subprocess.Popen[str]"]
Wait = Callable[[], None]


def runs_of(root: Path) -> "list[Run]":
    """The runs of the demo's experiment, by name."""
    client = connect(root)
    experiment = client.get_experiment_by_name("demo")
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], order_by=["tags.mlflow.runName"]))


@pytest.fixture
def start_stage(root: Path) -> StartStage:
    """Starts a stage `head` that trains three epochs, goes on for `seconds` and prints by how long
    tracking delayed it.
    """

    def start(round_: int, seconds: float = 0.0, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "stage.py", str(round_), str(seconds)]
        return subprocess.Popen(
            command,
            cwd=root,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def wait_for_couriers(root: Path) -> Wait:
    """Waits until every record has been brought to MLflow."""

    def wait() -> None:
        end = time.monotonic() + 60
        while waiting_records(root):
            assert time.monotonic() < end, [
                log.read_text() for log in root.glob(".hnm/spool/*/courier.log")
            ]
            time.sleep(0.1)

    return wait
