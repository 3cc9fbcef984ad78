"""Folders that hnm fills and empties: its own alone."""

from pathlib import Path

import pytest

from hnm.errors import FolderError
from hnm.folders import marked_folder


def test_a_new_or_empty_folder_is_marked_and_known_again(tmp_path: Path) -> None:
    for name in ("new", "empty"):
        folder = tmp_path / name
        if name == "empty":
            folder.mkdir()
        marked_folder(folder, "store", named_by="HNM_STORE")
        (folder / "tiles").mkdir()
        assert marked_folder(folder, "store", named_by="HNM_STORE") == folder
        assert {path.name for path in folder.iterdir()} == {".hnm-store", "tiles"}


@pytest.mark.parametrize("name", [".bashrc", "slide.svs", ".hnm-slides"])
def test_a_folder_that_holds_anything_else_is_refused_and_stays_as_it_is(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(
        FolderError,
        match=rf"HNM_STORE={tmp_path} holds other things \({name}\).* touch {tmp_path}/.hnm-store",
    ):
        marked_folder(tmp_path, "store", named_by="HNM_STORE")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_of_hnm_s_own_place_is_marked_though_it_holds_results(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    marked_folder(tmp_path, "store", named_by="the store", adopts=True)
    assert (tmp_path / ".hnm-store").is_file()


def test_a_private_folder_is_of_this_user_and_nobody_else_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = marked_folder(tmp_path / "new", "slides", named_by="HNM_SLIDE_CACHE", private=True)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(FolderError, match=r"others may write to HNM_SLIDE_CACHE=.*chmod go-w"):
        marked_folder(folder, "slides", named_by="HNM_SLIDE_CACHE", private=True)
    folder.chmod(0o700)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(FolderError, match="belongs to another user"):
        marked_folder(folder, "slides", named_by="HNM_SLIDE_CACHE", private=True)


def test_a_folder_that_cannot_be_is_told_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "none")
    for name in ("file", "file/inner", "dangling"):
        with pytest.raises(
            FolderError,
            match=(
                rf"HNM_STORE={tmp_path}/{name} is no folder, or lies in what is none; name a new or"
                r" empty folder"
            ),
        ):
            marked_folder(tmp_path / name, "store", named_by="HNM_STORE")
    assert (tmp_path / "file").read_text() == "x"
    monkeypatch.setenv("HNM_FAILPOINT", "whole.creating:.hnm-store=EACCES")
    with pytest.raises(
        FolderError,
        match=(
            r"HNM_STORE=.* cannot be made or used: Permission denied; mend that, or name another"
            r" folder"
        ),
    ):
        marked_folder(tmp_path / "new", "store", named_by="HNM_STORE")
    for error, reason in (
        ("ENOSPC", "No space left on device"),
        ("EROFS", "Read-only file system"),
    ):  # of the machine: no other name would help
        monkeypatch.setenv("HNM_FAILPOINT", f"whole.creating:.hnm-store={error}")
        with pytest.raises(OSError, match=reason):
            marked_folder(tmp_path / "new", "store", named_by="HNM_STORE")


def test_a_link_of_the_mark_s_name_marks_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    marked_folder(tmp_path / "store", "store", named_by="HNM_STORE")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".hnm-store").symlink_to(tmp_path / "store" / ".hnm-store")
    with pytest.raises(FolderError, match="holds other things"):
        marked_folder(tmp_path / "home", "store", named_by="HNM_STORE")


def test_a_tilde_that_no_shell_replaced_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert marked_folder(Path("~/store"), "store", named_by="HNM_STORE") == tmp_path / "store"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
