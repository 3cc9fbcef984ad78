"""DVC's files and this project's own: locked, torn, tampered with, of another version, or used by
two at once.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support import project as projects
from tests.support.stages import ORDER, SMALL, Launcher, Project, outs_of
from tests.test_pipeline import change_params, environment, make_repository

QUICK, SLOW = ("hnm verify", "hnm lineage data/heads/1"), ("hnm doctor", "hnm track sync")
TORN = {
    "torn": b"schema: '2.0'\nstages:\n  head@0:\n    cmd: 'python -m pipeli",
    "of a merge": b"<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '2.0'\n>>>>>>> theirs\n",
    "binary": bytes(range(256)) * 20,
    "latin-1": "schema: '2.0'\nstages: {ä: {}}\n".encode("latin-1"),
    "a list": b"- 1\n- 2\n",
    "a bomb": (
        (
            "a0: &a0 [x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
            + "stages: *a8\n"
        ).encode()
    ),
    "of odd kinds": (
        b"schema: '2.0'\nstages:\n  head@0: [1]\n  tiles: {cmd: 5, deps: {a: b}, outs: 7, params:"
        b" []}\n"
    ),
}


@pytest.fixture
def locked(tmp_path: Path, launcher: Launcher) -> Project:
    """A project with every output and a dvc.lock that names them, small and made at once."""
    folder = tmp_path / "project"
    folder.mkdir()
    return Project(projects.make_project(folder), launcher)


@pytest.mark.parametrize("how", list(TORN))
def test_bad_dvc_lock(locked: Project, how: str) -> None:
    """Whatever dvc.lock holds, a command says one thing about it and ends."""
    (locked.folder / "dvc.lock").write_bytes(TORN[how])
    for command in QUICK + (SLOW if how == "torn" else ()):
        done = locked.run(command)
        assert "Traceback" not in done.err + done.out, f"{command}: {done.err[-800:]}"
        assert done.code in (0, 1) and len(done.err) < 3000, (
            f"{command}: {done.code} {done.err[:300]}"
        )
    done = locked.run("hnm verify")
    assert done.code == 1 and "dvc.lock" in done.err, done.err


@pytest.mark.parametrize("content", [b"", b"stages: {}\n", b"- 1\n", b"\xff\xfe"])
def test_empty_dvc_yaml(locked: Project, content: bytes) -> None:
    """DVC calls an empty dvc.yaml up to date; the doctor does not, and no command breaks on it."""
    (locked.folder / "dvc.yaml").write_bytes(content)
    doctor = locked.run("hnm doctor")
    assert doctor.code == 1 and "dvc.yaml" in doctor.out and "Traceback" not in doctor.err, (
        doctor.out
    )


@pytest.mark.parametrize(
    "content", ["{}", "[]", "5", '{"test": {}, "rounds": {"0": 5}}', '{"rounds": {}}', "torn {"]
)
def test_metrics_of_another_form(locked: Project, content: str) -> None:
    """Of an earlier version, or of another hand: named with the cure."""
    (locked.folder / "results" / "metrics.json").write_text(content)
    done = locked.run("hnm rounds")
    assert done.code == 1 and "metrics.json" in done.err and "Traceback" not in done.err, done.err[
        -500:
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("negative_fraction:", "negativ_fraction:", "did you mean mining.negative_fraction?"),
        ("threads: 2", "threads: 1e9", "compute.threads"),
        ("tile_px: 96", "tile_px: -1", "tiles.tile_px"),
        ("seed: 0", "seed: !!python/object/apply:os.system ['touch PWNED']", "params.yaml"),
        ("name: demo", "name: 'x; touch PWNED'", "cohort.name"),
        ('"1": {previous: "0"}', '"1; touch PWNED": {previous: "0"}', "params.yaml"),
        ("cohort:", "cohort: &a [*a]\nx:", "params.yaml"),
        ("cohort:", "\tcohort:", "params.yaml"),
        ("margin: 0.5", "margin: .nan", "ranking.margin"),
        ("margin: 0.5", "margin: " + "9" * 5000, "params.yaml"),
        ("margin: 0.5", "margin: " + "[" * 5000, "params.yaml"),
    ],
)
def test_bad_params(locked: Project, old: str, new: str, words: str) -> None:
    path = locked.folder / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    done = locked.run("mine@1")
    assert (
        done.code == 1
        and "Traceback" not in done.err
        and words in done.err
        and len(done.err) < 3000
    ), done.err[:600]
    assert not list(locked.folder.rglob("PWNED"))


def test_a_round_s_name_reaches_no_shell(tmp_path: Path, cohort: Path) -> None:
    """params.yaml names the rounds, and DVC puts the names into commands: a name that is a command
    is never run.
    """
    folder = make_repository(tmp_path / "repository", cohort)
    yaml = YAML()
    raw = yaml.load(folder / "params.yaml")
    raw["rounds"] = {"0": {}, "0; touch PWNED #": {}}
    yaml.dump(raw, folder / "params.yaml")
    done = subprocess.run(
        ["dvc", "repro", "--downstream", "encoder"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert not list(folder.rglob("PWNED"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, cohort: Path) -> Path:
    """A real repository in which nothing has run."""
    folder = make_repository(tmp_path_factory.mktemp("dvc") / "repository", cohort)
    change_params(
        folder, rounds=1, **{name: values for name, values in SMALL.items() if name != "cohort"}
    )
    return folder


def test_two_repros_at_once(repository: Path) -> None:
    """One of them works, the other says that it must wait, or works after it; the result is one."""
    both = [
        subprocess.Popen(
            ["dvc", "repro", "cohort"],
            cwd=repository,
            env=environment(repository),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, said
    for code, words in zip(codes, said, strict=True):
        assert code == 0 or "lock" in words.casefold(), words
    lock = (repository / "dvc.lock").read_bytes()
    assert YAML(typ="safe").load(lock.decode())["stages"]["cohort"]["outs"]
    assert (
        subprocess.run(
            ["dvc", "repro", "cohort"],
            cwd=repository,
            env=environment(repository),
            capture_output=True,
        ).returncode
        == 0
    )
    assert (repository / "dvc.lock").read_bytes() == lock


def test_two_stages_at_once_on_one_store(
    project: Project, undisturbed: Project, tmp_path: Path
) -> None:
    """Two projects cut the same slides at once into one store: both have every tile, and each slide
    is kept once.
    """
    other = undisturbed.copy(tmp_path / "other")
    store = str(tmp_path / "store")
    for one in (project, other):
        one.empty("tiles")
    pids = [(one, one.start("tiles", HNM_STORE=store)) for one in (project, other)]
    for one, pid in pids:
        done = one.wait(pid)
        assert done.code == 0, done.err
        assert one.bytes_of("data/tiles") == undisturbed.bytes_of("data/tiles")
    assert len(list((Path(store) / "tiles").rglob("[!.]*.h5"))) == 8
    assert not list(Path(store).rglob(".hnm-tmp-*"))


def test_stale_locks(repository: Path) -> None:
    """Locks of processes that are dead, of DVC and of this program, hold nobody up."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    (repository / ".dvc" / "tmp").mkdir(exist_ok=True)
    (repository / ".dvc" / "tmp" / "lock").touch()
    entry = {"pid": dead.pid, "cmd": "dvc repro"}
    (repository / ".dvc" / "tmp" / "rwlock").write_text(
        json.dumps(
            {"write": {str(repository / "data" / "cohort" / "slides.parquet"): entry}, "read": {}}
        )
    )
    (repository / ".hnm").mkdir(exist_ok=True)
    for name in ("sync.lock", "mlflow.lock"):
        (repository / ".hnm" / name).touch()
    done = subprocess.run(
        ["dvc", "repro", "cohort"],
        cwd=repository,
        env=environment(repository),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_artefacts_of_older_versions(project: Project, undisturbed: Project) -> None:
    """A project that an earlier version has filled: an unmarked store, temporary files of old
    names, records without what is new.
    """
    store = project.folder / ".hnm" / "store"
    (store / ".hnm-store").unlink()
    packs = {path.name: path.stat().st_mtime_ns for path in store.rglob("[!.]*.h5")}
    shard = next(store.glob("tiles/??"))
    (shard / ".0123456789abcdef.h5").write_bytes(
        b"of a write that an earlier version was killed at"
    )
    (project.folder / ".hnm" / "cost").mkdir(exist_ok=True)
    (project.folder / ".hnm" / "cost" / "head@0.json").write_text(
        '{"stage": "head@0", "minutes": 3}'
    )
    (project.folder / ".hnm" / "cost" / "tiles.json").write_text("{}")
    project.clear("tiles")
    project.succeed("tiles", "mine@1")
    assert project.bytes_of("data/tiles", "data/mined") == undisturbed.bytes_of(
        "data/tiles", "data/mined"
    )
    assert {path.name: path.stat().st_mtime_ns for path in store.rglob("[!.]*.h5")} == packs
    for command in ("hnm store ls", "hnm store gc --max-gb 1", "hnm rounds", "hnm doctor"):
        done = project.run(command)
        assert "Traceback" not in done.err + done.out, f"{command}: {done.err[-600:]}"
    assert {path.name: path.stat().st_mtime_ns for path in store.rglob("[!.]*.h5")} == packs


def test_a_project_that_was_moved(undisturbed: Project, tmp_path: Path) -> None:
    """Nothing is bound to where a project lay: its stages find their results, and nothing is
    written to the old place.
    """
    moved = undisturbed.copy(tmp_path / "elsewhere" / "project")
    before = {
        path: path.stat().st_mtime_ns
        for path in undisturbed.folder.rglob("*")
        if ".log" not in path.name
    }
    for stage in ORDER[:3]:
        moved.clear(stage)
    moved.succeed(*ORDER[:3])
    for stage in ORDER[:3]:
        assert moved.bytes_of(*outs_of(stage)) == undisturbed.bytes_of(*outs_of(stage))
    assert {
        path: path.stat().st_mtime_ns
        for path in undisturbed.folder.rglob("*")
        if ".log" not in path.name
    } == before


def test_a_store_of_another_folder_is_not_emptied(project: Project, tmp_path: Path) -> None:
    """HNM_STORE and HNM_SLIDE_CACHE at a home folder: refused, and not a file of it goes."""
    home = tmp_path / "home"
    for name in (
        ".git/config",
        ".ssh/id_ed25519",
        ".bashrc",
        "thesis/chapter.tex",
        "ab/" + "c" * 64 + ".h5",
        "slides/a.svs",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
        os.utime(home / name, (0, 0))
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    project.clear("tiles")
    for command in ("hnm store gc --max-gb 0.000001", "hnm store ls", "tiles"):
        done = project.run(command, HNM_STORE=str(home))
        assert done.code == 1 and "HNM_STORE" in done.err and "Traceback" not in done.err, (
            f"{command}: {done.err}"
        )
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    shutil.rmtree(home)
