"""The cost of stages: what the last execution of each took on this machine.

Seconds and memory differ from run to run, so they never enter a stage's outputs, which are hashed.
They lie in `.hnm/cost/`, which git ignores, one file a stage and one for each of its keys, and are
logged to the stage's MLflow run.
"""

import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, Field, ValidationError

from hnm.errors import TrackingError
from hnm.files import read_bounded, write_json
from hnm.progress import WORK

MOST_BYTES = 1 << 16
"""Most bytes of an entry."""


@dataclass(frozen=True)
class Cost:
    """The cost of a process from its start on, with the imports of its libraries; of a training
    that several processes share, the first's.
    """

    seconds: float
    peak_memory_mb: float
    """Largest resident memory, in 10^6 bytes, of this process or of the greediest child that has
    ended, whichever is more.
    """
    processor_seconds: float | None = None
    """Of all cores together, of this process and of its children that have ended."""
    read_mb: float | None = None
    """What this process and its ended children have read from files and pipes, cached or not, in
    10^6 bytes; None elsewhere than on Linux.
    """
    peak_gpu_memory_mb: float | None = None
    """Most memory that torch has held on a GPU, in 10^6 bytes; None where it has used none."""
    tiles_per_second: float | None = None
    """Tiles that it has cut or embedded, over `seconds`; None where it did neither, or all came
    from an earlier run.
    """

    def metrics(self) -> dict[str, float]:
        """The values that are not None, by the names of the vocabulary."""
        return {f"cost/{name}": value for name, value in self.values().items()}

    def values(self) -> dict[str, float]:
        """The values that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def cost_so_far() -> Cost:
    """The cost of the running process up to now."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    process = psutil.Process()
    seconds = time.time() - process.create_time()
    return Cost(
        seconds=round(seconds, 3),
        peak_memory_mb=round(max(usage.ru_maxrss for usage in usages) * unit / 1e6, 1),
        processor_seconds=round(sum(usage.ru_utime + usage.ru_stime for usage in usages), 3),
        read_mb=_read_mb(process),
        peak_gpu_memory_mb=_peak_gpu_memory_mb(),
        tiles_per_second=round(WORK.tiles / seconds, 1) if WORK.tiles else None,
    )


def _read_mb(process: psutil.Process) -> float | None:
    if sys.platform != "linux":
        return None
    try:
        read_bytes: int = process.io_counters().read_chars
    except psutil.Error:  # a container may hide it from a process of another user
        return None
    return round(read_bytes / 1e6, 1)


def _peak_gpu_memory_mb() -> float | None:
    # a stage that has not imported torch has used no GPU, and need not wait for it
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())
    peak: int = max(torch.cuda.max_memory_allocated(device) for device in devices)
    return round(peak / 1e6, 1)


def dvc_name(stage: str, arguments: Mapping[str, Path | int]) -> str:
    """DVC's name of the running stage: `head@1`; outside DVC, the name that it would have."""
    if name := os.environ.get("DVC_STAGE"):
        return name.rpartition(":")[2]
    return f"{stage}@{arguments['round']}" if "round" in arguments else stage


def write_cost(root: Path, name: str, key: str, cost: Cost) -> None:
    """Writes the cost of the stage `name` (DVC's name), whose causes are `key`, in the repository
    `root`.
    """
    entry = {"stage": name, **cost.values()}
    write_json(entry, root / ".hnm" / "cost" / f"{name}.json")
    write_json(entry, _file_of_key(root, key))


def stage_seconds(root: Path) -> dict[str, float]:
    """Seconds of each stage's last successful execution on this machine, by DVC's name (`head@1`);
    a stage that never ran here is missing.
    """
    entries = map(_entry, sorted((root / ".hnm" / "cost").glob("*.json")))
    return {entry.stage: entry.seconds for entry in entries if entry and entry.seconds is not None}


def seconds_by_key(root: Path, keys: Mapping[str, str]) -> dict[str, float | None]:
    """Stage -> seconds of the last execution with its key on this machine, whatever has run since;
    None where there was none.
    """
    entries = {name: _entry(_file_of_key(root, key)) for name, key in keys.items()}
    return {name: entry.seconds if entry else None for name, entry in entries.items()}


class _Entry(BaseModel):
    """The part of an entry that is read again."""

    stage: str = Field(min_length=1)
    seconds: float | None = Field(default=None, ge=0, lt=1e10, strict=True)


def _entry(path: Path) -> _Entry | None:
    """An entry; None where there is none, or one that a full disk or a stranger has damaged: cost
    is news, no result.
    """
    try:
        content = read_bounded(path, TrackingError, what=str(path), most=MOST_BYTES)
        return _Entry.model_validate_json(content)
    except (TrackingError, ValidationError):
        return None


def _file_of_key(root: Path, key: str) -> Path:
    return root / ".hnm" / "cost" / "keys" / f"{key}.json"
