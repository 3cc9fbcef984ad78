"""What dvc.yaml says of metrics and plots, shown by DVC itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hnm.evidence.evaluation import evaluate_rounds, metrics_of
from hnm.evidence.pages.plots import write_plots
from hnm.files import write_json
from hnm.params import Evaluate
from tests.support import evidence as tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results under a dvc.yaml with this project's plots."""
    folder = tmp_path_factory.mktemp("repository")
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]
    (folder / "dvc.yaml").write_text(
        json.dumps({"metrics": ["results/metrics.json"], "plots": plots})
    )
    evaluation = evaluate_rounds(tiny.cohort(), tiny.rounds(), Evaluate(resamples=100))
    write_json(metrics_of(evaluation), folder / "results" / "metrics.json")
    write_plots(evaluation, folder / "results" / "plots")
    dvc(folder, "init", "--no-scm", "--quiet")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_metrics_show(repository: Path) -> None:
    shown: Any = json.loads(dvc(repository, "metrics", "show", "--json"))
    metrics = shown[""]["data"]["results/metrics.json"]["data"]
    assert (
        metrics["chosen_round"],
        metrics["test"]["auc"],
        metrics["rounds"]["2"]["test"]["auc"],
    ) == (1, 0.75, 1.0)


def test_every_plot_is_drawn(repository: Path) -> None:
    shown: Any = json.loads(dvc(repository, "plots", "show", "--json"))
    assert "errors" not in shown  # as of a column that a table has not
    points = {
        name: len(drawn[0]["content"]["data"]["values"])
        for name, drawn in shown["data"].items()
        if drawn[0]["type"] == "vega"
    }
    assert points == {
        "ROC of the test slides": 5,
        "FROC of the test slides": (
            len((repository / "results" / "plots" / "froc.csv").read_text().splitlines()) - 1
        ),
        "AUC by round": 3 * 3,  # each a line of validation, test and tiles
        "Calls of the test slides": 4,
        "Loss of the heads": 3 * 2,
        "Validation AUC of the heads": 3 * 2,
        "Loss of the encoders": 2 * 3,
    }
    pictures = {name for name, drawn in shown["data"].items() if drawn[0]["type"] == "image"}
    assert pictures == {
        f"results/plots/{name}.png" for name in ("auc_by_round", "slide_scores", "tile_scores")
    }


def test_two_states_side_by_side(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rounds committed, one round in the workspace."""

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init", "-q")
    dvc(tmp_path, "init", "--quiet")
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]
    (tmp_path / "dvc.yaml").write_text(
        json.dumps({"params": ["params.yaml"], "metrics": ["results/metrics.json"], "plots": plots})
    )
    shutil.copytree(repository / "results", tmp_path / "results")
    (tmp_path / "params.yaml").write_text("mining: {threshold: 0.3}\n")
    git("add", "-A")
    git("commit", "-qm", "three rounds")

    monkeypatch.setattr("hnm.evidence.pages.plots.png", lambda chart: b"another picture")
    evaluation = evaluate_rounds(tiny.cohort(), tiny.rounds(1), Evaluate(resamples=100))
    write_json(metrics_of(evaluation), tmp_path / "results" / "metrics.json")
    write_plots(evaluation, tmp_path / "results" / "plots")
    (tmp_path / "params.yaml").write_text("mining: {threshold: 0.1}\n")

    metrics = json.loads(dvc(tmp_path, "metrics", "diff", "--json"))["results/metrics.json"]
    assert metrics["test.auc"] == {"old": 0.75, "new": 0.5, "diff": -0.25}
    assert metrics["chosen_round"] == {"old": 1, "new": 0, "diff": -1}
    assert metrics["rounds.2.test.auc"] == {"old": 1.0, "new": None}

    drawn = json.loads(dvc(tmp_path, "plots", "diff", "--json"))["data"]
    assert {
        row["rev"] for row in drawn["ROC of the test slides"][0]["content"]["data"]["values"]
    } == {"HEAD", "workspace"}
    assert {picture["revisions"][0] for picture in drawn["results/plots/slide_scores.png"]} == {
        "HEAD",
        "workspace",
    }

    states = [entry["data"] for entry in json.loads(dvc(tmp_path, "exp", "show", "--json"))]
    rows = [
        (
            data["params"]["params.yaml"]["data"],
            data["metrics"]["results/metrics.json"]["data"]["test"]["auc"],
        )
        for data in states
    ]
    assert rows == [({"mining": {"threshold": 0.1}}, 0.5), ({"mining": {"threshold": 0.3}}, 0.75)]
