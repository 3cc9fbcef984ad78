"""The store: results under keys that know what changes them."""

from pathlib import Path

import pytest

from hnm.files import key_of, whole
from hnm.store import Store, project_root


def test_a_kept_result_is_linked_and_not_copied(tmp_path: Path) -> None:
    results = Store(tmp_path / "store")
    kept = results.path("packs", key_of(a=1), ".h5")
    with whole(kept) as temporary:
        temporary.write_bytes(b"pack")
    target = tmp_path / "out" / "slide.h5"
    for _ in range(2):
        results.link(kept, target)
    assert target.read_bytes() == b"pack" and kept.samefile(target)


def test_the_root_is_dvc_s_or_the_nearest_that_holds_dvc_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").touch()
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert project_root() == tmp_path
    monkeypatch.setenv("DVC_ROOT", str(inner))
    assert project_root() == inner
