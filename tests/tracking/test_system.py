import os
import signal
import subprocess
import sys
import time

from hnm.tracking.system import SystemWatch, gpu_metrics
from hnm.tracking.vocabulary import METRICS

BUSY = """
import subprocess, sys, time
block = bytearray(120_000_000)
block[::4096] = b"x" * len(block[::4096])
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
print("ready", flush=True)
time.sleep(60)
"""


def test_a_stage_and_its_children_are_watched_and_no_one_else(monkeypatch) -> None:
    stage = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert stage.stdout is not None and stage.stdout.readline() == "ready\n"
        watch = SystemWatch(stage.pid)
        assert not watch.due()
        watch.sample()
        time.sleep(0.5)
        metrics = watch.sample()
        assert 120 < metrics["system/memory_mb"] < 300
        assert (
            0 < metrics["system/processor_percent"] < 130
        )  # the child's one core, as far as others leave it one
        assert watch.samples == 2 and set(metrics) <= set(METRICS)
        monkeypatch.setattr("hnm.tracking.system.EVERY_SECONDS", 0.0)
        assert watch.due()
    finally:
        os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
    assert watch.sample() == {}


def test_what_nvidia_smi_tells() -> None:
    assert gpu_metrics("37, 1000\n90, 2000\n") == {
        "system/gpu_percent": 90.0,
        "system/gpu_memory_mb": 3145.7,
    }
    assert gpu_metrics("[N/A], 1000\n") == {}
    assert gpu_metrics("") == {}
