import json
import sys
import time
from pathlib import Path

import pytest

from hnm.progress import WORK, followed
from hnm.repository.costs import (
    Cost,
    cost_so_far,
    dvc_name,
    seconds_by_key,
    stage_seconds,
    write_cost,
)
from hnm.tracking.vocabulary import METRICS


def test_seconds_by_dvc_name(tmp_path: Path) -> None:
    write_cost(tmp_path, "head@1", "k1", Cost(12.5, 800.0))
    write_cost(tmp_path, "evaluate", "k2", Cost(3.25, 500.0))
    write_cost(tmp_path, "head@1", "k3", Cost(11.0, 900.0))
    assert stage_seconds(tmp_path) == {"evaluate": 3.25, "head@1": 11.0}
    assert json.loads((tmp_path / ".hnm/cost/head@1.json").read_text()) == {
        "stage": "head@1",
        "seconds": 11.0,
        "peak_memory_mb": 900.0,
    }


def test_seconds_of_an_execution_outlive_the_next_one(tmp_path: Path) -> None:
    write_cost(tmp_path, "head@1", "k1", Cost(12.5, 800.0))
    write_cost(tmp_path, "head@1", "k3", Cost(11.0, 900.0))
    assert seconds_by_key(tmp_path, {"head@1": "k1", "mine@1": "k2"}) == {
        "head@1": 12.5,
        "mine@1": None,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"stage": "mine',
        b"[" * 100_000,
        b"[1]",
        b'{"stage": 3, "seconds": 1}',
        b'{"stage": "mine"}',
        b'{"seconds": NaN, "stage": "mine"}',
        b"\xff\xfe",
    ]
    + [
        f'{{"stage": "mine", "seconds": {seconds}}}'.encode()
        for seconds in ('"7"', "true", "-1", "1e99", "null", "[]")
    ],
)
def test_a_damaged_entry_counts_as_none(tmp_path: Path, content: bytes) -> None:
    write_cost(tmp_path, "head@1", "k1", Cost(12.5, 800.0))
    for name in ("mine.json", "keys/k2.json"):
        (tmp_path / ".hnm" / "cost" / name).write_bytes(content)
    (tmp_path / ".hnm" / "cost" / "folder.json").mkdir()
    assert stage_seconds(tmp_path) == {"head@1": 12.5}
    if content != b'{"stage": 3, "seconds": 1}':  # who asks by key knows the stage
        assert seconds_by_key(tmp_path, {"head@1": "k1", "mine": "k2"}) == {
            "head@1": 12.5,
            "mine": None,
        }


def test_no_ledger_is_empty(tmp_path: Path) -> None:
    assert stage_seconds(tmp_path) == {}


@pytest.mark.parametrize(
    ("environment", "arguments", "name"),
    [
        ("mine@2", {"round": 7}, "mine@2"),
        ("sub/dvc.yaml:tiles", {}, "tiles"),
        (None, {"round": 3}, "mine@3"),
        (None, {"scores": Path("a")}, "mine"),
    ],
)
def test_name_of_the_running_stage(
    monkeypatch: pytest.MonkeyPatch,
    environment: str | None,
    arguments: dict[str, Path | int],
    name: str,
) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    if environment:
        monkeypatch.setenv("DVC_STAGE", environment)
    assert dvc_name("mine", arguments) == name


def test_cost_grows_with_time_and_memory() -> None:
    before = cost_so_far()
    block = bytearray(150_000_000)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(0.05)
    after = cost_so_far()
    assert 0.05 <= after.seconds - before.seconds < 5
    assert before.processor_seconds is not None and after.processor_seconds is not None
    assert 0 < after.processor_seconds - before.processor_seconds < 5
    assert after.peak_memory_mb >= max(before.peak_memory_mb, 150)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts bytes on Linux alone")
def test_bytes_that_are_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "pack").write_bytes(bytes(7_000_000))
    before = cost_so_far().read_mb
    (tmp_path / "pack").read_bytes()
    after = cost_so_far().read_mb
    assert before is not None and after is not None and 6.9 <= after - before < 8


def test_tiles_count_over_the_seconds_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WORK, "tiles", 0)
    assert cost_so_far().tiles_per_second is None
    for _ in followed(
        iter([3000, 0, 9000]), slides=3, doing="cutting slides", line=lambda tiles: ("s", tiles)
    ):
        pass
    cost = cost_so_far()
    assert cost.tiles_per_second is not None and cost.tiles_per_second == pytest.approx(
        12000 / cost.seconds, abs=0.1 + 12 / cost.seconds**2
    )


def test_what_is_not_known_is_not_logged() -> None:
    assert Cost(2.0, 100.0, 1.5).metrics() == {
        "cost/seconds": 2.0,
        "cost/peak_memory_mb": 100.0,
        "cost/processor_seconds": 1.5,
    }
    assert set(Cost(2.0, 100.0, 1.5, 3.0, 4.0, 5.0).metrics()) <= set(METRICS)
