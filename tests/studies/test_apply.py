"""A winner in params.yaml: comments and order stay, and the stages then yield the very value that
the study showed.
"""

import csv
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from hnm.errors import ParamsError, StudyError
from hnm.loop.rounds import Loop, Upstream
from hnm.params import load_params
from hnm.store import Store
from hnm.studies.apply import trial_values, write_values
from hnm.studies.files import StudyFiles
from hnm.studies.study import StudySettings, run_study
from tests.support.rounds import run_stages
from tests.support.study import RAW, make_upstream

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def params_yaml(tmp_path: Path) -> Path:
    return Path(shutil.copy(PARAMS, tmp_path / "params.yaml"))


def test_only_the_lines_of_changed_params_change(params_yaml: Path) -> None:
    before = params_yaml.read_text()
    changed = write_values(
        params_yaml,
        {
            "ranking.margin": 0.1 + 0.2,
            "ranking.top_k": 10,
            "mining.policy": "hard",
            "finetune.views.blur": 0.125,
        },
    )
    assert changed == {
        "ranking.margin": (0.5, 0.30000000000000004),
        "mining.policy": ("mixed", "hard"),
        "finetune.views.blur": (0.2, 0.125),
    }
    lines = [
        (old, new)
        for old, new in zip(before.splitlines(), params_yaml.read_text().splitlines(), strict=True)
        if old != new
    ]
    assert lines == [
        ("  margin: 0.5", "  margin: 0.30000000000000004"),
        ("  policy: mixed", "  policy: hard"),
        ("    blur: 0.2", "    blur: 0.125"),
    ]
    again = params_yaml.read_bytes()
    assert (
        write_values(params_yaml, {"ranking.margin": 0.30000000000000004}) == {}
        and params_yaml.read_bytes() == again
    )


NEEDED = """rounds: {"0": {}}
later_rounds: {}
cohort: {name: c, manifest: s.csv}
tiles: {mpp: 1.0, tile_px: 96}
tune: {space: {}}
"""
"""The params that have no default."""


def test_a_comment_on_the_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"# top\n{NEEDED}ranking: # of tiles\n  margin: 0.5 # in scores\n")
    write_values(path, {"ranking.margin": 0.25, "head.dropout": 0.5})
    assert path.read_text().endswith(
        "ranking: # of tiles\n  margin: 0.25 # in scores\nhead:\n  dropout: 0.5\n"
    ) and path.read_text().startswith("# top\n")


@given(value=st.floats(min_value=1e-12, max_value=1e6))
def test_a_number_is_read_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_text(NEEDED)
    write_values(path, {"head.learning_rate": value})
    assert load_params(path).head.learning_rate == value


def test_a_value_that_params_yaml_refuses_leaves_it(params_yaml: Path) -> None:
    before = params_yaml.read_bytes()
    with pytest.raises(
        ParamsError, match=r"params\.yaml: ranking: margin=1\.5 can never be met by scores"
    ):
        write_values(params_yaml, {"ranking.margin": 1.5})
    assert params_yaml.read_bytes() == before


def test_a_params_yaml_that_cannot_be_written_is_named_and_stays(
    params_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = params_yaml.read_bytes()
    with monkeypatch.context() as patch:
        patch.setenv("HNM_FAILPOINT", "whole.creating:params.yaml=ENOSPC")
        with pytest.raises(
            StudyError,
            match=(
                r"params\.yaml cannot be written \(No space left on device\); make its folder"
                r" writable, or room on its disk"
            ),
        ):
            write_values(params_yaml, {"ranking.margin": 0.25})
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write any file
    with pytest.raises(
        StudyError, match=r"params\.yaml is read-only; make it writable \(chmod u\+w\)"
    ):
        write_values(params_yaml, {"ranking.margin": 0.25})
    assert params_yaml.read_bytes() == before


def test_the_stages_then_yield_the_value_that_the_study_showed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it: a study, its second trial into params.yaml, the stages with that file from
    the first round's features on.
    """
    files = StudyFiles(tmp_path / "studies" / "s")
    make_upstream(tmp_path / "data")
    upstream, path = Upstream(tmp_path), tmp_path / "params.yaml"
    with path.open("w") as stream:
        YAML().dump(RAW, stream)
    store = Store(tmp_path / "trials")
    settings = StudySettings(
        files, load_params(path), upstream, Loop(upstream, store), store, trials=2
    )
    run_study(settings, str)  # type: ignore[arg-type]
    number, values = trial_values(files, 1)
    assert number == 1 and values["ranking.margin"] != 0.5
    write_values(path, values)

    monkeypatch.setenv("HNM_STORE", str(tmp_path / "store"))
    paths = run_stages(tmp_path, tmp_path / "copy", load_params(path))
    auc, loss = max(best_epoch(paths.head(number).folder / "history.csv") for number in range(2))
    shown = pd.read_parquet(files.trials).iloc[1]
    assert shown["state"] == "complete" and (shown["validation_auc"], shown["validation_loss"]) == (
        auc,
        -loss,
    )
    assert shown["value"] == auc - 0.5 / 9 / 2 * -loss / (1 - loss)


def best_epoch(history: Path) -> tuple[float, float]:
    """Validation AUC and negative log loss of a head's best epoch, to the last bit."""
    with history.open() as stream:
        return max(
            (float(row["validation_auc"]), -float(row["validation_loss"]))
            for row in csv.DictReader(stream)
        )


def test_what_cannot_be_applied_is_named(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path / "s")
    with pytest.raises(
        StudyError, match=r"there is no study s in .*; there are none; name one by --study"
    ):
        trial_values(files, None)
    files.folder.mkdir()
    with pytest.raises(
        StudyError,
        match=(
            r"trials\.parquet does not exist: the study has no finished trial; run hnm tune --study"
            r" s, or dvc pull"
        ),
    ):
        trial_values(files, None)
    row = {
        "trial": 0,
        "state": "failed",
        "value": None,
        "validation_auc": None,
        "validation_loss": None,
        "cost": None,
        "rounds": 0,
        "best": False,
        "reason": "too dark",
        "ranking.margin": 0.5,
    }
    pd.DataFrame([row]).astype(
        dict.fromkeys(("value", "validation_auc", "validation_loss", "cost"), float)
    ).to_parquet(files.trials)
    for trial, message in (
        (0, r"trial 0 of the study s failed: too dark; apply another"),
        (3, r"the study s has no trial 3; its 1 trials count from 0"),
        (None, r"the study s has no complete trial"),
    ):
        with pytest.raises(StudyError, match=message):
            trial_values(files, trial)
