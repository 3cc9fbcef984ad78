"""What the store keeps, what it lets go, and that bytes lie on the disk once: `hnm store
ls|gc|verify`.
"""

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
from hnm.errors import StoreError
from hnm.files import key_of, whole
from hnm.learning import features
from hnm.slides.cutting.pack import Pack, PackTile, encode, write_pack
from hnm.store import Store, project_store
from hnm.store_keeping import (
    Limits,
    StoredResult,
    expired,
    in_use,
    leftovers,
    remove_unused,
    stored_results,
)

DAY = 24 * 3600.0
ROOT = Path(__file__).parents[1]


def result(name: str, size: int, used: float) -> StoredResult:
    return StoredResult("tiles", Path(name), size, used, False)


RESULTS = [
    result("a", 500, 10.0),
    result("b", 70, 20.0),
    result("c", 300, 30.0),
    result("d", 9, 40.0),
]


@pytest.mark.parametrize(
    ("limits", "gone"),
    [
        ({}, ""),
        ({"seconds": 25.0}, "ab"),
        ({"seconds": 20.0}, "ab"),
        ({"bytes": 879}, ""),
        ({"bytes": 878}, "a"),
        ({"bytes": 309}, "ab"),
        ({"bytes": 308}, "abc"),
        ({"bytes": 0}, "abcd"),
        ({"seconds": 35.0, "bytes": 378}, "ab"),
        ({"seconds": 35.0, "bytes": 379}, "a"),
    ],
)
def test_what_expires_is_the_least_recently_used(limits, gone):
    expiring = expired(RESULTS, Limits(**limits), now=46.0)
    assert "".join(str(result.path) for result in expiring) == gone


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with two packs and a feature file, in a folder without DVC."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("HNM_STORE", str(tmp_path / "store"))
    store = project_store()
    tile = PackTile(3, 5, 0.75, encode(np.full((32, 32, 3), 200, np.uint8), 90))
    for number in (1, 2):
        write_pack(
            store.path("tiles", key_of(pack=number), ".h5"),
            [tile] * number,
            slide_id="s",
            mpp=1.0,
            tile_px=32,
            side=32,
            planned=number,
        )
    features.write(
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.zeros((2, 2), np.int64),
        store.path("features", key_of(features=1), ".h5"),
    )
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
    results = {(result.kind, result.path): result for result in stored_results(store)}
    assert {kind for kind, _ in results} == {"tiles", "features", "trials/heads"}
    assert len(results) == 4
    assert results["trials/heads", folder].bytes == 8
    pack = store.path("tiles", key_of(pack=1), ".h5")
    assert not results["tiles", pack].shared
    time.sleep(0.02)  # file systems keep time in ticks
    store.link(pack, tmp_path / "out.h5")
    linked = stored_results(store)[-1]
    assert (linked.path, linked.shared) == (pack, True), "a link makes it the last that was used"


def test_ls(store, tmp_path):
    store.link(store.path("tiles", key_of(pack=1), ".h5"), tmp_path / "out.h5")
    code, lines = run("ls")
    assert code == 0
    assert [line.split()[:3] for line in lines[:2]] == [
        ["features", "1", "results"],
        ["tiles", "2", "results"],
    ]
    assert lines[2] == f"in {store.root}"


def test_gc_removes_leftovers_of_killed_writes_and_no_write_that_goes_on(store):
    for name, age in (
        (".hnm-tmp-old.h5", 2 * DAY),
        (".hnm-tmp-new.h5", 0.0),
        (".other.h5", 2 * DAY),
    ):
        path = store.root / "tiles" / "ab" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    code, lines = run("gc", "--dry-run")
    assert (code, lines[0]) == (0, f"would remove {store.root}/tiles/ab/.hnm-tmp-old.h5")
    assert (store.root / "tiles" / "ab" / ".hnm-tmp-old.h5").exists()
    assert run("gc")[1][0] == f"removed {store.root}/tiles/ab/.hnm-tmp-old.h5"
    assert {path.name for path in (store.root / "tiles" / "ab").iterdir()} == {
        ".hnm-tmp-new.h5",
        ".other.h5",
    }
    assert len(stored_results(store)) == 3


def test_gc_removes_what_killed_trials_were_making_and_no_trial_that_goes_on(store):
    trials = store.root / "trials" / "heads" / "ab"
    for name, written in ((".hnm-tmp-killed", 2 * DAY), (".hnm-tmp-slow", 0.0)):
        inner = trials / name / ".features-x" / "a.h5"
        inner.parent.mkdir(parents=True)
        inner.touch()
        for path, age in ((inner, written), (inner.parent, 2 * DAY), (trials / name, 2 * DAY)):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert run("gc")[1] == [
        f"removed {trials}/.hnm-tmp-killed",
        "0 results (0.0 MB) and 1 leftovers go, 3 results (0.0 MB) stay",
    ]
    assert [path.name for path in trials.iterdir()] == [".hnm-tmp-slow"]


def test_gc_keeps_within_a_size_and_outputs_stay(store, tmp_path):
    first = stored_results(store)[0]
    store.link(first.path, tmp_path / "out.h5")
    code, lines = run("gc", "--max-gb", "0", "--dry-run")
    assert (code, len(lines), len(stored_results(store))) == (0, 4, 3)
    assert run("gc", "--max-gb", "0")[1][3].startswith("3 results")
    assert stored_results(store) == []
    assert (tmp_path / "out.h5").stat().st_size == first.bytes


def test_verify_names_what_is_damaged(store):
    assert run("verify") == (0, ["3 results read, 0 damaged"])
    pack, feature = (
        store.path("tiles", key_of(pack=2), ".h5"),
        store.path("features", key_of(features=1), ".h5"),
    )
    pack.write_bytes(pack.read_bytes()[:900])
    feature.write_text("no features")
    code, lines = run("verify")
    assert code == 1
    assert any(line.startswith(f"{pack} is no pack of tiles, or was cut short") for line in lines)
    assert any(line.startswith(f"{feature} holds no features that can be read") for line in lines)
    assert lines[-1].startswith(
        "error: the store holds damaged results; remove them with `hnm store verify --remove`"
    )
    assert run("verify", "--remove")[1][-1] == "3 results read, 2 damaged and removed"
    assert [result.path for result in stored_results(store)] == [
        store.path("tiles", key_of(pack=1), ".h5")
    ]


def test_a_result_its_output_and_dvc_s_cache_are_one_file(store, tmp_path):
    """By the project's DVC config: where reflinks stand first, DVC keeps a copy of its own."""

    def dvc(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    dvc("init", "--no-scm")
    links = re.search(r'type = "(.+)"', (Path(__file__).parents[1] / ".dvc" / "config").read_text())
    assert links
    dvc("config", "cache.type", links[1])
    kept, out = store.path("tiles", key_of(pack=1), ".h5"), tmp_path / "packs" / "s.h5"
    (tmp_path / "dvc.yaml").write_text(
        f"stages:\n  tiles:\n    cmd: mkdir -p packs && ln {kept} packs/s.h5\n    outs: [packs]\n"
    )
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
        path = store.folder(
            "trials/heads",
            key,
            lambda folder: (folder / "head.json").write_text("{}", encoding="utf-8"),
        )
        written = (path / "head.json").stat().st_mtime_ns
    assert [result.path.name for result in stored_results(store)] == [keys[1], keys[2], keys[0]]
    assert (
        (store.path("trials/heads", keys[0], "") / "head.json").stat().st_mtime_ns
        == written
        < (store.path("trials/heads", keys[1], "") / "head.json").stat().st_mtime_ns
    )


def test_what_is_not_the_store_s_own_is_never_counted_and_never_removed(store, tmp_path):
    """Odd names, odd types, links in and out, other people's folders of the same form: all stay,
    and what they lead to.
    """
    key = key_of(other=1)
    (tmp_path / "outside" / "ab").mkdir(parents=True)
    precious = tmp_path / "outside" / "ab" / f"{'ab' * 32}.h5"
    precious.write_text("x")
    old = time.time() - 9 * DAY
    (store.root / "trials").mkdir()
    (store.root / "trials" / "heads").symlink_to(tmp_path / "outside")
    (store.root / "cv").symlink_to(tmp_path)
    shutil.move(store.root / "features", tmp_path / "moved")
    (store.root / "features").symlink_to(tmp_path / "moved")
    (store.root / "tiles" / "ab").mkdir(exist_ok=True)
    foreign = [
        store.root / "blobs" / key[:2] / f"{key}.h5",
        store.root / ".git" / "objects" / key[:2] / key,
        store.root / "tiles" / key[:2] / f"{key}.svs",
        store.root / "tiles" / key[:2] / f"{key}.h5" / "inner.h5",
        store.root / "tiles" / "ab" / f"{'cd' * 32}.h5",
        store.root / "tiles" / key[:2] / "deep" / f"{key}.h5",
        store.root / f"{key}.h5",
        store.root / ".hnm-tmp-mine" / "x",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (old, old))
        os.utime(path.parent, (old, old))
    (store.root / "tiles" / "ab" / f"{'ab' * 32}.h5").symlink_to(precious)
    os.mkfifo(store.root / "tiles" / "ab" / f"ab{'ef' * 31}.h5")
    leftover = store.root / "tiles" / "ab" / ".hnm-tmp-link"
    leftover.symlink_to(tmp_path / "outside")
    os.utime(leftover, (old, old), follow_symlinks=False)
    assert [result.kind for result in stored_results(store)] == ["tiles", "tiles"]
    assert run("gc", "--max-gb", "0", "--max-days", "0")[1][-1].startswith("2 results")
    assert stored_results(store) == [] and not os.path.lexists(leftover)
    assert precious.read_text() == "x" and all(path.read_text() == "x" for path in foreign)
    assert len(list((tmp_path / "moved").rglob("*.h5"))) == 1


def damaged(path: Path) -> None:
    """Some bytes of a file are zeros, as a failing disk makes them: its form and its size are as
    they were.
    """
    content = bytearray(path.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : middle + 8] = bytes(byte ^ 0x5A for byte in content[middle : middle + 8])
    path.write_bytes(content)


def test_a_damaged_result_is_removed_before_it_is_linked_and_made_again(store, tmp_path, caplog):
    pack, feature = (
        store.path("tiles", key_of(pack=2), ".h5"),
        store.path("features", key_of(features=1), ".h5"),
    )
    assert store.holds(pack, Pack, quick=True) and store.holds(feature, features.read)
    for path in (pack, feature):
        damaged(path)
    assert run("verify")[0] == 1
    assert [store.holds(pack, Pack, quick=True), store.holds(feature, features.read)] == [
        False,
        False,
    ]
    assert not pack.exists() and not feature.exists()
    assert (
        f"the store holds a damaged result, which is removed and made again: the bytes of {pack}"
        " are not those that were written" in caplog.text
    )
    features.write(np.ones((2, 3), np.float32), np.zeros((2, 2), np.int64), feature)
    store.link(feature, tmp_path / "out.h5")
    assert store.holds(feature, features.read), (
        "another result of the same key is taken as it was made"
    )


def test_a_result_without_a_record_is_opened(store):
    """One that an earlier version made, or whose maker was killed before it could record it."""
    feature = store.path("features", key_of(features=1), ".h5")
    feature.write_bytes(feature.read_bytes()[:-5])
    assert not store.holds(feature, features.read)
    pack = store.path("tiles", key_of(pack=1), ".h5")
    assert store.holds(pack, Pack)
    os.utime(pack, (1.0, 1.0))  # a copy of the store has other times
    assert store.holds(pack, Pack, quick=True)
    record = store.root / ".hnm-sums" / pack.relative_to(store.root)
    record.write_text('{"sha')
    assert store.holds(pack, Pack) and "sha256" in record.read_text()


def test_a_torn_file_in_a_folder_is_noticed_and_the_folder_made_again(tmp_path: Path) -> None:
    store, key, count = Store(tmp_path), "a" * 64, iter(range(9))
    for _ in range(2):
        folder = store.folder(
            "trials/heads", key, lambda folder: (folder / "x.csv").write_text(f"made {next(count)}")
        )
        assert (folder / "x.csv").read_text() == "made 0"
    (folder / "x.csv").write_text("made")
    assert (
        store.folder(
            "trials/heads", key, lambda folder: (folder / "x.csv").write_text(f"made {next(count)}")
        )
        / "x.csv"
    ).read_text() == "made 1"
    (folder / "x.csv").unlink()
    assert (
        store.folder(
            "trials/heads", key, lambda folder: (folder / "x.csv").write_text(f"made {next(count)}")
        )
        / "x.csv"
    ).read_text() == "made 2"


@pytest.mark.parametrize("odd", ["fifo", "link", "folder"])
def test_an_odd_thing_in_the_place_of_a_result_is_removed_and_never_followed(
    tmp_path: Path, odd: str
) -> None:
    store = Store(tmp_path / "store")
    path = store.path("features", "a" * 64, ".h5")
    path.parent.mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    {
        "fifo": os.mkfifo,
        "link": lambda path: path.symlink_to(tmp_path / "precious"),
        "folder": lambda path: path.mkdir(),
    }[odd](path)
    assert not store.holds(path, features.read)
    assert not os.path.lexists(path) and (tmp_path / "precious" / "file").read_text() == "x"


def test_a_result_that_vanishes_is_told_in_one_line(store, tmp_path):
    pack = store.path("tiles", key_of(pack=1), ".h5")
    assert store.holds(pack, Pack)
    pack.unlink()
    with pytest.raises(
        StoreError,
        match="is gone from the store while this process used it; give the same command again",
    ):
        store.link(pack, tmp_path / "out.h5")


def test_records_of_results_that_are_gone_are_leftovers(store):
    pack = store.path("tiles", key_of(pack=1), ".h5")
    assert store.holds(pack, Pack)
    record = store.root / ".hnm-sums" / pack.relative_to(store.root)
    pack.unlink()
    os.utime(record, (1.0, 1.0))
    assert leftovers(store, before=time.time()) == [record]


def test_a_damaged_result_that_may_not_be_removed_is_told_with_its_cure(store, monkeypatch):
    pack = store.path("tiles", key_of(pack=1), ".h5")
    time.sleep(0.02)  # the other two are older than the lease, also by a clock of ticks
    assert store.holds(pack, Pack)
    damaged(pack)
    monkeypatch.setenv("HNM_FAILPOINT", "store.removing=EACCES")
    with pytest.raises(
        StoreError,
        match=(
            r"are not those that were written; it cannot be removed \(Permission denied\): have its"
            r" owner"
        ),
    ):
        store.holds(pack, Pack)
    code, lines = run("gc", "--max-gb", "0")
    assert (
        code == 0
        and sum(line.startswith("cannot remove ") for line in lines) == 2
        and len(stored_results(store)) == 3
    )


def test_a_store_of_a_group_is_written_as_the_umask_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o002)
    try:
        monkeypatch.setenv("HNM_STORE", str(tmp_path / "store"))
        store = project_store()
        folder = store.folder(
            "trials/heads", "a" * 64, lambda folder: (folder / "x.csv").write_text("x")
        )
        file = store.path("features", "b" * 64, ".h5")
        store.holds(file)
        features.write(np.ones((2, 3), np.float32), np.zeros((2, 2), np.int64), file)
        store.link(file, tmp_path / "out" / "s.h5")
        modes = {
            path: path.lstat().st_mode & 0o777
            for path in [store.root, *store.root.rglob("*"), folder, tmp_path / "out" / "s.h5"]
        }
        assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o775"}
        assert {oct(mode) for path, mode in modes.items() if path.is_file()} == {"0o664"}
    finally:
        os.umask(before)


@pytest.mark.skipif(os.getuid() != 0, reason="another user can only be taken on by root")
def test_another_user_of_the_group_links_marks_and_removes(tmp_path: Path) -> None:
    code = """
import os, sys
import encodings.utf_8_sig  # another user may not be able to read the library
from pathlib import Path
from hnm.store import Store
from hnm.store_keeping import stored_results
os.umask(0o002)
os.setgroups([]); os.setgid(4242); os.setuid(int(sys.argv[2]))
store = Store(Path(sys.argv[1]))
path = store.path("stated", "a" * 64, ".json")
if sys.argv[2] == "4001":
    store.holds(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1")
    store.link(path, store.root / "first.json")
    store.folder("trials/heads", "b" * 64, lambda folder: (folder / "x.csv").write_text("x"))
else:
    assert store.holds(path)
    store.link(path, store.root / "second.json")
    store.folder("trials/heads", "b" * 64, lambda folder: 1 / 0)
    for result in stored_results(store):
        store.remove(result.path)
    assert stored_results(store) == []
print("done")
"""
    shared = tmp_path / "store"
    shared.mkdir()
    os.chown(shared, 4001, 4242)
    shared.chmod(0o2775)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder not in (Path("/"), Path("/tmp")):
            folder.chmod(0o755)
    for user in ("4001", "4002"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(shared), user],
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert (done.stdout, done.stderr) == ("done\n", "")


def test_what_a_living_process_uses_is_not_removed_and_one_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for key in ("a" * 64, "b" * 64):
        with whole(store.path("tiles", key, ".h5")) as temporary:
            temporary.write_bytes(b"pack")
    listed = {result.path.stem[0]: result for result in stored_results(store)}
    store.use([listed["a"].path])
    assert in_use(store, listed.values()) >= {listed["a"].path}
    assert not remove_unused(store, listed["a"]) and listed["a"].path.exists()


def test_a_result_is_shared_only_where_each_of_its_files_has_another_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = store.path("trials/heads", "a" * 64, "")
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(("one", "two"), start=1):
        (folder / "inner" / name).write_bytes(b"x" * number)
        (stored,) = stored_results(store)
        assert (stored.bytes, stored.shared) == (2 * number - 1, False)
        os.link(folder / "inner" / name, tmp_path / name)
        (stored,) = stored_results(store)
        assert stored.shared


def test_gc_says_what_would_go_but_is_in_use(store):
    time.sleep(0.02)  # the other two are older than the lease, also by a clock of ticks
    store.use([store.path("tiles", key_of(pack=1), ".h5")])
    code, lines = run("gc", "--max-gb", "0")
    assert code == 0 and lines[-1].startswith("2 results (")
    assert lines[-1].endswith("1 results (0.0 MB) stay; 1 of these would go too, but are in use")
    assert len(lines) == 3 and all(line.startswith("removed ") for line in lines[:2])


def test_gc_by_age_lets_only_old_results_go(store):
    assert run("gc", "--max-days", "1")[1] == [
        "0 results (0.0 MB) and 0 leftovers go, 3 results (0.0 MB) stay"
    ]
    assert run("gc", "--max-days", "0")[1][-1].startswith("3 results (0.0 MB) and 0 leftovers go")


def test_a_limit_of_days_or_gigabytes_is_counted_in_seconds_or_bytes(store, monkeypatch):
    limits = []
    monkeypatch.setattr(
        "hnm.store_keeping.expired", lambda results, limit, now: limits.append(limit) or []
    )
    run("gc")
    run("gc", "--max-days", "2", "--max-gb", "0.5")
    assert limits == [Limits(), Limits(seconds=172_800.0, bytes=5e8)]
