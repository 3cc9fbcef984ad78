"""The loop on folds of a tiny cohort."""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from hnm.cli import app
from hnm.cross_validation.runs import FoldScores, run_fold
from hnm.cross_validation.stages import fold_file, write_stages
from hnm.errors import StudyError
from hnm.evidence.numbers.pooling import out_of_fold
from hnm.evidence.test_ledger import read_ledger
from hnm.loop.paths import Paths
from hnm.loop.rounds import Loop, RoundResult
from hnm.params import Params
from hnm.store import Store
from hnm.tables import LABELS, SLIDES
from tests.support.stages import Launcher, stand_in
from tests.support.study import make_upstream, tiny_params


def params_with(folds: int) -> Params:
    return tiny_params(split={"folds": folds})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "data"
    make_upstream(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def run_folds(data: Path, store: Store) -> list[FoldScores]:
    return [run_fold(data.parent, params_with(3), store, seed=0, fold=fold) for fold in range(3)]


@pytest.fixture(scope="module")
def results(data: Path, store: Store) -> list[FoldScores]:
    return run_folds(data, store)


def test_the_seed_of_a_fold_is_added_to_the_seeds_of_its_loop(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Params] = []

    def rounds(self: Loop, params: Params, fold: object = None) -> list[RoundResult]:
        seen.append(params)
        raise StudyError("seen")

    monkeypatch.setattr(Loop, "rounds", rounds)
    for seed in (0, 2):
        with pytest.raises(StudyError, match=r"^seen$"):
            run_fold(data.parent, params_with(3), store, seed=seed, fold=1)
    seeds = [
        (params.head.seed, params.mining.seed, params.finetune.seed, params.split.seed)
        for params in seen
    ]
    assert seeds == [(0, 0, 0, 0), (2, 2, 2, 0)]


def test_each_slide_is_test_once_with_its_label_and_patient(
    data: Path, results: list[FoldScores]
) -> None:
    table = pd.concat(
        [out_of_fold(result.slides, seed=result.seed, fold=result.fold) for result in results]
    )
    labels = pd.concat(
        [
            LABELS.read(data / "cohort" / "labels" / f"{split}.csv")
            for split in ("train", "validation", "test")
        ]
    )
    assert dict(zip(table["slide_id"], table["label"], strict=True)) == dict(
        zip(labels["slide_id"], labels["label"], strict=True)
    )
    assert (
        len(table)
        == len(labels)
        == SLIDES.read(Paths(data.parent).cohort.slides)["patient_id"].nunique()
    )
    assert table["score"].between(0, 1).all() and set(table["fold"]) == {0, 1, 2}


def test_no_slide_is_scored_by_a_head_that_it_trained(results: list[FoldScores]) -> None:
    """Of a fold only validation and test slides are held out, and validation is the next fold's
    test.
    """
    by_split = [
        {split: set(own["slide_id"]) for split, own in result.slides.groupby("split")}
        for result in results
    ]
    for fold, own in enumerate(by_split):
        assert (
            own["validation"] == by_split[(fold + 1) % 3]["test"]
            and not own["validation"] & own["test"]
        )
    assert Counter(result.slides["round"].nunique() for result in results) == {2: 3}


def test_round_0_is_embedded_once_for_all_folds(
    data: Path, store: Store, results: list[FoldScores]
) -> None:
    embedded = len(list((store.root / "features").glob("*/*.h5")))
    slides = len(SLIDES.read(Paths(data.parent).cohort.slides))
    assert embedded == slides * (1 + 3)  # round 0 together, round 1 by each fold


def test_the_same_folds_again_come_from_the_store(
    data: Path, store: Store, results: list[FoldScores]
) -> None:
    before = sorted(path.as_posix() for path in store.root.rglob("*"))
    again = run_folds(data, store)
    assert [result.slides.to_dict() for result in again] == [
        result.slides.to_dict() for result in results
    ]
    assert sorted(path.as_posix() for path in store.root.rglob("*")) == before


def test_no_folds_no_cross_validation(data: Path, store: Store) -> None:
    with pytest.raises(
        StudyError, match=r"split\.folds=0 asks for no cross-validation; set it to 3 or more"
    ):
        run_fold(data.parent, params_with(0), store, seed=0, fold=0)
    with pytest.raises(StudyError, match=r"there is no fold 3: split\.folds=3 counts them from 0"):
        run_fold(data.parent, params_with(3), store, seed=0, fold=3)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one round, with the cohort made, under DVC."""
    root = tmp_path_factory.mktemp("repository")
    make_upstream(root / "data")
    (root / "weights").mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    params = tiny_params(
        rounds={"0": {}}, later_rounds={}, split={"folds": 3}, evaluate={"resamples": 100}
    )
    (root / "params.yaml").write_text(params.model_dump_json())
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=root, check=True
    )
    return root


def dvc(root: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_every_fold_and_seed_is_a_stage_of_its_own(repository: Path) -> None:
    path = write_stages(repository, seeds=2, folds=3)
    listed = dvc(repository, "stage", "list", "cv/dvc.yaml", "--name-only").split()
    assert listed == [
        *(f"cv/dvc.yaml:fold@{seed}-{fold}" for seed in range(2) for fold in range(3)),
        "cv/dvc.yaml:pool",
    ]
    stages = YAML(typ="safe").load(path.read_text())["stages"]
    assert stages["pool"]["deps"][:6] == [
        fold_file(seed, fold) for seed in range(2) for fold in range(3)
    ]
    read = {name.partition(".")[0] for name in stages["fold"]["params"]}
    assert read == set(Params.model_fields) - {
        "later_rounds",
        "cohort",
        "tissue",
        "tiles",
        "evaluate",
        "tune",
    }  # seen in the tiles, or asked by no fold


def test_causes_are_a_dependency_as_the_pipelines_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def causes_of_stage(name: str) -> list[dict[str, dict[str, str]]]:
        stage = YAML(typ="safe").load(write_stages(tmp_path, seeds=1, folds=3).read_text())[
            "stages"
        ][name]
        return [
            json.loads((tmp_path / path).read_text())
            for path in stage["deps"]
            if path.startswith("cv/causes/")
        ]

    loop, pooling = causes_of_stage("fold")
    assert {"hnm.loop.finetune", "hnm.mining.select", "hnm.cross_validation.folds"} < loop[
        "code"
    ].keys() and "hnm.store" not in loop["code"]
    assert {"torch", "timm", "scikit-learn"} < loop["libraries"].keys() and loop["machine"]
    assert [pooling] == causes_of_stage("pool") and "hnm.evidence.numbers.areas" in pooling["code"]
    true = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.1" if name == "torch" else true(name))
    assert [causes_of_stage("fold")[0] == loop, causes_of_stage("pool") == [pooling]] == [
        False,
        True,
    ]


def test_hnm_cv_runs_the_stages_and_says_what_they_found(
    repository: Path, monkeypatch: pytest.MonkeyPatch, launcher: Launcher, tmp_path: Path
) -> None:
    monkeypatch.chdir(repository)
    with stand_in(launcher, tmp_path / "s") as programs, monkeypatch.context() as patch:
        patch.setenv("PATH", str(programs / "hnm"), prepend=os.pathsep)
        done = CliRunner().invoke(app, ["cv"])
    assert done.exit_code == 0, done.output
    assert "16 slides of 16 patients, each test once" in done.output
    summary = (repository / "results" / "cv" / "summary.json").read_bytes()
    table = pd.read_csv(repository / "results" / "cv" / "slides.csv")
    assert sorted(table["fold"].unique()) == [0, 1, 2] and len(table) == 16
    assert len(read_ledger(repository / "test_ledger.csv")) == 3
    locked = YAML(typ="safe").load((repository / "cv" / "dvc.lock").read_text())["stages"]
    assert set(locked) == {"fold@0-0", "fold@0-1", "fold@0-2", "pool"}
    shown = json.loads(dvc(repository, "metrics", "show", "--json"))[""]["data"][
        "results/cv/summary.json"
    ]["data"]
    assert shown["seeds"]["0"]["auc"] == json.loads(summary)["seeds"]["0"]["auc"]

    assert CliRunner().invoke(app, ["cv"]).exit_code == 0
    assert (
        len(read_ledger(repository / "test_ledger.csv")) == 3
    )  # nothing ran, so nothing was looked at
    assert (repository / "results" / "cv" / "summary.json").read_bytes() == summary


@pytest.mark.parametrize(
    ("folds", "says"),
    [
        (0, "split.folds=0 asks for no cross-validation; set it to 3 or more in params.yaml"),
        (
            9,
            (
                "8 patients with positive slides cannot be dealt into split.folds=9 folds, each of"
                " which needs one; lower it or add patients"
            ),
        ),
    ],
)
def test_hnm_cv_starts_nothing_that_cannot_be_dealt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path, folds: int, says: str
) -> None:
    (tmp_path / "data").symlink_to(data)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(params_with(folds).model_dump_json())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["cv"])
    assert (done.exit_code, done.stderr) == (1, f"error: {says}\n")
    assert not (tmp_path / "cv").exists()


def test_hnm_cv_says_which_stages_failed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], 1)

    monkeypatch.chdir(repository)
    monkeypatch.setattr("hnm.cross_validation.stages.subprocess.run", fail)
    done = CliRunner().invoke(app, ["cv"])
    assert done.exit_code == 1
    assert (
        "error: a stage of cv/dvc.yaml has failed; the lines above say why, and hnm cv goes on"
        " where it stopped" in done.stderr
    )
