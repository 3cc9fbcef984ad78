"""Past states, found by the real DVC and the real MLflow."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from hnm.errors import EvidenceError
from hnm.history.states import comparison_of, read_state
from hnm.repository.costs import Cost, write_cost
from hnm.repository.outputs import md5_of
from hnm.repository.stages import locked_stages
from hnm.tracking.connection import connect

SLIDES, PLOTS = "data/cohort/slides.parquet", "results/plots"
PIPELINE = {
    "stages": {
        "cohort": {
            "cmd": f"python -m pipelines.cohort --slides {SLIDES}",
            "params": ["cohort"],
            "outs": [SLIDES],
        },
        "evaluate": {
            "cmd": f"python -m pipelines.evaluate --slides {SLIDES} --plots {PLOTS}",
            "params": ["rounds", "evaluate"],
            "deps": [SLIDES],
            "outs": [PLOTS],
        },
    }
}
SLIDE = {"slide_id": "te1", "patient_id": "007", "split": "test", "fingerprint": "f"}


def write_outputs(root: Path, score: float) -> None:
    (root / SLIDES).parent.mkdir(parents=True, exist_ok=True)
    (root / PLOTS).mkdir(parents=True, exist_ok=True)
    pd.DataFrame([{**SLIDE, "vendor": "aperio"}]).to_parquet(root / SLIDES)
    table = root / PLOTS / "test_slides.csv"
    table.unlink(missing_ok=True)  # a link to the cache
    table.write_text(f"slide_id,patient_id,label,score,called,loss\nte1,007,1,{score},0,1.5\n")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits, tagged `first` and `second`, and an experiment `tried` that is the first
    again.
    """
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("repository")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    Repo.init(str(root))
    (root / "dvc.yaml").write_text(json.dumps(PIPELINE))
    for tag, score, resamples in (("first", 0.250000015, 100), ("second", 0.75, 200)):
        (root / "params.yaml").write_text(
            json.dumps(
                {
                    "cohort": {"name": "tiny", "manifest": "m"},
                    "rounds": {"0": {}},
                    "evaluate": {"resamples": resamples},
                }
            )
        )
        write_outputs(root, score)
        with contextlib.chdir(root), Repo(str(root)) as repo:
            repo.commit(force=True)
        git("add", "-A")
        git("commit", "-qm", tag)
        git("tag", tag)
        write_cost(
            root,
            "evaluate",
            locked_stages(root)["evaluate"].key,
            Cost(seconds=round(score * 100), peak_memory_mb=1),
        )
    first, second = git("rev-parse", "first"), git("rev-parse", "second")
    git("update-ref", f"refs/exps/{second[:2]}/{second[2:]}/tried", first)
    return root


def test_a_revision_an_experiment_and_the_workspace(repository: Path) -> None:
    first, tried, now = (read_state(repository, name) for name in ("first", "tried", "workspace"))
    assert first.slides.to_dict("records") == [SLIDE]
    assert (first.test["score"][0], now.test["score"][0]) == (0.250000015, 0.75)
    assert first.test["patient_id"][0] == "007"
    assert tried.test.equals(first.test) and tried.params == first.params
    assert (
        first.params["evaluate.resamples"],
        now.params["evaluate.resamples"],
        now.params["rounds"],
    ) == ("100", "200", "1")
    assert first.params["cohort.max_quarantined_share"] == "0.1"  # a default that nobody wrote
    assert (first.seconds, now.seconds) == (
        {"cohort": None, "evaluate": 25.0},
        {"cohort": None, "evaluate": 75.0},
    )


def test_a_state_without_evaluation_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = repository / "dvc.lock"
    content = lock.read_text()
    lock.write_text("schema: '2.0'\nstages: {}\n")
    with pytest.raises(EvidenceError, match=r"dvc\.lock of workspace holds no evaluation"):
        read_state(repository, "workspace")
    lock.write_text(content)


def test_outputs_that_the_cache_lacks_ask_for_a_fetch(repository: Path) -> None:
    (repository / ".dvc" / "cache").rename(repository / "away")
    with pytest.raises(
        EvidenceError,
        match=(
            r"first: results/plots \(md5 \w+\.dir\) is neither in the workspace nor in DVC's cache;"
            r" run dvc fetch"
        ),
    ):
        read_state(repository, "first")
    (repository / "away").rename(repository / ".dvc" / "cache")


def test_a_state_that_never_ran_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EvidenceError, match=r"workspace holds no dvc\.lock; name a state that dvc repro has made"
    ):
        read_state(tmp_path, "workspace")


def test_a_name_of_nothing_is_refused_and_makes_no_store(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        EvidenceError,
        match=(
            "nothing is no Git revision and no DVC experiment, and there are no runs of MLflow here"
        ),
    ):
        read_state(repository, "nothing")
    assert not (repository / "mlflow.db").exists()


def test_a_summary_of_mlflow(
    repository: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.entities import Dataset, DatasetInput

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (repository / "mlflow.db").write_bytes(empty_store.read_bytes())
    client = connect(repository)
    experiment = client.create_experiment(
        "tiny", artifact_location=(repository / "mlruns").as_uri()
    )
    evaluate, head, summary = (
        client.create_run(experiment, run_name=name).info.run_id
        for name in ("evaluate", "head-r0", "baseline")
    )
    client.log_artifacts(evaluate, str(repository / PLOTS), "plots")
    digest = md5_of(repository / SLIDES)
    client.log_inputs(
        evaluate,
        [DatasetInput(Dataset(name=SLIDES, digest=digest, source_type="dvc", source="{}"))],
    )
    client.log_metric(head, "cost/seconds", 7.5)
    for tag, value in (
        ("hnm.kind", "summary"),
        ("hnm.run.evaluate", evaluate),
        ("hnm.run.head.0", head),
    ):
        client.set_tag(summary, tag, value)
    client.log_param(summary, "evaluate.resamples", "200")
    named, by_id = (read_state(repository, name) for name in ("baseline", summary))
    assert named.test["score"].tolist() == by_id.test["score"].tolist() == [0.75]
    assert named.slides.to_dict("records") == [SLIDE]
    assert (named.params, named.seconds) == (
        {"evaluate.resamples": "200"},
        {"evaluate": None, "head@0": 7.5},
    )
    with pytest.raises(
        EvidenceError,
        match=(
            r"nothing is no Git revision, no DVC experiment and no summary run of MLflow \(there:"
            r" baseline\)"
        ),
    ):
        read_state(repository, "nothing")


def test_a_comparison_is_of_the_named_states(repository: Path) -> None:
    params = repository / "params.yaml"
    content = params.read_text()
    shutil.copy(Path(__file__).parents[2] / "params.yaml", params)
    comparison = comparison_of(repository, ["first", "second", "tried"])
    assert [state.name for state in comparison.states] == ["first", "second", "tried"]
    assert comparison.confidence == 0.95
    assert comparison.sides[0].auc.reason == "there is no negative"
    assert comparison.params["evaluate.resamples"] == ["100", "200", "100"]
    with pytest.raises(EvidenceError, match="1 state named, but a comparison needs two"):
        comparison_of(repository, ["first"])
    params.write_text(content)
