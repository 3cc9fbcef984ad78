"""The settings of torch: device, precision, threads and deterministic algorithms; and the processes
that train together.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

from hnm import params
from hnm.errors import EncoderError


@dataclass(frozen=True)
class Machine:
    """Where, and in which precision, an encoder computes."""

    device: torch.device
    precision: Literal["float32", "bfloat16"] = "float32"
    rank: int = 0
    """The number of this process among those that train together, from 0."""
    ranks: int = 1
    """How many processes train together."""

    def autocast(self) -> torch.autocast:
        """Returns the context of a forward pass. With `bfloat16`, matrix products and convolutions
        are computed in it; weights stay float32.
        """
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        )


CPU = Machine(torch.device("cpu"))


def set_up_torch(section: params.Compute) -> Machine:
    """Sets torch's threads and its deterministic algorithms for this process. Returns device and
    precision.

    Raises:
        EncoderError: this machine lacks the device or the precision of the section.
    """
    torch.set_num_threads(section.threads)
    # cuBLAS reads this variable when its first handle is created; without it, torch refuses
    # deterministic matrix products on a GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # nothing in hnm reads memory before it is written, and filling memory takes a fifth of an
    # encoder's time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = pick_device(section.device)
    if device.type == "cpu":
        _warn_of_an_idle_gpu()
    return Machine(device, pick_precision(section.precision, device))


@cache
def _warn_of_an_idle_gpu() -> None:
    """Warns, once in a process, where a GPU is there and not used."""
    if torch.cuda.is_available():
        logging.getLogger(__name__).warning(
            "compute.device=cpu leaves this machine's GPU idle; set it to auto to use it"
        )


def first_process() -> bool:
    """Returns whether this is the process that writes: the only one, or the first of those that
    torchrun started.
    """
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined(machine: Machine, processes: int) -> Iterator[Machine]:
    """Joins this process to the others of `processes` that torchrun started to train together.
    Where there are GPUs, each process has a GPU to itself.

    Raises:
        EncoderError: torchrun started another number of processes, or none.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes:
        raise EncoderError(
            f"compute.processes={processes}, but {started} train here; the stages encoder and"
            " finetune start them by themselves, elsewhere use torchrun"
            f" --nproc-per-node={processes}, or set compute.processes to {started}"
        )
    if processes == 1:
        yield machine
        return
    device = machine.device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield replace(machine, device=device, rank=torch.distributed.get_rank(), ranks=processes)
    finally:
        torch.distributed.destroy_process_group()


def pick_device(device: str) -> torch.device:
    """Returns the device that `compute.device` names; `auto` is the GPU where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EncoderError(
            "compute.device=cuda, but torch sees no GPU; set compute.device to auto or cpu"
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(precision: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Returns the precision that `compute.precision` names. `auto` is bfloat16 on a GPU that
    computes in it (Ampere or newer), else float32.

    On a CPU `auto` is never bfloat16: it is the faster one with `avx512_bf16` or AMX and is
    emulated elsewhere, and a result must not depend on which CPU a stage meets.
    """
    has_bfloat16 = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "bfloat16" and not has_bfloat16:
        raise EncoderError(
            f"compute.precision=bfloat16, but {torch.cuda.get_device_name(device)} has no bfloat16;"
            " set compute.precision to auto or float32"
        )
    if precision == "auto" and device.type == "cuda" and has_bfloat16:
        return "bfloat16"
    return "bfloat16" if precision == "bfloat16" else "float32"
