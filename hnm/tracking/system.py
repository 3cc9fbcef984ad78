"""What a stage's processes and the GPUs are busy with while it runs; its courier looks, so that the
stage loses no time.
"""

import os
import shutil
import subprocess
import time

import psutil

EVERY_SECONDS = 10.0
QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")


class SystemWatch:
    """Samples of the process `pid` and its children, without this one."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._has_gpu = shutil.which(QUERY[0]) is not None
        self._looked = time.monotonic()
        self._seconds: dict[int, float] = {}
        self.samples = 0

    def due(self) -> bool:
        """Whether the last sample, or the start, is `EVERY_SECONDS` ago."""
        return time.monotonic() - self._looked >= EVERY_SECONDS

    def sample(self) -> dict[str, float]:
        """Metrics by name since the last sample; none once the process has ended."""
        now, seconds, memory = time.monotonic(), {}, 0
        for process in self._processes():
            try:
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
                memory += process.memory_info().rss
            except psutil.Error:  # it has ended meanwhile
                continue
        # a process that is new counts from its start, one that has ended counts no more
        busy = sum(own - self._seconds.get(pid, 0.0) for pid, own in seconds.items())
        passed, self._looked, self._seconds, self.samples = (
            now - self._looked,
            now,
            seconds,
            self.samples + 1,
        )
        if not seconds:
            return {}
        return {
            "system/processor_percent": round(100 * busy / passed, 1),
            "system/memory_mb": round(memory / 1e6, 1),
            **(_gpus() if self._has_gpu else {}),
        }

    def _processes(self) -> list[psutil.Process]:
        try:
            stage = psutil.Process(self._pid)
            return [
                stage,
                *(child for child in stage.children(recursive=True) if child.pid != os.getpid()),
            ]
        except psutil.Error:
            return []


def _gpus() -> dict[str, float]:
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return gpu_metrics(done.stdout)


def gpu_metrics(told: str) -> dict[str, float]:
    """The metrics in what `nvidia-smi` tells, a line a GPU: the busiest one's use, and the memory
    of all; MiB become 10^6 bytes.
    """
    rows = [line.split(",") for line in told.splitlines() if line.strip()]
    try:
        use, memory = ([float(row[column]) for row in rows] for column in (0, 1))
    except (ValueError, IndexError):  # "[N/A]", as on parts of a GPU
        return {}
    return (
        {"system/gpu_percent": max(use), "system/gpu_memory_mb": round(sum(memory) * 1.048576, 1)}
        if rows
        else {}
    )
