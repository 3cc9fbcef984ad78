"""A stage's command line, run in this process."""

import re
from importlib import metadata
from pathlib import Path

import pytest

from hnm.causes import causes_of
from hnm.errors import CausesError
from hnm.files import write_json
from hnm.params import Mining, load_params
from hnm.repository.costs import stage_seconds
from pipelines import stage

ROOT = Path(__file__).parents[2]


def mine(folder: Path, round: int, *, mining: Mining) -> None:
    """A stage that leaves what it was given."""
    (folder / f"{round}.txt").write_text(mining.policy, encoding="utf-8")


@pytest.mark.parametrize(
    ("rank", "stages"), [(None, {"test_stage@2"}), ("0", {"test_stage@2"}), ("1", set())]
)
def test_the_first_process_alone_enters_its_cost(
    rank: str | None, stages: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HNM_TRACKING", "off")
    for name, value in {"DVC_ROOT": str(tmp_path), "DVC_STAGE": None, "RANK": rank}.items():
        (
            monkeypatch.delenv(name, raising=False)
            if value is None
            else monkeypatch.setenv(name, value)
        )
    monkeypatch.setattr(stage, "die_with_parent", lambda: None)  # pytest shall not
    monkeypatch.setattr("sys.argv", ["mine", "--folder", str(tmp_path), "--round", "2"])
    stage.run(mine)
    assert (tmp_path / "2.txt").read_text(encoding="utf-8") == load_params(
        ROOT / "params.yaml"
    ).mining.policy
    assert set(stage_seconds(tmp_path)) == stages


def test_a_stage_refuses_causes_that_are_those_of_another_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else DVC would enter what a new library makes as a result of the old one: after `dvc repro
    --single-item`, or an upgrade in the middle of a run.
    """
    causes = tmp_path / "embed.json"
    stage.hold(causes, "pipelines.embed", "cpu")  # there is none outside of DVC
    write_json(causes_of("pipelines.embed"), causes)
    stage.hold(causes, "pipelines.embed", "cpu")
    true = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "torch" else true(name))
    with pytest.raises(
        CausesError,
        match=(
            rf"embed.json does not say what is here now \(torch {re.escape(true('torch'))} ->"
            r" 9\.9\)"
        ),
    ):
        stage.hold(causes, "pipelines.embed", "cpu")
