import json
import shutil
from pathlib import Path

import pytest

from hnm.errors import ParamsError, PredictionError, TrackingError
from hnm.files import digest_of
from hnm.models.packaging import cards_of, package_round
from hnm.params import load_params
from hnm.prediction.model import FILES, read_model
from hnm.repository.outputs import md5_of
from hnm.repository.stages import locked_stages
from tests.support import project as tiny


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo, tmp_path / "project"))


def test_the_chosen_round_becomes_a_model_with_its_own_threshold_and_params(
    project: Path, tmp_path: Path
) -> None:
    record = package_round(project, None, tmp_path / "model")
    params = load_params(project / "params.yaml")
    assert (record.cohort, record.round, record.threshold) == ("demo", "1", 0.375)
    assert record.validation == {"auc": 0.875, "auc_low": 0.75, "auc_high": 1.0, "log_loss": 0.5}
    assert (record.tissue, record.tiles, record.embed, record.compute) == (
        params.tissue,
        params.tiles,
        params.embed,
        params.compute,
    )
    assert read_model(tmp_path / "model", "x").record == record
    assert {
        path.relative_to(tmp_path / "model").as_posix()
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    } == set(FILES)
    assert package_round(project, 0, tmp_path / "first").threshold == 0.25


def test_the_versions_are_those_of_all_data_that_the_round_comes_from(
    project: Path, tmp_path: Path
) -> None:
    record = package_round(project, 1, tmp_path / "model")
    assert record.versions == {path: md5_of(project / path) for path in record.versions}
    assert {
        "data/heads/1",
        "data/encoders/1",
        "data/mined/1/mined.parquet",
        "data/scores/0/tiles.parquet",
        "data/encoders/0",
        "vetoes",
    } <= set(record.versions)
    assert not [path for path in record.versions if "test" in path or "annotations" in path]
    first = package_round(project, 0, tmp_path / "first")
    assert not [path for path in first.versions if "/1" in path]


def test_what_the_workspace_lacks_comes_from_the_cache(project: Path, tmp_path: Path) -> None:
    package_round(project, 1, tmp_path / "model")
    tiny.fill_cache(project)
    shutil.rmtree(project / "data" / "heads" / "1")
    package_round(project, 1, tmp_path / "again")
    assert digest_of(tmp_path / "again") == digest_of(tmp_path / "model")


def test_what_is_in_neither_is_named(project: Path, tmp_path: Path) -> None:
    shutil.rmtree(project / "data" / "encoders" / "1")
    with pytest.raises(
        TrackingError,
        match=(
            r"data/encoders/1 \(md5 \w+\.dir\) is neither in the workspace nor in DVC's cache; run"
            r" dvc pull"
        ),
    ):
        package_round(project, 1, tmp_path / "model")


def test_a_round_that_was_not_evaluated_is_no_model(project: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PredictionError,
        match=r"round 3 was not evaluated; results/metrics\.json knows the rounds 0, 1",
    ):
        package_round(project, 3, tmp_path / "model")
    (project / "dvc.lock").unlink()
    with pytest.raises(
        PredictionError,
        match=r"dvc\.lock holds no evaluation, which gives a model its threshold; run dvc repro",
    ):
        package_round(project, None, tmp_path / "model")


def test_stages_that_ran_on_different_versions_make_no_model(project: Path, tmp_path: Path) -> None:
    (project / "data" / "mined" / "1" / "mined.parquet").write_text("mined anew")
    lock = json.dumps(tiny.YAML(typ="safe").load((project / "dvc.lock").read_text()))
    before = locked_stages(project)["mine@1"].outs["data/mined/1/mined.parquet"]
    stages = json.loads(lock)
    for out in stages["stages"]["mine@1"]["outs"]:
        if out["md5"] == before:
            out["md5"] = "ab" * 16
    tiny.YAML().dump(stages, project / "dvc.lock")
    with pytest.raises(
        PredictionError,
        match=(
            rf"\w+@1 ran on data/mined/1/mined\.parquet of md5 {before}, but mine@1 has written"
            rf" {'ab' * 16} since"
        ),
    ):
        package_round(project, 1, tmp_path / "model")


def test_a_state_of_an_earlier_version_is_named_with_its_cure(
    project: Path, tmp_path: Path
) -> None:
    lock = tiny.YAML(typ="safe").load((project / "dvc.lock").read_text())
    lock["stages"]["tiles"]["params"]["params.yaml"]["tissue"]["max_hole_um2"] = 20000.0
    tiny.YAML().dump(lock, project / "dvc.lock")
    with pytest.raises(
        ParamsError,
        match=(
            r"tiles of dvc\.lock, which another version .*\(run dvc repro\): tissue\.max_hole_um2"
            r" is gone"
        ),
    ):
        package_round(project, 1, tmp_path / "model")


def test_cards_go_with_the_round_that_they_speak_of(project: Path, tmp_path: Path) -> None:
    assert {name: card.read_text() for name, card in cards_of(project, "1").items()} == {
        "data_card.md": "results/data_card.md of evaluate\n",
        "model_card.md": "results/model_card.md of evaluate\n",
    }
    assert set(cards_of(project, "0")) == {"data_card.md"}
    assert cards_of(tmp_path / "elsewhere", "0") == {}
