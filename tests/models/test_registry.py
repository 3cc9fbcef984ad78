"""The registered model: promoted once, refused where it is worse, and used in a clean process from
the registry alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnm.errors import PredictionError
from hnm.files import digest_of
from hnm.models import registry
from hnm.models.registry import Promoted, model_of_run, promote, registered_model, why_not
from hnm.prediction.model import ModelRecord, write_model
from hnm.repository.stages import StageState
from hnm.tracking.connection import connect
from hnm.tracking.vocabulary import MODEL_TAGS
from tests.support import model as tiny_model

CLEAN = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/hnm-tiny@champion")
answer = model.predict(pandas.DataFrame({"path": [sys.argv[1], "glass.svs"]}))
print(json.dumps(answer.to_dict("records")))
from hnm.cli import app
words = ["predict", sys.argv[1], "--model", "models:/hnm-tiny@champion", "--out", "out"]
app(words, standalone_mode=False)
"""
LABELS = "data/cohort/labels/validation.csv"
HEAD = "data/heads/1"


@pytest.fixture
def repository(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An empty registry, and rounds whose models are tiny and differ in their validation AUC alone:
    0.5 for round 0, then 0.875 and 0.9375.
    """
    encoder, head = tiny_model.make_parts(tmp_path_factory.mktemp("parts"))
    aucs = {0: 0.5, 1: 0.875, 2: 0.9375}

    def package(_root: Path, round_: int | None, folder: Path) -> ModelRecord:
        number = 1 if round_ is None else round_
        validation = {"auc": aucs[number], "auc_low": aucs[number] - 0.125, "auc_high": 1.0}
        record = ModelRecord(
            **{
                **tiny_model.RECORD,
                "round": str(number),
                "validation": validation,
                "versions": {LABELS: "ab" * 16, HEAD: f"{number}" * 32},
            }
        )
        write_model(record, encoder, head, folder)
        return record

    state = StageState(
        "head", "pipelines.head", {"validation_labels": LABELS, "folder": HEAD}, {}, {}, {}
    )
    connect(root).create_experiment("tiny", artifact_location=(root / "mlruns" / "tiny").as_uri())
    monkeypatch.setattr(registry, "package_round", package)
    monkeypatch.setattr(
        registry, "locked_stages", lambda _: {f"head@{number}": state for number in aucs}
    )
    monkeypatch.setattr(registry, "sync", lambda _: None)
    card = root / "card.md"
    card.write_text("# Model card: tiny\n")
    monkeypatch.setattr(
        registry, "cards_of", lambda _, round_: {"model_card.md": card} if round_ == "2" else {}
    )
    return root


def test_the_champion_changes_for_a_model_that_is_not_worse(repository: Path) -> None:
    assert promote(repository, None, "champion", force=False) == Promoted(
        "hnm-tiny", "1", "champion", "1", None
    )
    assert promote(repository, 1, "champion", force=False) == Promoted(
        "hnm-tiny", "1", "champion", "1", None
    )  # the same model is one version
    refusal = (
        r"round 0 is no champion: its validation AUC 0\.5 lies below the champion's interval, 0\.75"
        r" to 1\.0 \(version 1\); take --alias challenger"
    )
    with pytest.raises(PredictionError, match=refusal):
        promote(repository, 0, "champion", force=False)
    assert promote(repository, 0, "challenger", force=False) == Promoted(
        "hnm-tiny", "2", "challenger", "0", None
    )
    assert promote(repository, 2, "champion", force=False) == Promoted(
        "hnm-tiny", "3", "champion", "2", "1"
    )
    assert promote(repository, 0, "champion", force=True) == Promoted(
        "hnm-tiny", "2", "champion", "0", "3"
    )
    version = connect(repository).get_model_version("hnm-tiny", "3")
    assert version.tags["hnm.validation_auc"] == "0.9375" and version.tags["hnm.head"] == "2" * 32
    assert version.description == "# Model card: tiny\n"
    assert [path.read_text() for path in (repository / "mlruns").rglob("model_card.md")] == [
        "# Model card: tiny\n"
    ]
    table = (
        (Path(__file__).parents[2] / "docs" / "tracking.md")
        .read_text()
        .partition("## Tags of a registered model\n")[2]
        .partition("\n## ")[0]
    )
    assert {f"| `{tag}` | {meaning} |" for tag, meaning in MODEL_TAGS.items()} == {
        line for line in table.splitlines() if line.startswith("| `")
    }
    assert set(version.tags) <= set(MODEL_TAGS)
    model = registered_model(repository, "models:/hnm-tiny@challenger")
    assert (model.name, model.record.round) == ("models:/hnm-tiny/2", "0")
    assert not [
        path for path in repository.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".bin"}
    ]


def test_models_are_compared_on_the_same_labels_alone() -> None:
    tags = {
        "hnm.validation_labels": "ab" * 16,
        "hnm.validation_auc": "0.75",
        "hnm.validation_auc_low": "0.5",
        "hnm.validation_auc_high": "0.9",
    }
    assert why_not(tags, tags) is None
    assert why_not({**tags, "hnm.validation_auc": "0.5"}, tags) is None
    assert "lies below the champion's interval, 0.5 to 0.9" in str(
        why_not({**tags, "hnm.validation_auc": "0.49"}, tags)
    )
    assert "validated on labels of md5 cdcdcdcd, the champion on abababab" in str(
        why_not({**tags, "hnm.validation_labels": "cd" * 16}, tags)
    )
    assert (
        why_not(tags, {"hnm.validation_labels": "ab" * 16})
        == "one of the two has no validation AUC"
    )


def test_a_clean_process_predicts_a_slide_from_the_registry_alone(
    repository: Path, tiny, tmp_path_factory: pytest.TempPathFactory
) -> None:
    promote(repository, None, "champion", force=False)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    slide = tiny.aperio(elsewhere / "s1.svs", tiny.painted(128, 384, (32, 32, 96, 64, tiny.STROMA)))
    tiny.aperio(elsewhere / "glass.svs", tiny.painted(128, 384))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DVC", "HNM", "MLFLOW", "PYTHONPATH"))
    }
    settings = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{repository / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "HNM_WORKERS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, str(slide)],
        cwd=elsewhere,
        env=inherited | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer, refused = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("[{"))
    )
    assert answer["called"] in {"negative", "positive"} and sum(
        answer["class_scores"].values()
    ) == pytest.approx(1)
    assert (answer["x"], answer["y"], answer["side"]) == ([32, 64, 96] * 2, [32] * 3 + [64] * 3, 32)
    assert len(answer["tile_scores"]) == 6
    assert refused["reason"].startswith("it has no tissue") and refused["class_scores"] == {}
    predictions = json.loads((elsewhere / "out" / "predictions.json").read_text())
    assert predictions["slides"][0]["score"] == answer["class_scores"]["positive"]
    assert predictions["model"]["name"] == "models:/hnm-tiny/1"
    assert not (elsewhere / "params.yaml").exists() and not (elsewhere / "mlflow.db").exists()


def test_what_is_registered_is_the_very_model_folder(repository: Path, tmp_path: Path) -> None:
    promote(repository, None, "champion", force=False)
    registry.package_round(repository, None, tmp_path / "exported")
    assert registered_model(repository, "models:/hnm-tiny/1").digest == digest_of(
        tmp_path / "exported"
    )


def test_what_is_not_there_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(
        PredictionError,
        match=(
            r"models:/hnm-tiny@champion cannot be had from sqlite:.*`hnm promote` registers models"
        ),
    ):
        registered_model(repository, "models:/hnm-tiny@champion")
    run = connect(repository).create_run("1").info.run_id
    with pytest.raises(
        PredictionError,
        match=f"no whole model was taken from the run {run}: it needs encoder, head and threshold",
    ):
        model_of_run(repository, run)
    with pytest.raises(
        PredictionError,
        match=(
            r"there is no registry: .*nowhere/mlflow\.db does not exist; run in the repository, or"
            r" set MLFLOW_TRACKING_URI"
        ),
    ):
        registered_model(tmp_path / "nowhere", "models:/hnm-tiny@champion")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
