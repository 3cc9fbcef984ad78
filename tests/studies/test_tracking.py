"""The runs of a study in MLflow: one for it, a child a trial, a grandchild a round, each once."""

import shutil
from pathlib import Path

import pytest

from hnm.loop.rounds import Upstream
from hnm.store import Store
from hnm.studies.files import StudyFiles
from hnm.studies.study import StudySettings, run_study
from hnm.tracking.connection import connect
from hnm.tracking.delivery import bring_waiting
from hnm.tracking.record import refusals, waiting_records
from hnm.tracking.study_runs import StudyTracker
from tests.support.loop import FormulaLoop
from tests.support.study import make_upstream, tiny_params

ROUNDS = [
    {"validation/auc": 0.5, "validation/loss": 0.75, "trial/cost": 0.0},
    {"validation/auc": 0.625, "validation/loss": 0.5, "trial/cost": 40.0},
]


def test_a_study_that_goes_on_is_one_run_with_its_trials_and_their_rounds_below(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnm.tracking.runs.send_courier", lambda root, record: None)
    tracker = StudyTracker(root, "demo", "margins", "k" * 64)
    (root / "plots").mkdir()
    (root / "plots" / "history.png").write_bytes(b"picture")
    client = connect(root)
    for number, state in enumerate(("complete", "failed")):
        with tracker.running(
            {"head": {"epochs": 3}},
            lambda number=number: {"study/trials": number + 1, "study/best_value": 0.625},
            root / "plots",
        ):  # type: ignore[misc]
            metrics = {"validation/auc": 0.625, "trial/value": 0.625} if state == "complete" else {}
            tracker.trial(
                number,
                state,
                {"ranking.margin": 0.25 + number},
                metrics,
                ROUNDS if state == "complete" else [],
            )
        bring_waiting(root, client)
        assert waiting_records(root) == []
    runs = {
        run.info.run_name: run
        for run in client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    }
    assert set(runs) == {"study-margins", "trial-0", "trial-0-r0", "trial-0-r1", "trial-1"}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    study, trial = runs["study-margins"].info.run_id, runs["trial-0"].info.run_id
    assert parents == {
        "study-margins": None,
        "trial-0": study,
        "trial-0-r0": trial,
        "trial-0-r1": trial,
        "trial-1": study,
    }
    assert {
        name: run.info.status for name, run in runs.items() if name != "trial-1"
    } == dict.fromkeys(set(runs) - {"trial-1"}, "FINISHED")
    assert (
        runs["trial-1"].info.status == "FAILED"
        and runs["trial-1"].data.tags["hnm.trial_state"] == "failed"
    )
    assert (
        runs["trial-0"].data.params == {"ranking.margin": "0.25"}
        and runs["trial-0"].data.metrics["trial/value"] == 0.625
    )
    history = client.get_metric_history(trial, "round/validation_auc")
    assert [(point.step, point.value) for point in history] == [(0, 0.5), (1, 0.625)]
    assert runs["trial-0-r1"].data.metrics == {
        "validation/auc": 0.625,
        "validation/loss": 0.5,
        "trial/cost": 40.0,
    }
    assert runs["study-margins"].data.metrics["study/trials"] == 2 and runs[
        "study-margins"
    ].data.params == {"head.epochs": "3"}
    assert [file.path for file in client.list_artifacts(study, "plots")] == ["plots/history.png"]


def test_a_study_that_is_deleted_and_begun_anew_has_runs_of_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnm.tracking.runs.send_courier", lambda root, record: None)
    make_upstream(root / "data")
    client = connect(root)

    def run(seed: int, trials: int) -> None:
        params = tiny_params(
            tune={**tiny_params().tune.model_dump(mode="json"), "seed": seed, "startup_trials": 9}
        )
        settings = StudySettings(
            StudyFiles(root / "studies" / "s"),
            params,
            Upstream(root),
            FormulaLoop(),
            Store(root / "store"),
            trials,
            root=root,
        )
        run_study(settings, str)  # type: ignore[arg-type]
        bring_waiting(root, client)

    run(0, 1)
    run(0, 2)
    shutil.rmtree(root / "studies")
    run(1, 2)
    assert (waiting_records(root), refusals(root)) == ([], "")
    names = [
        run.info.run_name
        for run in client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    ]
    assert {name: names.count(name) for name in ("study-s", "trial-0", "trial-1")} == {
        "study-s": 2,
        "trial-0": 2,
        "trial-1": 2,
    }


def test_a_study_without_tracking_leaves_no_record(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNM_TRACKING", "off")
    tracker = StudyTracker(root, "demo", "margins", "k" * 64)
    with tracker.running({}, dict, root / "plots"):
        tracker.trial(0, "complete", {}, {}, ROUNDS)
    assert waiting_records(root) == []
