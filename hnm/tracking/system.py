"""Samples of what a stage's processes and the GPUs are busy with; the stage's courier takes them,
so that the stage loses no time.

MLflow's own system metrics cannot replace this: they sample the whole machine, from a thread of the
process that trains.
"""

import os
import shutil
import subprocess
import time

import psutil

EVERY_SECONDS = 10.0
QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
MB_OF_MIB = 1.048576


class SystemWatch:
    """Samples of the process `pid` and its children, without the process that takes them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._has_gpu = shutil.which(QUERY[0]) is not None
        self._last_look = time.monotonic()
        self._processes: dict[psutil.Process, psutil.Process] = {}
        self.samples = 0

    def due(self) -> bool:
        """Whether the last sample, or the start, is `EVERY_SECONDS` ago."""
        return time.monotonic() - self._last_look >= EVERY_SECONDS

    def sample(self) -> dict[str, float]:
        """Metrics by name since the last sample; none once the process has ended. A process that is
        new counts from its second sample on.
        """
        self._last_look = time.monotonic()
        self.samples += 1
        # psutil counts the use of a processor from one question to an object to the next
        self._processes = {
            process: self._processes.get(process, process) for process in _tree(self._pid)
        }
        percents = []
        memory = 0
        for process in self._processes.values():
            try:
                percents.append(process.cpu_percent())
                memory += process.memory_info().rss
            except psutil.Error:  # it has ended meanwhile
                continue
        if not percents:
            return {}
        return {
            "system/processor_percent": round(sum(percents), 1),
            "system/memory_mb": round(memory / 1e6, 1),
            **(_gpus() if self._has_gpu else {}),
        }


def _tree(pid: int) -> list[psutil.Process]:
    try:
        stage = psutil.Process(pid)
        children = stage.children(recursive=True)
    except psutil.Error:
        return []
    return [stage, *(child for child in children if child.pid != os.getpid())]


def _gpus() -> dict[str, float]:
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return gpu_metrics(answer.stdout)


def gpu_metrics(answer: str) -> dict[str, float]:
    """The metrics in an answer of `nvidia-smi`, which has a line a GPU: the use of the busiest one,
    and the memory of all.
    """
    try:
        cells = [line.split(",") for line in answer.splitlines()]
        rows = [(float(use), float(mib)) for use, mib in cells]
    except ValueError:  # "[N/A]", as on parts of a GPU
        return {}
    if not rows:
        return {}
    return {
        "system/gpu_percent": max(use for use, _ in rows),
        "system/gpu_memory_mb": round(sum(mib for _, mib in rows) * MB_OF_MIB, 1),
    }
