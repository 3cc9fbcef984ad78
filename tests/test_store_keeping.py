"""What the store keeps, what it lets go, and that bytes lie on the disk once: `hnm store ls|gc|verify`."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hnm.cli import app
from hnm.files import key_of
from hnm.learning import features
from hnm.slides.pack import Pack, PackTile, encode, write_pack
from hnm.store import Kept, Store, expired, project_store

DAY = 24 * 3600.0


def result(name: str, size: int, used: float) -> Kept:
    return Kept("tiles", Path(name), size, used, False)


KEPT = [result("a", 500, 10.0), result("b", 70, 20.0), result("c", 300, 30.0), result("d", 9, 40.0)]


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        ({}, ""),
        ({"max_seconds": 25.0}, "ab"),
        ({"max_seconds": 20.0}, "ab"),
        ({"max_bytes": 879}, ""),
        ({"max_bytes": 878}, "a"),
        ({"max_bytes": 309}, "ab"),
        ({"max_bytes": 308}, "abc"),
        ({"max_bytes": 0}, "abcd"),
        ({"max_seconds": 35.0, "max_bytes": 378}, "ab"),
        ({"max_seconds": 35.0, "max_bytes": 379}, "a"),
    ],
)
def test_what_expires_is_the_least_recently_used(limits, gone):
    assert "".join(str(kept.path) for kept in expired(KEPT, now=46.0, **limits)) == gone


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with two packs and a feature file, in a folder without DVC."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("HNM_STORE", str(tmp_path / "store"))
    store = project_store()
    tile = PackTile(3, 5, 0.75, encode(np.full((32, 32, 3), 200, np.uint8), 90))
    for number in (1, 2):
        write_pack(store.path("tiles", key_of(pack=number), ".h5"), [tile] * number, slide_id="s", mpp=1.0, tile_px=32, side=32, planned=number)
    features.write(np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((2, 2), np.int64), store.path("features", key_of(features=1), ".h5"))
    return store


def run(*arguments: str) -> tuple[int, list[str]]:
    outcome = CliRunner().invoke(app, ["store", *arguments])
    return outcome.exit_code, outcome.output.splitlines()


def test_results_are_found_and_other_files_are_not(store, tmp_path):
    (store.root / "README").write_text("x")
    folder = store.path("trials/heads", key_of(trial=1), "")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "head.json").write_text("12345")
    (folder / "history.csv").write_text("123")
    kept = {(result.kind, result.path): result for result in store.kept()}
    assert {kind for kind, _ in kept} == {"tiles", "features", "trials/heads"}
    assert len(kept) == 4
    assert kept["trials/heads", folder].bytes == 8
    pack = store.path("tiles", key_of(pack=1), ".h5")
    assert not kept["tiles", pack].shared
    time.sleep(0.02)  # file systems keep time in ticks
    store.link(pack, tmp_path / "out.h5")
    linked = store.kept()[-1]
    assert (linked.path, linked.shared) == (pack, True), "a link makes it the last that was used"


def test_ls(store, tmp_path):
    store.link(store.path("tiles", key_of(pack=1), ".h5"), tmp_path / "out.h5")
    code, lines = run("ls")
    assert code == 0
    assert [line.split()[:3] for line in lines[:2]] == [["features", "1", "results"], ["tiles", "2", "results"]]
    assert lines[2] == f"in {store.root}"


def test_gc_removes_leftovers_of_killed_writes_and_no_write_that_goes_on(store):
    for name, age in ((".hnm-tmp-old.h5", 2 * DAY), (".hnm-tmp-new.h5", 0.0), (".other.h5", 2 * DAY)):
        path = store.root / "tiles" / "ab" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    code, lines = run("gc", "--dry-run")
    assert (code, lines[0]) == (0, f"would remove {store.root}/tiles/ab/.hnm-tmp-old.h5")
    assert (store.root / "tiles" / "ab" / ".hnm-tmp-old.h5").exists()
    assert run("gc")[1][0] == f"removed {store.root}/tiles/ab/.hnm-tmp-old.h5"
    assert {path.name for path in (store.root / "tiles" / "ab").iterdir()} == {".hnm-tmp-new.h5", ".other.h5"}
    assert len(store.kept()) == 3


def test_gc_removes_what_killed_trials_were_making_and_no_trial_that_goes_on(store):
    trials = store.root / "trials" / "heads" / "ab"
    for name, written in ((".hnm-tmp-killed", 2 * DAY), (".hnm-tmp-slow", 0.0)):
        inner = trials / name / ".features-x" / "a.h5"
        inner.parent.mkdir(parents=True)
        inner.touch()
        for path, age in ((inner, written), (inner.parent, 2 * DAY), (trials / name, 2 * DAY)):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert run("gc")[1] == [f"removed {trials}/.hnm-tmp-killed", "0 results (0.0 MB) and 1 leftovers go, 3 results (0.0 MB) stay"]
    assert [path.name for path in trials.iterdir()] == [".hnm-tmp-slow"]


def test_gc_keeps_within_a_size_and_outputs_stay(store, tmp_path):
    first = store.kept()[0]
    store.link(first.path, tmp_path / "out.h5")
    code, lines = run("gc", "--max-gb", "0", "--dry-run")
    assert (code, len(lines), len(store.kept())) == (0, 4, 3)
    assert run("gc", "--max-gb", "0")[1][3].startswith("3 results")
    assert store.kept() == []
    assert (tmp_path / "out.h5").stat().st_size == first.bytes


def test_verify_names_what_is_damaged(store):
    assert run("verify") == (0, ["3 results read, 0 damaged"])
    pack, feature = store.path("tiles", key_of(pack=2), ".h5"), store.path("features", key_of(features=1), ".h5")
    pack.write_bytes(pack.read_bytes()[:900])
    feature.write_text("no features")
    code, lines = run("verify")
    assert code == 1
    assert any(line.startswith(f"{pack} is no pack of tiles, or was cut short") for line in lines)
    assert any(line.startswith(f"{feature} holds no features that can be read") for line in lines)
    assert lines[-1].startswith("error: the store holds damaged results; remove them with `hnm store verify --remove`")
    assert run("verify", "--remove")[1][-1] == "3 results read, 2 damaged and removed"
    assert [kept.path for kept in store.kept()] == [store.path("tiles", key_of(pack=1), ".h5")]


def test_a_result_its_output_and_dvc_s_cache_are_one_file(store, tmp_path):
    """By the project's DVC config: where reflinks stand first, DVC keeps a copy of its own."""

    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, capture_output=True)

    dvc("init", "--no-scm")
    links = re.search(r'type = "(.+)"', (Path(__file__).parents[1] / ".dvc" / "config").read_text())
    assert links
    dvc("config", "cache.type", links[1])
    kept, out = store.path("tiles", key_of(pack=1), ".h5"), tmp_path / "packs" / "s.h5"
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  tiles:\n    cmd: mkdir -p packs && ln {kept} packs/s.h5\n    outs: [packs]\n")
    dvc("repro")
    assert kept.samefile(out)
    assert kept.stat().st_nlink == 3
    shutil.rmtree(tmp_path / "packs")
    store.remove(kept)
    dvc("checkout")
    pack = Pack(out)
    assert len(pack) == 1


def test_a_folder_that_is_asked_for_again_counts_as_used(tmp_path: Path) -> None:
    store, keys = Store(tmp_path), [digit * 64 for digit in "abc"]
    for key in (*keys, keys[0]):
        time.sleep(0.02)
        path = store.folder("trials/heads", key, lambda folder: (folder / "head.json").write_text("{}", encoding="utf-8"))
        written = (path / "head.json").stat().st_mtime_ns
    assert [kept.path.name for kept in store.kept()] == [keys[1], keys[2], keys[0]]
    assert (
        (store.path("trials/heads", keys[0], "") / "head.json").stat().st_mtime_ns
        == written
        < (store.path("trials/heads", keys[1], "") / "head.json").stat().st_mtime_ns
    )
