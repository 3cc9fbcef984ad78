"""What will run again for another library or machine, and why, by dvc.lock."""

from importlib import metadata
from pathlib import Path

import pytest

from hnm.repository.reruns import UNKNOWN, reruns
from tests.support import project as tiny_project


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages ran with the causes of here and now, which DVC's cache holds."""
    root = tiny_project.make_project(tmp_path_factory.mktemp("project"))
    tiny_project.fill_cache(root)
    return root


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distribution -> version that it is said to have."""
    versions: dict[str, str] = {}
    true = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or true(name))
    return versions


def test_nothing_where_nothing_differs(locked: Path, said: dict[str, str]) -> None:
    assert reruns(locked, "cpu") == []
    said["mlflow"] = "99.1"
    assert reruns(locked, "cpu") == []


def test_an_upgrade_with_the_stages_that_run_again(locked: Path, said: dict[str, str]) -> None:
    before = metadata.version("kornia"), metadata.version("openslide-bin")
    said |= {"kornia": "99.1", "openslide-bin": "99.2"}
    assert sorted(reruns(locked, "cpu")) == [
        f"kornia {before[0]} -> 99.1: encoder, finetune run again",
        f"openslide-bin {before[1]} -> 99.2: cohort, tiles run again",
    ]


def test_another_machine(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert reruns(locked, "cpu") == [
        "ATEN_CPU_CAPABILITY none -> default: encoder, embed, head, mine, finetune run again"
    ]


def test_causes_that_nobody_has_brought_are_said_to_be_unknown(
    locked: Path, said: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "dvc.lock").write_bytes((locked / "dvc.lock").read_bytes())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes((locked / ".dvc" / "config").read_bytes())
    said["openslide-bin"] = "99.2"
    assert reruns(tmp_path, "cpu") == [f"{UNKNOWN}: cohort, tiles run again"]


def test_without_a_lock_nothing_ran(tmp_path: Path) -> None:
    assert reruns(tmp_path, "cpu") == []
