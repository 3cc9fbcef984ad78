"""The store: results under keys that know what changes them."""

import os
from pathlib import Path

from hnm.errors import StoreError
from hnm.files import key_of, whole
from hnm.store import Store


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
