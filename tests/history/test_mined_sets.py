"""Mined sets of two revisions, found by the real Git and the real DVC."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hnm.cli import app
from hnm.errors import MiningError
from hnm.history.mined_sets import mined_difference
from hnm.tables import MINED
from tests.support import evidence as tiny_evidence

TABLES = [f"data/mined/{round_}/mined.parquet" for round_ in (0, 1, 2)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tagged `bare` without mined tiles, `zero` with round 0's table alone, `first` with round 1
    too, `second` with 1 and 2, of which 1 differs.
    """
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("repository")

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments],
            cwd=root,
            check=True,
            capture_output=True,
        )

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "nothing")
    git("tag", "nothing")
    Repo.init(str(root))
    (root / "params.yaml").write_text(json.dumps({"mining": {}}))
    git("add", "-A")
    git("commit", "-q", "-m", "bare")
    git("tag", "bare")
    before = tiny_evidence.mined(1)
    positive = before[before["slide_id"] == "tr1"]
    after = pd.concat(
        [before.drop(positive.index), positive.head(1).assign(tile=np.int32(7))]
    ).assign(scorer="fedcba9876543210")
    sections = {
        "first": {"policy": "hard", "screen": {"max_blur": 1.0}},
        "second": {"policy": "mixed", "screen": {"max_blur": 0.5}, "seed": 3},
    }
    none = MINED.empty()
    for tag, tables in (
        ("zero", [none]),
        ("first", [none, before]),
        ("second", [none, after, tiny_evidence.mined(2)]),
    ):
        (root / "params.yaml").write_text(json.dumps({"mining": sections.get(tag, {})}))
        stages = {
            f"mine{n}": {"cmd": "true", "outs": [path]}
            for n, path in enumerate(TABLES[: len(tables)])
        }
        (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
        for path, table in zip(TABLES, tables, strict=False):
            (root / path).unlink(missing_ok=True)
            MINED.write(table, root / path)
        with contextlib.chdir(root), Repo(str(root)) as repo:
            repo.commit(force=True)
        git("add", "-A")
        git("commit", "-q", "-m", tag)
        git("tag", tag)
    return root


def test_what_came_and_went_and_which_params_differ(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = mined_difference(repository, "first", "second", None)
    assert found.round == 1  # the last that both have
    assert found.params == {
        "mining.policy": ("hard", "mixed"),
        "mining.screen.max_blur": (1.0, 0.5),
        "mining.seed": (None, 3),
    }
    assert found.scorers == ("0123456789abcdef", "fedcba9876543210")
    hard, positive = found.by_role["hard_negative"], found.by_role["positive"]
    assert (hard.stayed, hard.came, hard.went, hard.jaccard, hard.churn) == (3, 0, 0, 1.0, 0.0)
    assert (positive.stayed, positive.came, positive.went, positive.jaccard, positive.churn) == (
        0,
        1,
        2,
        0.0,
        1.0,
    )
    assert found.by_slide.to_numpy().tolist() == [["tr1", "positive", 0, 1, 2]]
    monkeypatch.chdir(repository)
    assert CliRunner().invoke(app, ["mined", "diff", "first", "second"]).output.splitlines() == [
        "round 1, first to second",
        "mining.policy\thard -> mixed",
        "mining.screen.max_blur\t1.0 -> 0.5",
        "mining.seed\tNone -> 3",
        "scorer\t0123456789abcdef -> fedcba9876543210",
        "positive\t2 -> 1 tiles\tjaccard 0.000\tchurn 1.000",
        "hard_negative\t3 -> 3 tiles\tjaccard 1.000\tchurn 0.000",
        "tr1\tpositive\t1 came, 2 went, 0 stayed",
    ]
    same = (
        CliRunner().invoke(app, ["mined", "diff", "second"]).output.splitlines()
    )  # with the working tree
    assert same[:2] == ["round 2, second to workspace", "scorer\tthe same"] and len(same) == 4


def test_what_is_not_there_is_named_with_the_cure(repository: Path) -> None:
    with pytest.raises(
        MiningError, match="third is no Git revision; name a commit, a branch, a tag, or workspace"
    ):
        mined_difference(repository, "third", "second", None)
    with pytest.raises(
        MiningError, match=r"nothing holds no params.yaml; name a revision of this pipeline"
    ):
        mined_difference(repository, "nothing", "second", None)
    with pytest.raises(
        MiningError,
        match=(
            r"bare and first have no mined round in common; name revisions whose dvc.lock was"
            r" committed"
        ),
    ):
        mined_difference(repository, "bare", "first", None)
    with pytest.raises(MiningError, match=r"zero and first have no mined round in common"):
        mined_difference(repository, "zero", "first", None)
    with pytest.raises(
        MiningError,
        match=(
            r"first has no mined tiles of round 2 \(data/mined/2/mined.parquet\); name another"
            r" --round"
        ),
    ):
        mined_difference(repository, "first", "second", 2)


def test_a_table_that_the_cache_lacks_is_to_be_fetched(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(repository, clone)
    shutil.rmtree(clone / ".dvc" / "cache")
    with pytest.raises(
        MiningError,
        match=(
            r"first: data/mined/1/mined.parquet is not in DVC's cache .*; bring it with dvc fetch"
            r" --all-commits"
        ),
    ):
        mined_difference(clone, "first", "second", None)
