"""The store: results under keys that know what changes them."""

from pathlib import Path

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
