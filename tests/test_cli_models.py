"""The commands of `hnm` that trace, check and hand on what the pipeline made."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hnm.cli import app
from hnm.prediction.model import read_record
from tests.support import project as tiny


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tiny.make_project(tmp_path_factory.mktemp("project"))
    tiny.fill_cache(root)
    return root


@pytest.fixture(autouse=True)
def in_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(project)


def hnm(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_verify_names_what_is_damaged_and_what_changed(project: Path) -> None:
    done = hnm("verify")
    assert done.exit_code == 0 and "0 paths are not here" in done.output
    vetoes = project / "vetoes" / "vetoes.csv"
    before = vetoes.read_text()
    vetoes.write_text("changed\n")
    done = hnm("verify")
    vetoes.write_text(before)
    assert (
        done.exit_code == 1
        and "changed\tvetoes\tmd5" in done.output
        and "1 paths differ from dvc.lock; dvc repro makes them anew" in done.output
    )
    stored = next(
        path
        for path in (project / ".dvc" / "cache").rglob("*")
        if path.is_file() and path.read_bytes().startswith(b"data/mined/1/mined.parquet")
    )
    content = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(content[:-1])
    done = hnm("verify")
    stored.write_bytes(content)
    assert (
        done.exit_code == 1
        and f"damaged\t{stored}" in done.output
        and "error: 1 cache objects are damaged; " in done.output
    )


def test_doctor_says_what_is_missing_and_fails() -> None:
    done = hnm("doctor")
    assert done.exit_code == 1
    assert [line.split()[:2] for line in done.output.splitlines()][1:] == [
        ["ok", "pipeline"],
        ["ok", "params"],
        ["MISS", "slides"],
        ["MISS", "lost"],  # the project here has no true tables
        ["ok", "causes"],
        ["ok", "runs"],
        ["ok", "place"],
        ["ok", "outputs"],
        ["MISS", "remote"],
    ]


def test_lineage_is_text_or_a_flowchart() -> None:
    assert hnm("lineage", "head@1").output.startswith("head@1 was made by\n  head@1\n")
    assert hnm("lineage", "data/mined/1/mined.parquet", "--mermaid").output.startswith(
        "flowchart LR\n"
    )
    done = hnm("lineage", "nothing")
    assert done.exit_code == 1 and "error: nothing is no output of dvc.lock" in done.output


def test_export_writes_a_model_into_a_new_folder_alone(tmp_path: Path) -> None:
    done = hnm("export", str(tmp_path / "model"), "--round", "0")
    assert done.exit_code == 0 and "round 0 of demo, threshold 0.25" in done.output
    assert read_record(tmp_path / "model").round == "0"
    assert "is not empty; name a new folder" in hnm("export", str(tmp_path / "model")).output


def test_a_model_has_one_source_and_an_alias_one_of_two_names(tmp_path: Path) -> None:
    done = hnm(
        "predict",
        "s.svs",
        "--out",
        str(tmp_path),
        "--round",
        "0",
        "--model",
        "models:/hnm-demo@champion",
    )
    assert done.exit_code == 1 and "error: name one of --round, --run and --model" in done.output
    assert (
        "--alias best is neither champion nor challenger"
        in hnm("promote", "--alias", "best").output
    )
    assert (
        "is no model folder: it lacks encoder/encoder.json"
        in hnm("predict", "s.svs", "--out", str(tmp_path), "--model", str(tmp_path)).output
    )
