"""A stranger's listing of DVC's cache, a stranger's dvc.lock: what is believed, and what is one
error with a cure.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.errors import TrackingError
from hnm.repository.outputs import Cache, ContentError, Outputs, is_inside, md5_of
from hnm.repository.stages import (
    cohort_name,
    current_stages,
    locked_stages,
    running_stage,
    stages_of,
    yaml_of,
)
from hnm.repository.verification import verify
from hnm.tracking.record import Record

ODD_NAMES = [
    "../x",
    "a/../../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a//b",
    "a/",
    "/",
    "a\\..\\b",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "x" * 256,
    "a/" * 2000 + "a",
]
ODD_YAML = [
    b"",
    b"stages: 7",
    b"stages: {head: 7}",
    b"stages: {head: {foreach: 7}}",
    b"stages: {head: {deps: [7, {a: 1}, [2]]}}",
    b"\xff",
]
A, B = "a" * 32, "b" * 32


def put(cache: Path, content: bytes, suffix: str = "") -> str:
    """Keeps an object under its own md5, as DVC does."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    path = cache / md5[:2] / (md5[2:] + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5 + suffix


def put_listing(cache: Path, entries: Any) -> str:
    return put(cache, json.dumps(entries).encode(), ".dir")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache of a repository at `tmp_path`, which DVC need not be asked for."""
    return tmp_path / ".dvc" / "cache" / "files" / "md5"


@pytest.fixture
def outputs(tmp_path: Path, cache: Path) -> Outputs:
    outputs_here = Outputs(tmp_path)
    outputs_here.__dict__["cache"] = Cache(cache)
    return outputs_here


@pytest.mark.parametrize("name", [*ODD_NAMES, 7, None, ["a"], {}], ids=repr)
def test_a_listing_that_leads_out_of_its_folder_is_refused(
    cache: Path, outputs: Outputs, name: Any
) -> None:
    md5 = put_listing(
        cache,
        [
            {"md5": put(cache, b"bytes"), "relpath": "first.h5"},
            {"md5": put(cache, b"bytes"), "relpath": name},
        ],
    )
    for read in (
        lambda: Cache(cache).listing(md5),
        lambda: outputs.files("data/heads/1", md5),
        lambda: Cache(cache).holds(md5),
        lambda: list(Cache(cache).objects_of(md5)),
    ):
        with pytest.raises(
            ContentError,
            match=r"names no file inside the folder; do not trust the dvc\.lock that names it",
        ):
            read()


@pytest.mark.parametrize(
    "md5",
    [
        "../../../../etc/passwd",
        A[:-1],
        A.upper(),
        f"{A}.dir",
        f"{A}\n",
        "",
        None,
        7,
        "a/" * 16,
        [A],
    ],
    ids=repr,
)
def test_an_md5_that_is_none_becomes_no_path(cache: Path, md5: Any) -> None:
    folder = put_listing(cache, [{"md5": md5, "relpath": "a.h5"}])
    with pytest.raises(ContentError, match=r"a\.h5 has the md5 .*, which is none"):
        Cache(cache).listing(folder)
    if not (isinstance(md5, str) and md5.endswith(".dir")):
        with pytest.raises(ContentError, match="is no md5 of DVC's"):
            Cache(cache).place(md5)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"md5": A, "relpath": "a"}, {"md5": B, "relpath": "a"}], "names a twice"),
        ([{"md5": A, "relpath": "a"}, {"md5": B, "relpath": "a/b/c"}], "a is a file and a folder"),
        ({"md5": A, "relpath": "a"}, "holds no list"),
        (["a"], "names no file inside"),
        ([[{"md5": A, "relpath": "a"}]], "names no file inside"),
        (None, "holds no list"),
    ],
)
def test_odd_listings_are_refused(cache: Path, entries: Any, says: str) -> None:
    with pytest.raises(ContentError, match=says):
        Cache(cache).listing(put_listing(cache, entries))


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"\xff", b"{", b"", b"[1e999]", b"[NaN]"],
    ids=["deep", "utf8", "torn", "empty", "huge", "nan"],
)
def test_a_listing_that_is_no_json_is_refused(cache: Path, content: bytes) -> None:
    with pytest.raises(ContentError, match=r"delete it, then dvc pull"):
        Cache(cache).listing(put(cache, content, ".dir"))


def test_a_listing_is_believed_only_as_its_md5_says(
    cache: Path, outputs: Outputs, tmp_path: Path
) -> None:
    md5 = put_listing(cache, [{"md5": put(cache, b"bytes"), "relpath": "a.h5"}])
    assert {
        name: path.read_bytes() for name, path in outputs.files("data/heads/1", md5).items()
    } == {"a.h5": b"bytes"}
    Cache(cache).place(md5).write_text(
        json.dumps([{"md5": put(cache, b"other"), "relpath": "a.h5"}])
    )
    with pytest.raises(
        ContentError, match=r"is damaged: its bytes have md5 \w{32}; delete it, then dvc pull"
    ):
        outputs.files("data/heads/1", md5)
    assert list(Cache(cache).objects_of(md5)) == [
        Cache(cache).place(md5)
    ]  # by its own hash it is named
    Cache(cache).place(md5).unlink()
    os.mkfifo(Cache(cache).place(md5))
    with pytest.raises(ContentError, match="is no regular file"):
        Cache(cache).listing(md5)


def test_no_file_is_handed_out_whose_bytes_are_not_those_of_its_md5(
    cache: Path, outputs: Outputs
) -> None:
    inner = put(cache, b"bytes")
    folder = put_listing(cache, [{"md5": inner, "relpath": "a.h5"}])
    Cache(cache).place(inner).write_bytes(b"tampered")
    for md5 in (folder, inner):
        with pytest.raises(
            ContentError, match=r"in DVC's cache is damaged, its bytes have md5 \w{32}; delete it"
        ):
            outputs.files("data/heads/1", md5)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "data/../../x", "a\0b", ""])
def test_an_output_outside_of_the_repository_is_refused(outputs: Outputs, path: str) -> None:
    with pytest.raises(ContentError, match="leads out of the repository"):
        outputs.files(path, A)


def test_a_named_pipe_in_place_of_an_output_hangs_nobody(
    outputs: Outputs, tmp_path: Path, cache: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    md5 = put(cache, b"bytes")
    assert outputs.files("pipe", md5) == {"pipe": Cache(cache).place(md5)}
    with pytest.raises(ContentError, match="is no regular file"):
        md5_of(tmp_path / "pipe")


def test_nothing_is_kept_outside_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="names no file inside head"):
        Record.create(tmp_path, "head").keep_all("head", {"../../../../evil": tmp_path / "file"})
    assert not list(tmp_path.rglob("evil"))


@given(st.text(max_size=40))
def test_a_name_that_is_inside_stays_inside(name: str) -> None:
    assert is_inside("heads/1/weights.safetensors")
    if is_inside(name):
        assert os.path.normpath(f"/folder/{name}") == f"/folder/{name}" and "\0" not in name


def lock_of(entry: Any, name: Any = "head@1") -> bytes:
    return json.dumps({"schema": "2.0", "stages": {name: entry}}).encode()  # JSON is YAML


HEAD = {
    "cmd": "python -m pipelines.head --folder data/heads/{round} --round {round}",
    "params": {"params.yaml": {"head": {"kind": "dsmil"}}},
}


def test_a_lock_names_the_round_where_the_command_leaves_it_to_the_stage() -> None:
    (state,) = stages_of(
        lock_of(HEAD | {"outs": [{"path": "data/heads/1", "md5": f"{A}.dir"}]})
    ).values()
    assert state.arguments == {"folder": "data/heads/1", "round": "1"}
    assert (
        state.output("folder") == ("data/heads/1", f"{A}.dir")
        and state.section("head")["kind"] == "dsmil"
    )
    for asks, says in (
        (lambda: state.argument("metrics"), "the stage head@1 of dvc.lock has no --metrics"),
        (lambda: state.output("round"), "has no output 1"),
        (lambda: state.section("mining"), "used no params of mining"),
    ):
        with pytest.raises(TrackingError, match=says):
            asks()


LOL = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 10)) for n in range(98, 108)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe", "is not valid YAML"),
        (b"stages: [", "is not valid YAML"),
        (b"[" * 100_000, "nested too deep"),
        (b"\n".join(b" " * n + b"a:" for n in range(3000)), "nested too deep"),
        (LOL, "nested too deep, or repeats itself by aliases"),
        (b"a: &a [*a]", "nested too deep, or repeats itself by aliases"),
        (b"stages: {a: !!bool abc}", "is not valid YAML"),
        (b"a: 2020-99-99", "is not valid YAML"),
        (b"a: " + b"1" * 5000, "is not valid YAML"),
        (b"!!python/object:os.system x", "is not valid YAML"),
        (b'stages: {"a\\0b": {}}', "is no name of a stage"),
        (b'stages: {a: "\\ud800"}', "is not valid YAML"),
        (b"- 1", "is no mapping, but list"),
        (b"word", "is no mapping, but str"),
        (b"stages: [1]", "stages is no mapping, but list"),
        (b"stages: {a: [1]}", "the stage a is no mapping, but list"),
        (lock_of(HEAD | {"outs": 3}), "has outs that are no list"),
        (lock_of(HEAD | {"deps": {"a": 1}}), "has deps that are no list"),
        (lock_of(HEAD | {"outs": [3]}), "the stage head@1, outs is no mapping, but int"),
        (
            lock_of(HEAD | {"outs": [{"path": "../x", "md5": A}]}),
            r"'\.\./x' is no path inside the repository",
        ),
        (
            lock_of(HEAD | {"outs": [{"path": "/etc", "md5": A}]}),
            "'/etc' is no path inside the repository",
        ),
        (lock_of(HEAD | {"outs": [{"md5": A}]}), "'None' is no path"),
        (
            lock_of(HEAD | {"outs": [{"path": "a", "md5": "../../../x"}]}),
            "a has the md5 '../../../x', which is none",
        ),
        (lock_of(HEAD | {"outs": [{"path": "a", "md5": 7}]}), "a has the md5 '7', which is none"),
        (lock_of(HEAD | {"deps": [{"path": "a\0", "md5": A}]}), "is no path"),
        (lock_of(HEAD | {"params": [1]}), "params is no mapping, but list"),
        (
            lock_of(HEAD | {"params": {"params.yaml": 1}}),
            "params of params.yaml is no mapping, but int",
        ),
    ],
    ids=range(27),
)
def test_a_lock_that_dvc_has_not_written_is_one_error_with_a_cure(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "dvc.lock").write_bytes(content)
    for read in (lambda: locked_stages(tmp_path), lambda: verify(tmp_path, whole_cache=False)):
        with pytest.raises(TrackingError, match=says) as raised:
            read()
        assert "restore it from git" in str(raised.value) and "\n" not in str(raised.value)
    running_stage(
        tmp_path, "head@1", "pipelines.head", {}, {}
    )  # a stage itself is not stopped by it


def test_a_lock_that_is_no_file_is_one_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "dvc.lock")
    with pytest.raises(TrackingError, match="is no regular file; restore it from git"):
        locked_stages(tmp_path)


@pytest.mark.parametrize("content", [b"", b"stages:\n", b"schema: '2.0'\nstages: {}\n"])
def test_an_empty_lock_holds_no_stage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_bytes(content)
    assert locked_stages(tmp_path) == {} == locked_stages(tmp_path / "none")


@pytest.mark.parametrize(
    "cmd", [["python -m pipelines.head", "true"], None, 7, "echo 'open", "python -m", "make", ""]
)
def test_a_command_that_is_none_of_ours_is_passed_over(cmd: Any) -> None:
    assert stages_of(lock_of({**HEAD, "cmd": cmd})) == {}


def test_rounds_and_a_cohort_that_are_none() -> None:
    odd = {
        "cmd": "python -m pipelines.evaluate",
        "params": {"params.yaml": {"rounds": 7, "cohort": {"name": "../../x"}}},
    }
    states = stages_of(lock_of(odd, "evaluate"))
    assert set(current_stages(states)) == {"evaluate"}
    with pytest.raises(TrackingError, match=r"no stage of dvc\.lock tells the cohort's name"):
        cohort_name(states)


@pytest.mark.parametrize("content", ODD_YAML)
def test_a_dvc_yaml_of_any_kind_stops_no_stage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dvc.yaml").write_bytes(content)
    assert running_stage(tmp_path, "head@1", "pipelines.head", {}, {}).deps == {}


def test_what_yaml_says_beyond_json_is_text() -> None:
    assert yaml_of(b"a: 2020-01-02\nb: .inf\n3: !!set {x}\nc: 0xfffffffffffffffffffffff", "x") == {
        "a": "2020-01-02",
        "b": "inf",
        "3": ["x"],
        "c": "0xfffffffffffffffffffffff",
    }
