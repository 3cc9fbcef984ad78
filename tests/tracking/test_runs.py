import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hnm.errors import TrackingError
from hnm.params import load_params
from hnm.repository.stages import StageState
from hnm.tracking.connection import connect
from hnm.tracking.delivery import bring_waiting
from hnm.tracking.record import Record
from hnm.tracking.runs import Tracker, run_name, track_stage
from hnm.tracking.vocabulary import METRICS, TAGS
from tests.support.tracked import runs_of


@pytest.mark.parametrize(
    ("name", "arguments", "params", "expected"),
    [
        (
            "head@2",
            {"round": "2"},
            {"head": {"kind": "dsmil", "seed": 0}, "ranking": {"seed": 9}},
            "head-r2-dsmil-s0",
        ),
        ("finetune@1", {"round": "1"}, {"finetune": {"seed": 7}}, "finetune-r1-s7"),
        (
            "evaluate",
            {"metrics": "results/metrics.json"},
            {"rounds": {"0": {}}, "evaluate": {"seed": 0}},
            "evaluate",
        ),
        ("mine@1", {"round": "1"}, {"mining": {"threshold": 0.5}}, "mine-r1"),
    ],
)
def test_names_of_runs(
    name: str, arguments: dict[str, str], params: dict[str, Any], expected: str
) -> None:
    assert run_name(StageState(name, "pipelines.x", arguments, params, {}, {})) == expected


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(
        TrackingError,
        match=(
            r"metric 'epoch/lose' is not in the vocabulary; use one of METRICS in"
            r" hnm/tracking/vocabulary.py or add it there"
        ),
    ):
        Tracker("head", None).epoch(1, {"epoch": 1, "lose": 0.5})


def test_test_metrics_come_from_evaluate_alone() -> None:
    Tracker("evaluate", None).metrics({"test/auc": 0.5})
    with pytest.raises(
        TrackingError, match="metric 'test/auc' is for the stage evaluate alone, but head logs it"
    ):
        Tracker("head", None).metrics({"test/auc": 0.5})


def test_the_vocabulary_is_documented() -> None:
    assert documented("Metrics") == METRICS
    assert documented("Tags") == TAGS
    assert {name.partition("/")[0] for name in METRICS} == {
        "epoch",
        "round",
        "validation",
        "test",
        "trial",
        "study",
        "cost",
        "system",
    }


def documented(section: str) -> dict[str, str]:
    """Name -> meaning of the table in a section of the docs."""
    text = (
        (Path(__file__).parents[2] / "docs" / "tracking.md")
        .read_text()
        .partition(f"## {section}\n")[2]
        .partition("\n## ")[0]
    )
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {name.strip("`"): meaning for name, meaning in rows}


def test_stages_import_no_mlflow() -> None:
    program = (
        "import sys, hnm.tracking.runs, hnm.repository.costs; print(sorted({'mlflow', 'torch',"
        " 'pandas', 'sqlalchemy'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_values_that_are_missing_or_not_finite_are_named_not_logged(tmp_path: Path) -> None:
    record = Record(tmp_path / "record")
    Tracker("head", record).epoch(
        4, {"epoch": 4, "loss": 0.5, "validation_auc": None, "validation_loss": float("inf")}
    )
    assert [(e["event"], e.get("values"), e.get("name")) for e in record.events()] == [
        ("metrics", {"epoch/loss": 0.5}, None),
        ("not_finite", None, "epoch/validation_auc"),
        ("not_finite", None, "epoch/validation_loss"),
    ]


def test_tracking_can_be_switched_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HNM_TRACKING", "off")
    params = load_params(root / "params.yaml")
    with track_stage("head", {"round": 1}, {"head": params.head}, params) as tracker:
        tracker.epoch(1, {"loss": 0.5})
        tracker.model(root / "no such folder", "head")
    assert not (root / ".hnm").exists()


def test_a_cohort_with_the_causes_of_an_earlier_run_makes_no_second_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `dvc repro` runs it each time. Stages that train make a run each time."""
    records: list[Record] = []
    monkeypatch.setattr("hnm.tracking.runs.send_courier", lambda _, record: records.append(record))
    params = load_params(root / "params.yaml")

    def run(stage: str, manifest: str = "a.csv", *, fails: bool = False) -> int:
        """Runs the stage and brings its record; how many records it wrote."""
        before = len(records)
        with (
            contextlib.suppress(ZeroDivisionError),
            track_stage(stage, {"manifest": Path(manifest)}, {stage: params.cohort}, params),
        ):
            assert not fails or 1 / 0
        bring_waiting(root, connect(root))
        return len(records) - before

    assert [run("cohort", fails=True), run("cohort"), run("cohort")] == [1, 1, 0]
    assert [run("cohort", "b.csv"), run("cohort", "b.csv"), run("cohort")] == [1, 0, 0]
    assert [run("head"), run("head")] == [1, 1]
    assert sorted((run.info.run_name, run.info.status) for run in runs_of(root)) == [
        ("cohort", "FAILED"),
        ("cohort", "FINISHED"),
        ("cohort", "FINISHED"),
        ("head", "FINISHED"),
        ("head", "FINISHED"),
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/other.db")
    shutil.copy(root / "mlflow.db", root / "other.db")
    assert [run("cohort"), run("cohort")] == [1, 0]
    (root / "other.db").unlink()
    assert run("cohort") == 1
