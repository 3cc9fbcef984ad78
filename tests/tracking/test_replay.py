"""Runs made from dvc.lock, on a small pipeline that the real DVC runs: two rounds of `head`, then
`evaluate`.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from hnm.doctor import examine
from hnm.errors import TrackingError
from hnm.repository.outputs import Outputs, folder_md5, md5_of
from hnm.repository.stages import current_stages, locked_stages
from hnm.tracking.connection import connect
from hnm.tracking.record import Record, refusals, waiting_records
from hnm.tracking.replay import outdated, sync
from hnm.tracking.summary import state_name
from hnm.tracking.vocabulary import TAGS

Repro = Callable[..., None]
ROOT = Path(__file__).parents[2]

HEAD = """
from pathlib import Path
from hnm import params
from hnm.tracking.runs import Tracker
from hnm.tracking.vocabulary import of_history
from pipelines import stage

def main(
    features: Path, folder: Path, scores: Path, round: int,
    *, head: params.Head, ranking: params.Ranking, tracker: Tracker
) -> None:
    folder.mkdir(parents=True)
    (folder / "head.json").write_text(f'{{"kind": "{head.kind}"}}')
    (folder / "weights.safetensors").write_bytes(b"weights %d" % round)
    aucs = [0.5, 0.6 + round / 10 + ranking.margin / 100, 0.55]
    rows = [
        {"epoch": epoch, "loss": 1 / epoch, "validation_auc": auc, "validation_loss": 0.7,
         "learning_rate": 2e-4}
        for epoch, auc in enumerate(aucs, 1)
    ]
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    (folder / "history.csv").write_text("\\n".join(lines) + "\\n")
    scores.parent.mkdir(parents=True, exist_ok=True)
    scores.write_text(f"{round}")
    for row in rows:
        tracker.epoch(row["epoch"], row)
    tracker.metrics({"validation/auc": rows[1]["validation_auc"], "validation/loss": 0.7})
    tracker.model(folder, "head")

if __name__ == "__main__":
    stage.run(main)
"""

EVALUATE = """
import csv, json
from pathlib import Path
from hnm import params
from hnm.tracking.runs import Tracker
from pipelines import stage

def main(
    heads: Path, scores: Path, metrics: Path, plots: Path, report: Path,
    *, cohort: params.Cohort, rounds: dict, evaluate: params.Evaluate, tracker: Tracker
) -> None:
    by_round = {}
    for name in rounds:
        rows = csv.DictReader((heads / name / "history.csv").open())
        best = max(float(row["validation_auc"]) for row in rows)
        by_round[name] = {
            "validation": {"auc": best},
            "test": {"auc": best - 0.125, "f1": 0.5},
            "test_tiles": {"auc": None},
        }
    content = {
        "chosen_round": 1,
        "threshold": 0.25,
        "test": {"auc": 0.625, "auc_low": 0.5, "auc_reason": "x"},
        "test_tiles": {"auc": 0.875},
        "gain": {"test_auc": 0.125},
        "rounds": by_round,
    }
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(content))
    report.write_text("<html></html>")
    plots.mkdir()
    (plots / "roc.csv").write_text("0,1")
    tracker.evaluation(content)
    for path in (metrics, plots, report):
        tracker.file(path)

if __name__ == "__main__":
    stage.run(main)
"""

PIPELINE = """
stages:
  head:
    foreach: ${rounds}
    do:
      cmd: >-
        python -m pipelines.head
        --features data/features/${key}
        --folder data/heads/${key}
        --scores data/scores/${key}/tiles.txt
        --round ${key}
      params: [head, ranking]
      deps:
        - data/features/${key}
        - pipelines/head.py
      outs:
        - data/heads/${key}
        - data/scores/${key}/tiles.txt
  evaluate:
    cmd: >-
      python -m pipelines.evaluate
      --heads data/heads
      --scores data/scores
      --metrics results/metrics.json
      --plots results/plots
      --report results/report.html
    params: [rounds, cohort, evaluate]
    deps: [data/heads, data/scores]
    metrics: [results/metrics.json]
    outs: [results/plots, results/report.html]
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    variables = {
        name: value
        for name, value in os.environ.items()
        if name
        not in {
            "DVC_ROOT",
            "DVC_STAGE",
            "DVC_EXP_NAME",
            "MLFLOW_TRACKING_URI",
            "HNM_TRACKING",
        }
    }
    return {
        **variables,
        "PATH": f"{Path(sys.executable).parent}:{variables['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }


@pytest.fixture(scope="module")
def repro(environment: dict[str, str]) -> Repro:
    """Runs the real `dvc repro`."""

    def run(root: Path, **more: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=root,
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, repro: Repro) -> Path:
    """The repository after its first `dvc repro`, which leaves nothing to sync."""
    root = tmp_path_factory.mktemp("repository")
    (root / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace('  "2": {previous: "1"}\n', "")
    )
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "pipelines").mkdir()
    (root / "pipelines" / "__init__.py").write_text(
        (ROOT / "pipelines" / "__init__.py").read_text()
        + f"\n__path__.append({str(ROOT / 'pipelines')!r})\n"
    )
    (root / "pipelines" / "head.py").write_text(HEAD)
    (root / "pipelines" / "evaluate.py").write_text(EVALUATE)
    for round_ in "01":
        features = root / "data" / "features" / round_
        features.mkdir(parents=True)
        (features / "slide-b.h5").write_text(f"features {round_}")
        (features / "slide-a.h5").write_text("more")
        (features / "a").mkdir()
        (features / "a" / "z.h5").write_text("nested")
    (root / ".gitignore").write_text("/data/\n/results/\n/.hnm/\n/mlflow.db*\n/mlruns/\n")
    shutil.copy(empty_store, root / "mlflow.db")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    repro(root)
    wait_for_couriers(root)
    return root


def wait_for_couriers(root: Path) -> None:
    """Waits until every record has been brought to MLflow by the stages' own couriers."""
    end = time.monotonic() + 90
    while waiting_records(root):
        assert time.monotonic() < end, [
            log.read_text() for log in root.glob(".hnm/spool/*/courier.log")
        ]
        time.sleep(0.2)


@pytest.fixture
def repository(finished: Path, tmp_path: Path) -> Path:
    """A copy of the repository; its database still names the artifacts of the original."""
    shutil.copytree(finished, tmp_path / "repository", symlinks=True)
    return tmp_path / "repository"


def runs(root: Path) -> dict[str, Run]:
    client = connect(root)
    experiment = client.get_experiment_by_name("demo")
    return (
        {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        if experiment
        else {}
    )


def said(run: Run, root: Path) -> dict[str, Any]:
    """What a run says but for its times, its ids and its cost."""
    client = connect(root)
    names = [name for name in run.data.metrics if not name.startswith("cost/")]
    passing = (
        "hnm.record",
        "hnm.kind",
        "hnm.git_dirty",
        "mlflow.source.git.commit",
        "mlflow.user",
        "mlflow.runName",
        "hnm.run.head.0",
        "hnm.run.head.1",
        "hnm.run.evaluate",
        "mlflow.note.content",
    )
    return {
        "status": run.info.status,
        "params": run.data.params,
        "metrics": {
            name: sorted(
                (m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)
            )
            for name in names
        },
        "tags": {name: value for name, value in run.data.tags.items() if name not in passing},
        "inputs": sorted(
            (i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs
        ),
        "artifacts": sorted(
            (file.path, file.is_dir) for file in client.list_artifacts(run.info.run_id)
        ),
        "models": sorted(
            (
                model.name,
                sorted(
                    file.name
                    for file in Path(model.artifact_location.removeprefix("file://")).iterdir()
                ),
            )
            for model in client.search_logged_models([run.info.experiment_id])
            if model.source_run_id == run.info.run_id
        ),
    }


def test_dvc_and_we_agree_on_md5(finished: Path) -> None:
    head = locked_stages(finished)["head@1"]
    assert md5_of(finished / "data/features/1") == head.deps["data/features/1"]
    assert md5_of(finished / "pipelines/head.py") == head.deps["pipelines/head.py"]
    assert folder_md5({"b": "1" * 32, "a/c": "2" * 32}) == folder_md5(
        {"a/c": "2" * 32, "b": "1" * 32}
    )


def test_live_runs_carry_the_key_that_the_lock_gives(finished: Path) -> None:
    locked = locked_stages(finished)
    by_name = runs(finished)
    assert {name: run.data.tags["hnm.kind"] for name, run in by_name.items()} == {
        "head-r0-dsmil-s0": "stage",
        "head-r1-dsmil-s0": "stage",
        "evaluate": "stage",
        "baseline": "summary",
    }
    for name, stage in (
        ("head-r0-dsmil-s0", "head@0"),
        ("head-r1-dsmil-s0", "head@1"),
        ("evaluate", "evaluate"),
    ):
        assert by_name[name].data.tags["hnm.stage_key"] == locked[stage].key


def test_tags_are_those_of_the_vocabulary(finished: Path) -> None:
    used = {
        re.sub(r"^hnm\.run\..*", "hnm.run.<stage>.<round>", tag)
        for run in runs(finished).values()
        for tag in run.data.tags
        if tag.startswith("hnm.")
    }
    assert TAGS.keys() - used == {
        "hnm.git_dirty",
        "hnm.dvc_experiment",
        "hnm.study",
        "hnm.study_key",
        "hnm.trial_state",
    }  # no commit, experiment and study here
    assert used <= TAGS.keys()


def test_inputs_are_data_with_dvcs_md5(finished: Path) -> None:
    locked = locked_stages(finished)
    by_name = runs(finished)
    inputs = {
        name: [
            (i.dataset.name, i.dataset.digest, i.tags[0].value)
            for i in by_name[name].inputs.dataset_inputs
        ]
        for name in ("head-r1-dsmil-s0", "evaluate")
    }
    assert inputs["head-r1-dsmil-s0"] == [
        ("data/features/1", locked["head@1"].deps["data/features/1"], "features")
    ]
    assert sorted(inputs["evaluate"]) == [
        ("data/heads", locked["evaluate"].deps["data/heads"], "heads"),
        ("data/scores", locked["evaluate"].deps["data/scores"], "scores"),
    ]


def test_the_summary_of_a_state(finished: Path) -> None:
    by_name = runs(finished)
    summary = by_name["baseline"]
    history = connect(finished).get_metric_history(summary.info.run_id, "round/validation_auc")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.605), (1, 0.705)]
    assert {
        name: summary.data.metrics[name]
        for name in (
            "validation/auc",
            "test/auc",
            "test/auc_low",
            "test/tile_auc",
            "test/auc_gain",
            "validation/threshold",
        )
    } == {
        "validation/auc": 0.705,
        "test/auc": 0.625,
        "test/auc_low": 0.5,
        "test/tile_auc": 0.875,
        "test/auc_gain": 0.125,
        "validation/threshold": 0.25,
    }
    assert (summary.data.params["rounds"], summary.data.params["ranking.margin"]) == ("2", "0.5")
    assert summary.data.tags["hnm.run.head.1"] == by_name["head-r1-dsmil-s0"].info.run_id
    assert (
        f"[evaluate](#/experiments/{summary.info.experiment_id}/runs/{by_name['evaluate'].info.run_id})"
        in summary.data.tags["mlflow.note.content"]
    )


def test_a_second_sync_does_nothing(repository: Path) -> None:
    done = sync(repository)
    assert (done.brought, done.replayed, done.summary, done.missing) == ([], [], None, [])
    assert len(runs(repository)) == 4


def test_without_its_database_the_same_comparison_is_back(
    repository: Path, finished: Path, empty_store: Path
) -> None:
    before = {name: said(run, finished) for name, run in runs(finished).items()}
    shutil.copy(empty_store, repository / "mlflow.db")
    shutil.rmtree(repository / "mlruns")
    done = sync(repository)
    assert (done.replayed, done.summary, done.missing) == (
        ["head-r0-dsmil-s0", "head-r1-dsmil-s0", "evaluate"],
        "baseline",
        [],
    )
    by_name = runs(repository)
    assert {run.data.tags["hnm.kind"] for run in by_name.values()} == {"replay", "summary"}
    for name, run in by_name.items():
        assert said(run, repository) == before[name]
    assert said(by_name["evaluate"], repository)["artifacts"] == [
        ("metrics.json", False),
        ("plots", True),
        ("report.html", False),
    ]


def test_outputs_that_are_gone_come_from_the_cache(repository: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, repository / "mlflow.db")
    shutil.rmtree(repository / "data" / "heads")
    shutil.rmtree(repository / "results")
    assert sync(repository).missing == []
    assert len(runs(repository)) == 4


def test_outputs_that_are_nowhere_are_named(repository: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, repository / "mlflow.db")
    shutil.rmtree(repository / "data" / "heads")
    shutil.rmtree(repository / ".dvc" / "cache")
    md5 = locked_stages(repository)["head@0"].outs["data/heads/0"]
    assert (
        sync(repository).missing[0]
        == f"head@0: data/heads/0 (md5 {md5}) is neither in the workspace nor in DVC's cache; run"
        " dvc pull, then hnm track sync"
    )


def test_a_store_that_is_away_is_said_in_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead)
    with pytest.raises(
        TrackingError,
        match=rf"^MLflow at {dead} does not take the runs: .*; they wait, sync again when it does$",
    ):
        sync(repository)


def test_a_stage_that_trains_nothing_is_linked_where_it_ran_and_missing_nowhere(
    repository: Path,
) -> None:
    md5 = locked_stages(repository)["head@1"].deps["data/features/1"]
    with (repository / "dvc.lock").open("a") as lock:
        lock.write(
            "  embed@1:\n    cmd: python -m pipelines.embed --features data/features/1\n    outs:"
            f" [{{path: data/features/1, md5: {md5}}}]\n"
        )
    client = connect(repository)
    done = sync(repository)
    assert (done.replayed, done.missing) == ([], [])
    assert (
        done.summary is not None
        and "hnm.run.embed.1" not in runs(repository)[done.summary].data.tags
    )
    client.delete_run(runs(repository)[done.summary].info.run_id)
    key = locked_stages(repository)["embed@1"].key
    embedded = client.create_run(
        client.get_experiment_by_name("demo").experiment_id,
        run_name="embed-r1",
        tags={"hnm.stage_key": key},
    )
    client.set_terminated(embedded.info.run_id)
    with (repository / "dvc.lock").open("a") as lock:
        lock.write("  cohort:\n    cmd: python -m pipelines.cohort\n")
    assert (summary := sync(repository).summary) is not None
    assert runs(repository)[summary].data.tags["hnm.run.embed.1"] == embedded.info.run_id


def test_what_was_mined_elsewhere_has_its_run(repository: Path) -> None:
    summary = repository / "data" / "mined" / "1" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(
        json.dumps(
            {
                "positive": {"tiles": 7},
                "hard_negative": {"tiles": 11},
                "suspect_slides": [],
                "jaccard": 0.25,
                "churn": None,
            }
        )
    )
    path = summary.relative_to(repository)
    with (repository / "dvc.lock").open("a") as lock:
        lock.write(
            f"  mine@1:\n    cmd: python -m pipelines.mine --summary {path} --round 1\n    outs:"
            f" [{{path: {path}, md5: {md5_of(summary)}}}]\n"
        )
    done = sync(repository)
    assert (done.replayed, done.missing) == (["mine-r1"], [])
    run = runs(repository)["mine-r1"]
    assert {
        name: value for name, value in run.data.metrics.items() if name.startswith("round/")
    } == {
        "round/positives": 7,
        "round/hard_negatives": 11,
        "round/jaccard": 0.25,
    }
    (history,) = connect(repository).get_metric_history(run.info.run_id, "round/positives")
    assert history.step == 1
    (artifact,) = connect(repository).list_artifacts(run.info.run_id)
    assert artifact.path == "summary.json"
    assert (
        done.summary is not None
        and runs(repository)[done.summary].data.tags["hnm.run.mine.1"] == run.info.run_id
    )


def test_a_run_that_waits_and_is_refused_stops_no_other(repository: Path) -> None:
    record = Record.create(repository, "poison")
    record.append(
        "start",
        experiment="demo",
        name="poison",
        tags={},
        params={},
        inputs=[["features", "0" * 40, "index"]],
    )
    record.append("finish", status="FINISHED")
    done = sync(repository)
    assert (done.brought, done.replayed, done.missing) == ([], [], [])
    assert "poison ('digest' exceeds the maximum length of 36 characters)" in refusals(repository)
    assert runs(repository)["poison"].info.status == "FINISHED"


def test_runs_that_mlflow_refuses_to_make_are_set_aside_once_and_made_by_a_retry(
    repository: Path, empty_store: Path
) -> None:
    shutil.copy(empty_store, repository / "mlflow.db")
    client = connect(repository)
    client.delete_experiment(client.create_experiment("demo"))
    for _ in range(2):
        done = sync(repository)
        assert (done.replayed, done.summary, done.missing) == ([], None, [])
        assert refusals(repository).startswith(
            "3 in .hnm/refused, the first head-r0-dsmil-s0 (The experiment 1 must be in the"
            " 'active' state. Current state is deleted.); mend the cause and run"
            " `hnm track sync --retry`"
        )
    client.restore_experiment("1")
    done = sync(repository, retry=True)
    assert (len(done.brought), done.summary, refusals(repository)) == (3, "baseline", "")


def test_a_run_that_was_deleted_is_not_made_again(repository: Path) -> None:
    client = connect(repository)
    client.delete_run(runs(repository)["head-r1-dsmil-s0"].info.run_id)
    assert sync(repository).replayed == []
    assert "head-r1-dsmil-s0" not in runs(repository)


def test_a_changed_param_makes_a_state_that_its_name_tells(repository: Path, repro: Repro) -> None:
    params = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(params.replace("margin: 0.5", "margin: 0.25"))
    repro(repository, HNM_TRACKING="off")
    done = sync(repository)
    assert (done.replayed, done.summary) == (
        ["head-r0-dsmil-s0", "head-r1-dsmil-s0", "evaluate"],
        "ranking.margin=0.25",
    )
    (repository / "params.yaml").write_text(params)
    repro(repository)  # from DVC's run cache: no stage runs
    done = sync(repository)
    assert (done.replayed, done.summary) == ([], None)
    assert runs(repository).keys() == {
        "head-r0-dsmil-s0",
        "head-r1-dsmil-s0",
        "evaluate",
        "baseline",
        "ranking.margin=0.25",
    }


def test_a_state_whose_evaluation_is_late_has_no_summary(finished: Path) -> None:
    locked = locked_stages(finished)
    states = current_stages(locked)
    assert outdated(states, locked, Outputs(finished)) == []
    other = states["head@1"].outs | {"data/scores/1/tiles.txt": "0" * 32}
    states["head@1"] = states["head@1"].__class__(**{**states["head@1"].__dict__, "outs": other})
    assert outdated(states, states, Outputs(finished)) == ["evaluate"]


def test_names_of_states() -> None:
    first = {"ranking.margin": "0.5", "head.seed": "0", "rounds": "3"}
    assert state_name(first, {}, "abcdefghi") == "baseline"
    others = {"baseline": first}
    assert state_name({**first, "rounds": "4"}, others, "abcdefghi") == "rounds=4"
    assert (
        state_name({**first, "rounds": "4"}, others | {"rounds=4": {}}, "abcdefghi")
        == "rounds=4 abcdefg"
    )
    assert state_name(first, others, "abcdefghi") == "baseline, other code or slides abcdefg"
    assert (
        state_name({"a": "1", "ranking.margin": "1", "head.seed": "0", "rounds": "2"}, others, "k")
        == "a=1, ranking.margin=1, rounds=2"
    )
    assert (
        state_name({"a": "1", "b": "2", "head.seed": "7", "rounds": "3"}, others, "k")
        == "a=1, b=2, head.seed=7 and 1 more"
    )


def test_no_evaluation_yet(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    assert sync(tmp_path).missing == ["dvc.lock holds no evaluation; run dvc repro"]


@pytest.mark.timeout(400)
def test_every_experiment_that_was_evaluated_has_its_summary_without_a_sync(
    repository: Path, environment: dict[str, str]
) -> None:
    """Two experiments, one of them in a folder of its own, as `dvc exp run --queue` runs them too:
    the workspace holds one state in the end.
    """

    def run(*command: str) -> None:
        done = subprocess.run(
            command, cwd=repository, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stdout + done.stderr

    ignored = repository / ".gitignore"
    ignored.write_text(ignored.read_text().replace("/data/\n", "/data/heads/\n/data/scores/\n"))
    run("git", "add", ".")
    run("git", "-c", "user.name=n", "-c", "user.email=n@example.org", "commit", "-qm", "first")
    dvc = (sys.executable, "-m", "dvc", "exp", "run")
    run(*dvc, "--temp", "-n", "far", "-S", "ranking.margin=0.25")
    run(*dvc, "-n", "near", "-S", "ranking.margin=0.125")
    wait_for_couriers(repository)
    summaries = {
        name: run
        for name, run in runs(repository).items()
        if run.data.tags["hnm.kind"] == "summary"
    }
    assert set(summaries) == {"baseline", "ranking.margin=0.25", "ranking.margin=0.125"}
    assert {round(run.data.metrics["validation/auc"], 6) for run in summaries.values()} == {
        0.705,
        0.7025,
        0.70125,
    }
    assert summaries["ranking.margin=0.25"].data.tags["hnm.dvc_experiment"] == "far"
    heads = {name: run.data.tags["hnm.run.head.1"] for name, run in summaries.items()}
    assert len(set(heads.values())) == 3  # each links its own
    count = len(connect(repository).search_runs(["1"]))
    done = sync(repository)
    assert (done.brought, done.replayed, done.summary, done.missing) == ([], [], None, [])
    assert len(connect(repository).search_runs(["1"])) == count


def test_a_summary_that_lacks_links_gets_them(repository: Path) -> None:
    client, summary = connect(repository), runs(repository)["baseline"]
    client.delete_tag(summary.info.run_id, "hnm.run.head.0")
    client.set_tag(summary.info.run_id, "mlflow.note.content", "")
    assert sync(repository).summary is None
    mended = client.get_run(summary.info.run_id).data.tags
    assert mended["hnm.run.head.0"] == runs(repository)["head-r0-dsmil-s0"].info.run_id
    assert mended["mlflow.note.content"] == summary.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "copied"])
def test_artifacts_of_a_project_that_was_moved_or_copied_are_where_it_is(
    finished: Path, tmp_path: Path, moved: bool
) -> None:
    first, here = tmp_path / "a", tmp_path / "new place" / "b"
    for source, target in ((finished, first), (first, here)):
        shutil.copytree(source, target, symlinks=True)
        connect(target)
    before = {path.relative_to(first) for path in first.rglob("*")}
    if moved:
        shutil.rmtree(here)
        first.rename(here)
    assert says_of_place(here) == (not moved)
    client = connect(here)
    assert says_of_place(here)
    run = runs(here)["evaluate"]
    assert (
        client.get_experiment(run.info.experiment_id).artifact_location
        == (here / "mlruns" / "demo").as_uri()
    )
    program = (
        "import sys; from pathlib import Path; from hnm.tracking.connection import connect\n"
        "client = connect(Path(sys.argv[1])); print(Path(client.download_artifacts(sys.argv[2],"
        " 'metrics.json', sys.argv[3])).read_text())\nclient.log_artifact(sys.argv[2], sys.argv[1]"
        " + '/params.yaml')"
    )
    command = [
        sys.executable,
        "-c",
        program,
        str(here),
        run.info.run_id,
        str(tmp_path),
    ]  # in this process MLflow remembers the places of runs
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["chosen_round"] == 1, done.stderr
    assert len(list((here / "mlruns").rglob("params.yaml"))) == 1
    model, *_ = client.search_logged_models([run.info.experiment_id])
    assert Path(model.artifact_location.removeprefix("file://").replace("%20", " ")).is_relative_to(
        here
    )
    assert first.exists() != moved and (
        moved or {path.relative_to(first) for path in first.rglob("*")} == before
    )


def says_of_place(root: Path) -> bool:
    return next(finding.fine for finding in examine(root) if finding.thing == "place")
