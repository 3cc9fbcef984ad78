"""The store: results under keys that know what changes them."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from hnm.errors import FolderError, MachineError, StoreError
from hnm.files import digest_of, key_of, whole
from hnm.store import Store, project_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, content: bytes = b"pack") -> Path:
    """Makes a result as a stage does."""
    result = store.path("tiles", key_of(a=1), ".h5")
    assert not store.holds(result)
    with whole(result) as temporary:
        temporary.write_bytes(content)
    return result


def test_a_result_lies_in_a_shard_and_its_record_likewise(store: Store) -> None:
    result = store.path("trials/heads", "abcdef", ".h5")
    assert result == store.root / "trials" / "heads" / "ab" / "abcdef.h5"
    assert store.record_of(result) == store.root / ".hnm-sums/trials/heads/ab/abcdef.h5"


def test_a_kept_result_is_linked_and_not_copied(tmp_path: Path) -> None:
    results = Store(tmp_path / "store")
    kept = results.path("packs", key_of(a=1), ".h5")
    with whole(kept) as temporary:
        temporary.write_bytes(b"pack")
    target = tmp_path / "out" / "slide.h5"
    for _ in range(2):
        results.link(kept, target)
    assert target.read_bytes() == b"pack" and kept.samefile(target)


def test_a_result_that_changed_is_seen_though_its_size_and_time_did_not(tmp_path: Path) -> None:
    results = Store(tmp_path / "store")
    kept = results.path("tiles", key_of(a=1), ".h5")
    assert not results.holds(kept)
    with whole(kept) as temporary:
        temporary.write_bytes(b"pack")
    results.link(kept, tmp_path / "slide.h5")
    assert (results.root / ".hnm-sums" / kept.relative_to(results.root)).exists(), (
        "its digest is recorded when it is first linked"
    )
    before = kept.stat()
    kept.write_bytes(b"puck")
    os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert results.holds(kept, quick=True)  # of packs, whose bytes are many, size and time must do
    assert not results.holds(kept) and not kept.exists()


def test_a_folder_without_a_record_is_believed_only_where_its_check_does(tmp_path: Path) -> None:
    results, key = Store(tmp_path / "store"), key_of(a=1)

    def make(folder: Path) -> None:
        (folder / "name").write_text("whole")

    def check(folder: Path) -> None:
        if (folder / "name").read_text() != "whole":
            raise StoreError("torn")

    kept = results.folder("trials/heads", key, make, check)
    (results.root / ".hnm-sums" / kept.relative_to(results.root)).unlink()
    (kept / "name").write_text("torn")
    assert (results.folder("trials/heads", key, make, check) / "name").read_text() == "whole"
    assert [path.name for path in kept.parent.iterdir()] == [key]  # nothing lies beside it


def test_a_record_tells_digest_size_and_time_and_is_renewed_when_the_time_changes(
    store: Store, tmp_path: Path
) -> None:
    result = put(store)
    store.link(result, tmp_path / "out.h5")
    record = store.record_of(result)
    for mtime_ns in (result.stat().st_mtime_ns, 7_000_000_000):
        os.utime(result, ns=(0, mtime_ns))
        assert store.holds(result)
        assert json.loads(record.read_text()) == {
            "bytes": 4,
            "mtime_ns": mtime_ns,
            "sha256": digest_of(result),
        }


def test_a_result_is_recorded_once_by_the_process_that_makes_it(
    store: Store, tmp_path: Path
) -> None:
    result = put(store)
    store.link(result, tmp_path / "out.h5")
    store.record_of(result).unlink()
    store.link(result, tmp_path / "out.h5")
    assert not store.record_of(result).exists()


def test_a_digest_is_that_of_the_record_until_the_file_changes(
    store: Store, tmp_path: Path
) -> None:
    result = put(store)
    assert store.digest(result) == digest_of(result)  # of no record
    store.link(result, tmp_path / "out.h5")
    recorded = digest_of(result)
    time_ns = result.stat().st_mtime_ns
    result.write_bytes(b"puck")
    os.utime(result, ns=(time_ns, time_ns))
    assert store.digest(result) == recorded != digest_of(result)
    os.utime(result, ns=(time_ns, time_ns + 1))
    assert store.digest(result) == digest_of(result)


@pytest.mark.parametrize("record", ['{"sha256": 1}', "[]", '{"sha256": "' + "a" * 4096 + '"}'])
def test_what_is_no_record_counts_as_none(store: Store, tmp_path: Path, record: str) -> None:
    result = put(store)
    store.link(result, tmp_path / "out.h5")
    store.record_of(result).write_text(record)
    assert store.digest(result) == digest_of(result)
    assert store.holds(result)
    assert json.loads(store.record_of(result).read_text())["sha256"] == digest_of(result)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC])
def test_a_store_of_another_user_is_used_without_records_but_a_full_disk_is_told(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(record: object, path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    result = put(store)
    monkeypatch.setattr("hnm.store.write_json", refused)
    if code == errno.ENOSPC:
        with pytest.raises(OSError, match="No space left on device"):
            store.link(result, tmp_path / "out.h5")
    else:
        store.link(result, tmp_path / "out.h5")
        assert (tmp_path / "out.h5").read_bytes() == b"pack"


def test_where_no_hard_link_can_be_made_the_output_is_a_copy(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = put(store)
    target = tmp_path / "deep" / "er" / "out.h5"
    monkeypatch.setenv("HNM_FAILPOINT", "store.link=EXDEV")
    for _ in range(2):
        store.link(result, target)
        assert target.read_bytes() == b"pack" and not target.samefile(result)


def test_a_cause_of_the_machine_is_no_damage(store: Store) -> None:
    def check(result: Path) -> None:
        raise MachineError("no memory")

    result = put(store)
    with pytest.raises(MachineError, match="no memory"):
        store.holds(result, check)
    assert result.exists()


def test_a_use_moves_the_time_of_use_and_no_other(store: Store, tmp_path: Path) -> None:
    result = put(store)
    store.link(result, tmp_path / "out.h5")
    before = result.stat()
    time.sleep(0.02)  # file systems keep time in ticks
    assert store.holds(result, quick=True)
    after = result.stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (after.st_mtime_ns, after.st_atime_ns) == (before.st_mtime_ns, before.st_atime_ns)


def test_a_removed_result_has_no_record(store: Store, tmp_path: Path) -> None:
    result = put(store)
    store.link(result, tmp_path / "out.h5")
    for _ in range(2):  # the second time there is nothing to remove
        store.remove(result)
        assert not result.exists() and not store.record_of(result).exists()
    assert (tmp_path / "out.h5").read_bytes() == b"pack"


def test_of_two_processes_that_make_a_folder_the_first_counts(store: Store) -> None:
    key = key_of(a=1)
    result = store.path("trials/heads", key, "")

    def make(folder: Path) -> None:
        result.mkdir()
        (result / "name").write_text("of the other")
        (folder / "name").write_text("of this one")

    assert (store.folder("trials/heads", key, make) / "name").read_text() == "of the other"
    assert list(result.parent.iterdir()) == [result]
    assert not store.record_of(result).exists()  # the other process writes it


def test_a_folder_that_cannot_be_finished_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNM_FAILPOINT", "store.folder=ENOSPC")
    with pytest.raises(OSError, match="No space left on device"):
        store.folder("trials/heads", key_of(a=1), lambda folder: None)
    assert list((store.root / "trials" / "heads" / key_of(a=1)[:2]).iterdir()) == []


def test_a_project_s_store_is_no_folder_of_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("HNM_STORE", raising=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis").touch()
    (tmp_path / ".hnm").mkdir()
    (tmp_path / ".hnm" / "store").symlink_to(tmp_path / "other")
    with pytest.raises(
        FolderError, match=r"the store=.*/\.hnm/store holds other things \(thesis\)"
    ):
        project_store()
    monkeypatch.setenv("HNM_STORE", "other")
    with pytest.raises(FolderError, match=r"HNM_STORE=.*/other holds other things \(thesis\)"):
        project_store()
    monkeypatch.delenv("HNM_STORE")
    (tmp_path / ".hnm" / "store").unlink()
    (tmp_path / ".hnm" / "store").mkdir()
    (tmp_path / ".hnm" / "store" / "tiles").mkdir()  # of a version that set no mark
    assert project_store().root == tmp_path / ".hnm" / "store"
    assert (tmp_path / ".hnm" / "store" / ".hnm-store").is_file()
