"""A round's name comes from params.yaml, and DVC hands each command to a shell: the name must not
be part of one.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hnm.errors import ParamsError
from hnm.repository.stages import of_round, running_round
from tests.support.stages import Launcher, stand_in

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "1; touch pwned",
    "1'; touch pwned; '",
    "$(touch pwned)",
    '"; touch pwned; "',
    "`touch pwned`",
    "1\ntouch pwned",
]


def make_repository(folder: Path, commands: dict[str, str]) -> None:
    """`commands` by stage, as stages of each round, with rounds of hostile names; nothing that a
    stage reads is there.
    """
    params: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    params["later_rounds"] = params["rounds"] = {name: {"previous": "0"} for name in HOSTILE}
    stages = {
        name: {"foreach": "${rounds}", "do": {"cmd": cmd, "params": ["rounds"]}}
        for name, cmd in commands.items()
    }
    for name, content in (("params.yaml", params), ("dvc.yaml", {"stages": stages})):
        YAML().dump(content, folder / name)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n    analytics = false\n")


def repro(folder: Path, programs: Path) -> str:
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DVC_NO_ANALYTICS": "1",
    }
    command = [sys.executable, "-m", "dvc", "repro", "--keep-going"]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    ).stdout


@pytest.mark.timeout(240)
def test_no_command_of_dvc_yaml_runs_what_a_rounds_name_says(
    tmp_path: Path, launcher: Launcher
) -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    (tmp_path / "ours").mkdir()
    make_repository(tmp_path / "ours", {"embed": stages["embed"]["do"]["cmd"]})
    with stand_in(launcher, tmp_path / "s") as programs:
        output = repro(tmp_path / "ours", programs / "stages")
    assert not (tmp_path / "ours" / "pwned").exists()
    assert output.count("of params.yaml is no number; rounds count from") == len(HOSTILE), (
        output
    )  # every command was reached


def test_a_name_in_a_command_would_be_run(tmp_path: Path) -> None:
    """What the test above would see if a command held the name."""
    make_repository(tmp_path, {"embed": "true --encoder data/encoders/${key}"})
    repro(tmp_path, Path(sys.executable).parent)
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("stage", "round_"),
    [("embed@1", "1"), ("sub/dvc.yaml:head@12", "12"), ("cohort", None), ("", None)],
)
def test_the_round_is_that_of_the_running_stage(
    stage: str, round_: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", stage)
    assert running_round() == round_


@pytest.mark.parametrize(
    "name", ["01", "-1", "1.0", "../..", "1000000", "٣", "1\n", " 1", *HOSTILE]
)
def test_a_name_that_is_no_number_is_refused_and_stands_in_no_path(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", f"embed@{name}")
    with pytest.raises(ParamsError, match=r'of params.yaml is no number; rounds count from "0"'):
        running_round()
    assert of_round("data/heads/{round}", name) == "data/heads/{round}"


def test_a_word_has_its_round_and_the_one_before() -> None:
    assert of_round("data/scores/{previous}/tiles.parquet", "10") == "data/scores/9/tiles.parquet"
    assert of_round("data/heads/{round}", "10") == "data/heads/10"
    assert of_round("data/heads/{round}", None) == "data/heads/{round}"
