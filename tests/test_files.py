"""Files: whole or not at all, read within bounds, told apart by digests."""

import errno
import os
import resource
from pathlib import Path

import pytest

from hnm.errors import HeadError, error_of_machine
from hnm.files import (
    TEMPORARY,
    digest_of,
    key_of,
    parse_json,
    read_bounded,
    read_json,
    whole,
    write_json,
)
from hnm.repository.outputs import md5_of


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with pytest.raises(RuntimeError, match="torn"), whole(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("torn")
    assert list(target.parent.iterdir()) == []
    with whole(target) as temporary:
        temporary.write_text("all")
        assert not target.exists()
    assert target.read_text() == "all" and [path.name for path in target.parent.iterdir()] == [
        "file.txt"
    ]


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
    with pytest.raises(
        HeadError, match=r"x\.json is not JSON: .*; give `hnm verify --remove`, then `dvc repro`"
    ):
        read_json(tmp_path / "x.json", HeadError)


def test_a_key_changes_with_any_cause_and_not_with_their_order() -> None:
    assert key_of(a=1, b={"x": 2, "y": 3}) == key_of(b={"y": 3, "x": 2}, a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1"), key_of(a=1, b=None)}) == 5


def test_the_digest_of_a_folder_knows_names_and_bytes(tmp_path: Path) -> None:
    for name in ("one", "same", "renamed", "changed"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / ("b" if name == "renamed" else "a")).write_text(
            "y" if name == "changed" else "x"
        )
    digests = {name: digest_of(tmp_path / name) for name in ("one", "same", "renamed", "changed")}
    assert digests["one"] == digests["same"] and len(set(digests.values())) == 3


def test_what_a_killed_write_left_is_no_part_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    digests = digest_of(tmp_path), md5_of(tmp_path)
    (tmp_path / f"{TEMPORARY}1.parquet").write_text("half")
    assert (digest_of(tmp_path), md5_of(tmp_path)) == digests
    ignored = [
        (Path(__file__).parents[1] / name).read_text().splitlines()
        for name in (".dvcignore", ".gitignore")
    ]
    assert all(f"{TEMPORARY}*" in lines for lines in ignored)


def test_a_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            write_json({}, tmp_path / "x.json")
        finally:
            os.umask(before)
        assert (tmp_path / "x.json").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("point", ["creating", "writing", "syncing", "renaming"])
def test_a_full_disk_at_any_moment_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    write_json({"old": 1}, tmp_path / "x.json")
    monkeypatch.setenv("HNM_FAILPOINT", f"whole.{point}:x.json=ENOSPC")
    with pytest.raises(OSError, match="No space left"):
        write_json({"new": 2}, tmp_path / "x.json")
    assert (
        read_json(tmp_path / "x.json", HeadError) == {"old": 1}
        and len(list(tmp_path.iterdir())) == 1
    )


def test_what_is_no_regular_file_or_too_large_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (
        ("pipe", "is no regular file"),
        (".", "is no regular file"),
        ("large", "has 11 bytes, more than the 10"),
        ("none", "No such file"),
    ):
        with pytest.raises(HeadError, match=rf"^the thing .*{reason}.*; mend it$"):
            read_bounded(tmp_path / name, HeadError, what="the thing", cure="; mend it", most=10)
    with pytest.raises(HeadError, match="Too many levels of symbolic links"):
        read_bounded(tmp_path / "loop", HeadError, what="the thing")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b"[1e999]", "1e999 is too large for a number"),
        (b"[" + b"9" * 5000 + b"]", "is not JSON"),
        (b"[NaN]", "NaN is no number"),
        (b'["\xff"]', "is not JSON"),
    ],
)
def test_json_that_is_none_is_one_error(text: bytes, reason: str) -> None:
    with pytest.raises(HeadError, match=reason):
        parse_json(text, HeadError, what="x.json")


class LibraryError(Exception):
    """As safetensors and HDF5 raise their own kinds for a disk that refuses."""


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (LibraryError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (
            RuntimeError("Can't write data (errno = 122, error message = 'Disk quota exceeded')"),
            errno.EDQUOT,
        ),
        (OSError("Error writing bytes to file. Detail: Read-only file system"), errno.EROFS),
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
    ],
)
def test_whatever_a_library_makes_of_a_full_disk_is_one_error_that_names_the_file(
    tmp_path: Path, raised: Exception, code: int
) -> None:
    with pytest.raises(OSError) as caught, whole(tmp_path / "weights.safetensors"):
        raise raised
    assert (caught.value.errno, caught.value.filename) == (
        code,
        str(tmp_path / "weights.safetensors"),
    )
    assert list(tmp_path.iterdir()) == []
    told = error_of_machine(caught.value)
    assert told is not None and str(told).startswith(
        f"{tmp_path / 'weights.safetensors'}: {os.strerror(code)}; "
    )


def test_an_error_of_another_file_and_a_defect_stay_what_they_are(tmp_path: Path) -> None:
    for raised in (
        PermissionError(errno.EACCES, "Permission denied", "other.csv"),
        KeyError("a column"),
        HeadError("No space left on device"),
    ):
        with pytest.raises(type(raised)) as caught, whole(tmp_path / "x"):
            raise raised
        assert caught.value is raised


def test_nowhere_to_put_temporary_files_is_told_with_a_cure() -> None:
    told = error_of_machine(
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    )
    assert str(told).startswith(
        "no folder for temporary files can be written to; free some room there, or name another by"
        " the variable TMPDIR"
    )


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system has no such limit")
def test_a_limit_of_file_sizes_is_told(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_json(["x" * 1000], tmp_path / "x.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (
        "raise the limit of file sizes (ulimit -f)" in str(error_of_machine(caught.value))
        and list(tmp_path.iterdir()) == []
    )
