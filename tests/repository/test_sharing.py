"""One person pushes, a colleague without slides pulls: the same hashes, nothing to run, the same
runs in MLflow.
"""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hnm.doctor import examine
from hnm.mining.extra import extra_negatives
from hnm.repository.outputs import md5_of
from hnm.repository.stages import locked_stages
from hnm.repository.verification import verify
from hnm.tracking.replay import sync
from tests.support import sharing as tiny
from tests.support.extra import mined, pack


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first person's repository and the colleague's clone."""
    folder = tmp_path_factory.mktemp("sharing")
    first = tiny.make_shared(folder / "first", str(folder / "remote"))
    return first, tiny.clone(first, folder / "colleague")


def test_what_was_pulled_is_what_was_pushed(shared: tuple[Path, Path]) -> None:
    first, colleague = shared
    outs = {
        path: md5 for state in locked_stages(first).values() for path, md5 in state.outs.items()
    }
    assert set(outs) == {
        "data/features/0",
        "data/features/1",
        "data/heads/0",
        "data/heads/1",
        "results/metrics.json",
    }
    assert {path: md5_of(colleague / path) for path in outs} == outs
    verified = verify(colleague, whole_cache=True)
    assert (verified.damaged, verified.changed, verified.missing) == ({}, {}, {})


def test_without_slides_nothing_after_tiles_has_to_run(shared: tuple[Path, Path]) -> None:
    _, colleague = shared
    assert not (colleague / "slides.csv").exists()
    said = tiny.run(colleague, "dvc", "repro", "--downstream", "head@0", "head@1")
    assert "Running stage" not in said and "Data and pipelines are up to date." in said


def test_the_colleague_sees_the_runs(
    shared: tuple[Path, Path], empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, colleague = shared
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, colleague / "mlflow.db")
    done = sync(colleague)
    assert (
        done.replayed == ["head-r0-dsmil-s0", "head-r1-dsmil-s0", "evaluate"]
        and done.summary == "baseline"
    )


def test_an_output_of_another_project_is_imported_with_its_provenance(
    shared: tuple[Path, Path], tmp_path: Path
) -> None:
    first, _ = shared
    tiny.run(tmp_path, "git", "init", "-q")
    tiny.run(tmp_path, "dvc", "init", "-q")
    tiny.run(tmp_path, "dvc", "import", "-q", str(first), "data/heads/1", "-o", "imported")
    assert md5_of(tmp_path / "imported") == locked_stages(first)["head@1"].outs["data/heads/1"]
    (origin,) = YAML(typ="safe").load((tmp_path / "imported.dvc").read_text())["deps"]
    assert origin == {
        "path": "data/heads/1",
        "repo": {
            "url": str(first),
            "rev_lock": tiny.run(first, "git", "rev-parse", "HEAD").strip(),
        },
    }


def test_hard_negatives_of_another_project_are_imported_and_a_stage_depends_on_them(
    tmp_path: Path,
) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    pack(other / "data" / "tiles" / "packs", "s1", 90, 91, 92)
    pack(other / "data" / "tiles" / "packs", "s2", 120)
    mined(
        other / "data" / "mined" / "2" / "mined.parquet",
        ("hard_negative", 1, "s1", 2),
        ("positive", 1, "s2", 0),
    )
    for root in (other, own):
        root.mkdir(exist_ok=True)
        tiny.run(root, "git", "init", "-q")
        tiny.run(root, "dvc", "init", "-q")
    tiny.run(other, "dvc", "add", "-q", "data/tiles/packs", "data/mined/2/mined.parquet")
    tiny.run(other, "git", "add", ".")
    tiny.run(other, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    (own / "extra" / "other" / "packs").mkdir(parents=True)
    tiny.run(
        own,
        "dvc",
        "import",
        "-q",
        str(other),
        "data/mined/2/mined.parquet",
        "-o",
        "extra/other/mined.parquet",
    )
    tiny.run(
        own,
        "dvc",
        "import",
        "-q",
        str(other),
        "data/tiles/packs/s1.h5",
        "-o",
        "extra/other/packs/s1.h5",
    )
    pack(own / "packs", "s1", 10)
    table = extra_negatives(own / "extra", ("other",), own / "packs")
    assert table[["project", "slide_id", "tile", "own_slide"]].values.tolist() == [
        ["other", "s1", 2, False]
    ]
    (own / "dvc.yaml").write_text(
        "stages:\n  mine:\n    cmd: echo mined > mined\n    deps: [extra]\n    outs: [mined]\n"
    )
    assert "Running stage" in tiny.run(own, "dvc", "repro")
    (locked,) = YAML(typ="safe").load((own / "dvc.lock").read_text())["stages"]["mine"]["deps"]
    assert locked["md5"] == md5_of(own / "extra")


def test_the_doctor_finds_a_colleague_well_but_for_slides(shared: tuple[Path, Path]) -> None:
    _, colleague = shared
    findings = {finding.thing: finding.fine for finding in examine(colleague)}
    assert findings == {
        "tools": findings["tools"],
        "pipeline": True,
        "params": True,
        "slides": False,
        "lost": True,
        "runs": True,
        "causes": True,
        "place": True,
        "outputs": True,
        "remote": True,
    }
