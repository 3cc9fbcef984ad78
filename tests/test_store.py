"""The store: whole files or none, keys that know what changes a result."""

import os
from pathlib import Path

import pytest

from hnm import store
from hnm.errors import HeadError
from hnm.store import Store, code_version, digest_of, imports_of, key_of, project_root, read_json, whole, write_json


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with pytest.raises(RuntimeError, match="torn"), whole(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("torn")
    assert list(target.parent.iterdir()) == []
    with whole(target) as temporary:
        temporary.write_text("all")
        assert not target.exists()
    assert target.read_text() == "all" and [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_a_file_that_is_linked_elsewhere_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    kept, linked = tmp_path / "kept", tmp_path / "linked"
    kept.write_text("first")
    kept.chmod(0o444)
    os.link(kept, linked)
    with whole(linked) as temporary:
        temporary.write_text("second")
    assert (kept.read_text(), linked.read_text()) == ("first", "second")


def test_json_has_sorted_keys_and_no_nan(tmp_path: Path) -> None:
    write_json({"b": 1, "a": [0.5]}, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    0.5\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": float("nan")}, tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_torn_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(HeadError, match=r"x\.json is not JSON .* delete it and run the stage"):
        read_json(tmp_path / "x.json", HeadError)


def test_a_key_changes_with_any_cause_and_not_with_their_order() -> None:
    assert key_of(a=1, b={"x": 2, "y": 3}) == key_of(b={"y": 3, "x": 2}, a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1"), key_of(a=1, b=None)}) == 5


def test_the_digest_of_a_folder_knows_names_and_bytes(tmp_path: Path) -> None:
    for name in ("one", "same", "renamed", "changed"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / ("b" if name == "renamed" else "a")).write_text("y" if name == "changed" else "x")
    digests = {name: digest_of(tmp_path / name) for name in ("one", "same", "renamed", "changed")}
    assert digests["one"] == digests["same"] and len(set(digests.values())) == 3


def test_the_imports_of_a_stage_leave_the_plumbing_out() -> None:
    assert imports_of("hnm.slides.tissue") == {"hnm.slides.tissue", "hnm.slides.reader", "hnm.slides.storage"}
    assert {"pipelines.head", "hnm.learning.heads.dsmil", "hnm.learning.losses"} <= imports_of("pipelines.head")


def test_the_code_version_knows_code_and_not_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = ['"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1\n', "# why\n\ndef f(x):\n\n    return x + 1\n", "def f(x):\n    return x + 2\n"]
    versions = []
    for text in texts:
        (tmp_path / "some_module.py").write_text(text)
        store._source.cache_clear()
        versions.append(code_version("some_module"))
    assert versions[0] == versions[1] != versions[2]


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
