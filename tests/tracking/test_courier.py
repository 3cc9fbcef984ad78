"""A stage, its courier and a store that is there, away, slow or locked."""

import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hnm.params import load_params
from hnm.tracking.connection import connect
from hnm.tracking.delivery import bring_waiting
from hnm.tracking.record import refused_records, waiting_records
from hnm.tracking.runs import track_stage
from tests.support.tracked import StartStage, Wait, runs_of

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


def output(stage: "subprocess.Popen[str]") -> tuple[float, str]:
    """By how many seconds tracking delayed the stage, and what it said on standard error."""
    out, err = stage.communicate(timeout=60)
    assert stage.returncode == 0, err
    return float(out.splitlines()[-1]), err


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
