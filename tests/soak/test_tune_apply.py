"""A study, its winner into params.yaml, and `dvc repro`: the commands as a user gives them, on a
tiny cohort, to the last bit.
"""

import csv
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_pipeline import change_params, environment, make_repository, repro

from hnm.synthetic import make_demo_cohort

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def hnm(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "hnm.cli", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_dvc_repro_yields_the_value_that_the_study_showed(tmp_path: Path) -> None:
    cohort = make_demo_cohort(tmp_path / "cohort", slides=12, width_px=640, odd_slides=False).parent
    folder = make_repository(tmp_path / "repository", cohort)
    space = {
        "ranking.margin": {"low": 0.0, "high": 1.0},
        "mining.negative_fraction": {"low": 0.1, "high": 0.9, "log": True},
    }
    change_params(folder, tune={"space": space, "pruner": "none"})
    repro(folder)
    hnm(folder, "tune", "--trials", "2")
    table = pd.read_parquet(folder / "studies" / "default" / "trials.parquet")
    step = (
        0.5
        / pd.read_csv(folder / "data" / "cohort" / "labels" / "validation.csv")["label"]
        .value_counts()
        .prod()
    )
    hnm(folder, "tune", "apply", "1")
    assert repro(folder) == [
        "causes",
        "cohort",
        "head@0",
        "mine@1",
        "finetune@1",
        "embed@1",
        "head@1",
        "evaluate",
    ]
    auc, loss = max(
        best_epoch(folder / "data" / "heads" / str(number) / "history.csv") for number in range(2)
    )
    shown = table.iloc[1]
    assert (shown["validation_auc"], shown["validation_loss"]) == (auc, -loss)
    assert shown["value"] == auc - step / 2 * -loss / (1 - loss)


def best_epoch(history: Path) -> tuple[float, float]:
    """Validation AUC and negative log loss of a head's best epoch, to the last bit."""
    with history.open() as stream:
        return max(
            (float(row["validation_auc"]), -float(row["validation_loss"]))
            for row in csv.DictReader(stream)
        )
