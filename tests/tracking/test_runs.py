import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from hnm.errors import TrackingError
from hnm.params import load_params
from hnm.repository.stages import StageState
from hnm.tracking.connection import connect, tracking_uri
from hnm.tracking.delivery import Delivery, bring_waiting
from hnm.tracking.record import Record, refusals, refused_records, waiting_records
from hnm.tracking.replay import sync
from hnm.tracking.runs import Tracker, run_name, track_stage
from hnm.tracking.vocabulary import METRICS, TAGS

StartStage = Callable[..., "subprocess.Popen[str]"]
Wait = Callable[[], None]

EMBED = """
from pathlib import Path
from hnm.params import Embed
from hnm.progress import WORK
from pipelines import stage

def main(features: Path, *, embed: Embed) -> None:
    WORK.tiles += 1200
    features.mkdir(parents=True)

stage.run(main)
"""
DELAY = 5.5  # the 5 s that tracking may take, and what a busy machine adds


def runs_of(root: Path) -> list[Run]:
    client = connect(root)
    experiment = client.get_experiment_by_name("demo")
    return (
        list(client.search_runs([experiment.experiment_id], order_by=["tags.mlflow.runName"]))
        if experiment
        else []
    )


def output(stage: "subprocess.Popen[str]") -> tuple[float, str]:
    """By how many seconds tracking delayed the stage, and what it said on standard error."""
    out, err = stage.communicate(timeout=60)
    assert stage.returncode == 0, err
    return float(out.splitlines()[-1]), err


def a_record(root: Path) -> Record:
    """A finished record that no courier has seen."""
    (root / "model").mkdir()
    (root / "model" / "head.json").write_text("{}")
    record = Record.create(root, "head-r1")
    record.append(
        "start",
        at=1000,
        experiment="demo",
        name="head-r1",
        tags={"hnm.stage": "head"},
        params={"head.seed": 3},
        inputs=[["a", "0" * 32, "index"]],
    )
    record.append("metrics", at=1001, step=1, values={"epoch/loss": 0.5, "epoch/slide_loss": 0.25})
    record.append("metrics", at=1002, step=2, values={"epoch/loss": 0.25})
    record.append("not_finite", at=1003, name="epoch/validation_auc", step=2)
    record.append("file", at=1004, path=record.keep(root / "model" / "head.json"))
    record.append("model", at=1005, path=record.keep(root / "model"), kind="head")
    record.append("finish", at=2000, status="FINISHED")
    return record


def contents(root: Path) -> dict[str, Any]:
    """All that a bringing of `a_record` leaves, but for the ids that MLflow gives."""
    client = connect(root)
    (run,) = runs_of(root)
    models = client.search_logged_models([run.info.experiment_id])
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "start, end": (run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "loss": [
            (m.step, m.value, m.timestamp)
            for m in client.get_metric_history(run.info.run_id, "epoch/loss")
        ],
        "not finite": run.data.tags["hnm.not_finite"],
        "inputs": [
            (i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs
        ],
        "artifacts": [file.path for file in client.list_artifacts(run.info.run_id)],
        "models": [
            (
                m.name,
                m.status.value,
                m.source_run_id == run.info.run_id,
                sorted(p.name for p in Path(m.artifact_location[7:]).iterdir()),
            )
            for m in models
        ],
    }


BROUGHT = {
    "name": "head-r1",
    "status": "FINISHED",
    "start, end": (1000, 2000),
    "params": {"head.seed": "3"},
    "loss": [(1, 0.5, 1001), (2, 0.25, 1002)],
    "not finite": "epoch/validation_auc at step 2",
    "inputs": [("a", "0" * 32, "index")],
    "artifacts": ["head.json"],
    "models": [("head", "READY", True, ["head.json"])],
}


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


def test_a_record_brought_twice_or_in_pieces_is_one_run(root: Path) -> None:
    record = a_record(root)
    events = record.events()
    Delivery(root, record, connect(root)).bring(events[:3])
    Delivery(root, record, connect(root)).bring(events)
    assert contents(root) == BROUGHT
    Delivery(root, record, connect(root)).bring(events)
    assert contents(root) == BROUGHT


class DyingClient:
    """A client whose server dies at the `calls`-th call."""

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self._client, self._calls = client, calls

    def __getattr__(self, name: str) -> Any:
        self._calls -= 1
        if self._calls < 0:
            raise MlflowException("the server has died")
        return getattr(self._client, name)


def test_wherever_the_server_dies_the_next_bringing_completes_the_run(root: Path) -> None:
    record, client = a_record(root), connect(root)
    deaths = 0
    for calls in range(100):
        try:
            Delivery(root, record, DyingClient(client, calls)).bring(record.events())  # type: ignore[arg-type]
        except MlflowException:
            deaths += 1
        else:
            break
    assert deaths >= 10
    assert contents(root) == BROUGHT


def rewrite(record: Record, old: str, new: str) -> None:
    events = record.folder / "events.jsonl"
    assert old in events.read_text()
    events.write_text(events.read_text().replace(old, new))


def test_what_is_refused_for_good_is_set_aside_and_all_else_is_brought(root: Path) -> None:
    record, client = a_record(root), connect(root)
    Delivery(root, record, client).bring(record.events()[:1])
    rewrite(record, '{"head.seed": 3}', '{"head.kind": "dsmil", "head.seed": 4, "head.epochs": 9}')
    later = Record.create(root, "later")
    later.append("start", experiment="demo", name="later", tags={}, params={}, inputs=[])
    later.append("finish", status="FINISHED")
    for brought in (["later"], []):
        assert bring_waiting(root, client).names == brought
        assert waiting_records(root) == []
        (aside,) = refused_records(root)
        assert re.fullmatch(
            r"Changing param values is not allowed\. Params were already .*", aside.reason()
        )
        assert (
            refusals(root)
            == f"1 in .hnm/refused, the first head-r1 ({aside.reason()}); mend the cause and run"
            " `hnm track sync --retry`, or delete what lies there"
        )
        runs = {run.info.run_name: run for run in runs_of(root)}
        assert {name: run.info.status for name, run in runs.items()} == {
            "head-r1": "FINISHED",
            "later": "FINISHED",
        }
        assert runs["head-r1"].data.params == {
            "head.seed": "3",
            "head.kind": "dsmil",
            "head.epochs": "9",
        }
        assert runs["head-r1"].data.metrics == {"epoch/loss": 0.25, "epoch/slide_loss": 0.25}
        assert (aside.folder / aside.events()[4]["path"]).read_text() == "{}"
        aside.put_back()
    client.delete_run(runs["head-r1"].info.run_id)
    assert bring_waiting(root, client).names == ["head-r1"]
    assert refusals(root) == ""


def test_a_run_that_cannot_be_made_is_brought_when_the_cause_is_mended(root: Path) -> None:
    record, client = a_record(root), connect(root)
    experiment = client.create_experiment("demo", artifact_location=(root / "mlruns").as_uri())
    client.delete_experiment(experiment)
    assert bring_waiting(root, client).names == []
    (aside,) = refused_records(root)
    assert aside.identity == record.identity
    assert (
        aside.reason()
        == f"The experiment {experiment} must be in the 'active' state. Current state is deleted."
    )
    client.restore_experiment(experiment)
    assert sync(root, retry=True).brought == ["head-r1"]
    assert contents(root) == BROUGHT
    assert refused_records(root) == []


def test_a_run_that_is_deleted_while_it_is_brought(root: Path) -> None:
    record, client = a_record(root), connect(root)
    delivery = Delivery(root, record, client)
    delivery.bring(record.events()[:2])
    (run,) = runs_of(root)
    client.delete_run(run.info.run_id)
    delivery.bring(record.events())
    delivery.settle()
    assert waiting_records(root) == []
    assert (
        f"The run {run.info.run_id} must be in the 'active' state. Current state is deleted."
        in refused_records(root)[0].reason()
    )


class BusyClient:
    """A client whose store answers no batch in time."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def log_batch(self, *_: Any, **__: Any) -> None:
        raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)


def test_what_may_be_taken_tomorrow_waits(root: Path) -> None:
    a_record(root)
    names, (line,) = bring_waiting(root, BusyClient(connect(root)))  # type: ignore[arg-type]
    assert names == [] and "while MLflow answers: database is locked" in line
    assert len(waiting_records(root)) == 1
    assert refused_records(root) == []


def test_a_stage_says_that_its_run_is_refused(
    root: Path, start_stage: StartStage, wait_for_couriers: Wait
) -> None:
    client = connect(root)
    client.delete_experiment(client.create_experiment("demo"))
    _, err = output(start_stage(1, 0.5))
    wait_for_couriers()
    (aside,) = refused_records(root)
    (line,) = err.splitlines()
    cure = "mend the cause and run `hnm track sync --retry`, or delete what lies there"
    said = (
        "tracking: MLflow refuses a part of the run head-r1-dsmil-s0, which lies in .hnm/refused"
        f" ({aside.reason()}); {cure}"
    )
    assert line == said or "no answer yet" in line
    assert aside.events()[-1]["status"] == "FINISHED"


def test_a_stage_and_its_run(root: Path, start_stage: StartStage, wait_for_couriers: Wait) -> None:
    delay, _ = output(start_stage(2, 1.0, DVC_EXP_NAME="bold-idea"))
    wait_for_couriers()
    assert delay < DELAY
    (run,) = runs_of(root)
    client = connect(root)
    assert (run.info.run_name, run.info.status) == ("head-r2-dsmil-s0", "FINISHED")
    assert {
        name: run.data.tags[name]
        for name in ("hnm.kind", "hnm.stage", "hnm.round", "hnm.dvc_experiment")
    } == {
        "hnm.kind": "stage",
        "hnm.stage": "head",
        "hnm.round": "2",
        "hnm.dvc_experiment": "bold-idea",
    }
    assert (
        run.data.params["head.kind"],
        run.data.params["ranking.margin"],
        run.data.params["head.learning_rate"],
    ) == ("dsmil", "0.5", "0.0002")
    assert {name.partition(".")[0] for name in run.data.params} == {"head", "ranking"}
    assert [
        (m.step, m.value)
        for m in client.get_metric_history(run.info.run_id, "epoch/validation_auc")
    ] == [(1, 0.625), (2, 0.75), (3, 0.6875)]
    assert run.data.metrics["validation/auc"] == 0.75
    assert "validation/loss" not in run.data.metrics
    assert run.data.tags["hnm.not_finite"] == "validation/loss"
    assert 1.0 < run.data.metrics["cost/seconds"] < 30
    assert 30 < run.data.metrics["cost/peak_memory_mb"] < 2000
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (
        Path(model.artifact_location.removeprefix("file://")) / "weights.safetensors"
    ).read_bytes() == b"weights"
    assert Path(model.artifact_location.removeprefix("file://")).is_relative_to(
        root / "mlruns" / "demo"
    )


def test_a_stage_that_logs_nothing_has_a_run_of_what_it_took(
    root: Path, wait_for_couriers: Wait
) -> None:
    (root / "embed.py").write_text(EMBED)
    environment = os.environ | {
        "DVC_STAGE": "embed@2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    subprocess.run(
        [sys.executable, "embed.py", "--features", "data/features/2"],
        cwd=root,
        env=environment,
        check=True,
    )
    wait_for_couriers()
    (run,) = runs_of(root)
    assert (run.info.run_name, run.info.status, run.data.tags["hnm.round"]) == (
        "embed-r2",
        "FINISHED",
        "2",
    )
    assert {name.partition(".")[0] for name in run.data.params} == {"embed"}
    took = run.data.metrics
    assert took["cost/tiles_per_second"] == pytest.approx(1200 / took["cost/seconds"], rel=0.01)
    assert (root / "data" / "features" / "2").is_dir()


def test_a_failed_stage_is_a_failed_run_and_keeps_its_error(
    root: Path, wait_for_couriers: Wait
) -> None:
    params = load_params(root / "params.yaml")
    with (
        pytest.raises(ZeroDivisionError),
        track_stage("finetune", {"round": 1}, {"finetune": params.finetune}, params),
    ):
        raise ZeroDivisionError
    wait_for_couriers()
    (run,) = runs_of(root)
    assert (run.info.run_name, run.info.status) == ("finetune-r1-s0", "FAILED")


def test_a_killed_stage_is_a_killed_run_at_once(
    root: Path, start_stage: StartStage, wait_for_couriers: Wait
) -> None:
    stage = start_stage(1, 60.0)
    assert stage.stdout is not None
    stage.stdout.readline()
    stage.kill()
    stage.wait()
    wait_for_couriers()
    (run,) = runs_of(root)
    assert run.info.status == "KILLED"
    assert run.data.metrics["epoch/validation_auc"] == 0.6875


def test_a_run_whose_courier_was_killed_too_is_closed_by_the_next_start(root: Path) -> None:
    record = a_record(root)
    lines = (record.folder / "events.jsonl").read_text().splitlines(keepends=True)
    (record.folder / "events.jsonl").write_text("".join(lines[:3]) + '{"event": "met')
    client = connect(root)
    Delivery(root, record, client).bring(record.events())
    assert runs_of(root)[0].info.status == "RUNNING"
    assert bring_waiting(root, client).names == ["head-r1"]
    (run,) = runs_of(root)
    assert (run.info.status, run.info.end_time) == ("KILLED", 1002)
    assert waiting_records(root) == []


def test_a_dead_server_costs_no_more_than_its_share_and_nothing_is_lost(
    root: Path, start_stage: StartStage, wait_for_couriers: Wait
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
    delay, err = output(start_stage(1, 0.5, MLFLOW_TRACKING_URI=dead))
    assert delay < DELAY
    (line,) = err.splitlines()
    assert line.startswith("tracking: the run head-r1-dsmil-s0 waits in .hnm/spool (")
    assert line.endswith("; the next stage or `hnm track sync` brings it to MLflow")
    assert "Connection refused" in waiting_records(root)[0].reason() or "no answer yet" in line
    output(start_stage(2, 0.5))  # the store is back: the next stage takes both
    wait_for_couriers()
    assert [(run.info.run_name, run.info.status) for run in runs_of(root)] == [
        ("head-r1-dsmil-s0", "FINISHED"),
        ("head-r2-dsmil-s0", "FINISHED"),
    ]


def test_a_server_that_never_answers_costs_no_more_than_its_share(
    root: Path, start_stage: StartStage
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        delay, err = output(
            start_stage(1, 0.5, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{server.getsockname()[1]}")
        )
        assert delay < DELAY
        assert len(err.splitlines()) == 1
        assert len(waiting_records(root)) == 1


def test_a_locked_database_costs_no_more_than_its_share(
    root: Path, start_stage: StartStage
) -> None:
    with sqlite3.connect(root / "mlflow.db") as database:
        database.execute("begin exclusive")
        delay, _ = output(start_stage(1, 0.5))
        assert delay < DELAY
        database.rollback()
    end = time.monotonic() + 30
    while waiting_records(root) and time.monotonic() < end:
        bring_waiting(root, connect(root), seconds=10)
    (run,) = runs_of(root)
    assert run.info.status == "FINISHED"


def test_four_first_starts_at_once(
    root: Path, start_stage: StartStage, wait_for_couriers: Wait
) -> None:
    (root / "mlflow.db").unlink()
    stages = [start_stage(round_, 1.0) for round_ in range(4)]
    for stage in stages:
        delay, _ = output(stage)
        assert delay < DELAY
    wait_for_couriers()
    assert [(run.info.run_name, run.info.status) for run in runs_of(root)] == [
        (f"head-r{round_}-dsmil-s0", "FINISHED") for round_ in range(4)
    ]


def test_the_store_is_at_the_root_unless_told_otherwise(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(root) == f"sqlite:///{root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(root) == "http://tracking:5000"
