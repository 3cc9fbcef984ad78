"""The store that runs go to: where it is, and what is wrong with it."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from hnm.errors import TrackingError
from hnm.tracking.connection import connect, tracking_uri


def test_the_store_is_at_the_root_unless_told_otherwise(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(root) == f"sqlite:///{root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(root) == "http://tracking:5000"


@pytest.mark.parametrize("kind", ["newer", "torn", "other"])
def test_a_store_of_another_version_is_one_line_with_a_cure(root: Path, kind: str) -> None:
    if kind == "newer":
        with sqlite3.connect(root / "mlflow.db") as store:
            store.execute("update alembic_version set version_num = 'abcdef123456'")
    else:
        (root / "mlflow.db").write_bytes(
            b"no database at all " * 1000
            if kind == "other"
            else (root / "mlflow.db").read_bytes()[:30_000]
        )
    says = (
        r"mlflow\.db is no store that this version of MLflow can use \(.*\); if a newer MLflow made"
        r" it, install that one"
    )
    with pytest.raises(TrackingError, match=says) as raised:
        connect(root)
    assert "\n" not in str(raised.value)


def test_a_place_outside_that_is_someones_choice_stays(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("large disk") / "mlruns"
    elsewhere.mkdir()
    client = connect(root)
    client.create_experiment("chosen", artifact_location=(elsewhere / "chosen").as_uri())
    client.create_experiment("bucket", artifact_location="s3://bucket/mlruns/bucket")
    places = {
        experiment.name: experiment.artifact_location
        for experiment in connect(root).search_experiments()
    }
    assert (
        places["chosen"] == (elsewhere / "chosen").as_uri()
        and places["bucket"] == "s3://bucket/mlruns/bucket"
    )
    shutil.rmtree(
        elsewhere
    )  # as a disk that is gone: the store cannot tell it from a project that was moved
    places = {
        experiment.name: experiment.artifact_location
        for experiment in connect(root).search_experiments()
    }
    assert places["chosen"] == (root / "mlruns" / "chosen").as_uri()
