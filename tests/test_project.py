"""Which folder is the project, and where what outlives its copies lies: from every folder, and in
every layout of Git and DVC.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnm.project import project_file, project_home, project_root
from hnm.repository.revision import UnknownRevisionError, file_at
from hnm.store import project_store

ROOT = Path(__file__).parents[1]
LAYOUTS = ["alone", "dvc in a subfolder", "dvc above"]
STAGE = (
    "import pathlib, hnm.project as s; pathlib.Path('seen').write_text(f'{s.project_root()}"
    ' {s.project_home()} {s.project_file(pathlib.Path("in/a"))}\')'
)


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", "HNM_STORE"):
        monkeypatch.delenv(name, raising=False)


def project(folder: Path) -> Path:
    """A project with the folders that have a dvc.yaml of their own."""
    for name in (
        "params.yaml",
        "dvc.yaml",
        "cv/dvc.yaml",
        "studies/first/dvc.yaml",
        "data/demo/slides.csv",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("inside", ["", "data/demo", "cv", "studies", "studies/first"])
@pytest.mark.parametrize("dvc_root", ["", "cv", ".."])
def test_the_project_is_the_nearest_folder_with_params_and_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, dvc_root: str
) -> None:
    """Whatever DVC calls its root, which may lie above the project."""
    outer = project(tmp_path / "outer")
    root = project(outer / "extra" / "inner")
    monkeypatch.chdir(root / inside)
    monkeypatch.setenv("DVC_ROOT", str(root / dvc_root))
    assert project_root() == project_home() == root
    assert project_store().root == root / ".hnm" / "store"
    monkeypatch.chdir(outer / "extra")
    assert project_root() == outer


def test_outside_of_a_project_dvc_s_root_counts_and_else_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_root() == project_home() == tmp_path
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "there"))
    assert project_root() == project_home() == tmp_path / "there"


def layout(folder: Path, kind: str) -> tuple[Path, Path, Path]:
    """Git's root, DVC's and the project's."""
    root = folder if kind == "alone" else folder / "work" / "sub"
    return folder, root if kind == "dvc in a subfolder" else folder, root


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_copy_of_an_experiment_has_its_home_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    git, dvc, root = layout(tmp_path, kind)
    project(root)
    (root / "in").mkdir()
    (root / "in" / "a").touch()
    clone = dvc / ".dvc" / "tmp" / "exps" / "standalone" / "tmpab12"
    copy = project(clone / root.relative_to(git))
    for repository in (git, clone):
        (repository / ".git").mkdir()
    for place in (copy, copy / "studies" / "first"):
        monkeypatch.chdir(place)
        assert (project_root(), project_home()) == (copy, root)
        assert project_store().root == root / ".hnm" / "store"
        monkeypatch.setenv("HNM_STORE", "other")
        assert project_store().root == root / "other"
        monkeypatch.delenv("HNM_STORE")
    monkeypatch.chdir(copy)
    assert project_file(Path("in/a")) == project_file(copy / "in" / "a") == root / "in" / "a"
    assert project_file(Path("data/demo/slides.csv")) == Path("data/demo/slides.csv")
    assert project_file(Path("in/none")) == root / "in" / "none" and project_file(
        Path("/none/a")
    ) == Path("/none/a")
    monkeypatch.chdir(root)
    assert (project_root(), project_home()) == (root, root) and project_file(
        Path("in/none")
    ) == Path("in/none")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_experiments_and_revisions_of_the_real_dvc(tmp_path: Path, kind: str) -> None:
    git, dvc, root = layout(tmp_path / "repository", kind)
    root.mkdir(parents=True)

    def run(folder: Path, *command: str) -> str:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC", "GIT"))
        }
        names = {
            f"GIT_{who}_{what}": "a@b"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        environment = {
            **inherited,
            **names,
            "PATH": f"{Path(sys.executable).parent}:{inherited['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DVC_NO_ANALYTICS": "1",
        }
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    run(git, "git", "init", "-q", "-b", "main")
    run(dvc, "dvc", "init", "-q", *(["--subdir"] if dvc != git else []))
    (root / "stage.py").write_text(STAGE)
    (root / "params.yaml").write_text("a: 1\n")
    (root / "dvc.yaml").write_text(
        "stages:\n  s:\n    cmd: python stage.py\n    params: [a]\n    outs:\n      - seen:\n      "
        "    cache: false\n"
    )
    (root / ".gitignore").write_text("/in/\n")
    (root / "in").mkdir()
    (root / "in" / "a").touch()
    run(root, "dvc", "repro", "-q")
    assert (root / "seen").read_text() == f"{root} {root} in/a"
    run(git, "git", "add", "-A")
    run(git, "git", "commit", "-qm", "first")
    run(root, "dvc", "exp", "run", "-q", "--temp", "--name", "other", "-S", "a=2")
    lock, params = (file_at(root, "other", name) for name in ("dvc.lock", "params.yaml"))
    assert lock is not None and b"a: 2" in lock and params == b"a: 2\n"
    before = file_at(root, "main", "dvc.lock")
    assert before is not None and b"a: 1" in before and file_at(root, "main", "none.yaml") is None
    with pytest.raises(UnknownRevisionError, match="nowhere is no revision that git or DVC knows"):
        file_at(root, "nowhere", "dvc.lock")
    copy, home, file = (file_at(root, "other", "seen") or b"").decode().split()
    assert Path(copy).is_relative_to(dvc / ".dvc" / "tmp" / "exps") and (home, file) == (
        str(root),
        str(root / "in" / "a"),
    )
