"""How torch computes: on which device, in which precision, with how many threads, and the same way
each time.
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
    """Which of the processes that train together this one is."""
    ranks: int = 1
    """How many they are."""

    def autocast(self) -> torch.autocast:
        """The context of a forward pass: with `bfloat16`, matrix products and convolutions take and
        give it; weights stay float32.
        """
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        )


CPU = Machine(torch.device("cpu"))


def set_up_torch(section: params.Compute) -> Machine:
    """Fixes torch's threads and its deterministic algorithms for this process, and picks device and
    precision.

    Raises:
        EncoderError: the section asks for a device or a precision that is not here.
    """
    torch.set_num_threads(section.threads)
    # cuBLAS reads it when its first handle is made; without it, deterministic matrix products on a
    # GPU are refused
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # nothing here reads memory that was not written, and filling it takes a fifth of an encoder's
    # time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = pick_device(section.device)
    if device.type == "cpu":
        _tell_of_an_idle_gpu()
    return Machine(device, pick_precision(section.precision, device))


@cache
def _tell_of_an_idle_gpu() -> None:
    """Once a process."""
    if torch.cuda.is_available():
        logging.getLogger(__name__).warning(
            "compute.device=cpu leaves this machine's GPU idle; set it to auto to use it"
        )


def first_process() -> bool:
    """Whether this is the process that writes: of those that torchrun started the first, or the
    only one.
    """
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined(machine: Machine, processes: int) -> Iterator[Machine]:
    """This process as one of `processes` that train together, each on a GPU of its own where there
    are GPUs; torchrun started them.

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
    """The device that `compute.device` asks for; `auto` is the GPU where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EncoderError(
            "compute.device=cuda, but torch sees no GPU; set compute.device to auto or cpu"
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(precision: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision that `compute.precision` asks for; `auto` is bfloat16 on a GPU that computes in
    it (Ampere or newer), else float32.

    On a CPU bfloat16 must be asked for: with `avx512_bf16` or AMX it is the faster one, elsewhere
    it is emulated and slower, and a result must not depend on which CPU a stage happens to meet.
    """
    has_it = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "bfloat16" and not has_it:
        raise EncoderError(
            f"compute.precision=bfloat16, but {torch.cuda.get_device_name(device)} has no bfloat16;"
            " set compute.precision to auto or float32"
        )
    if precision == "auto":
        return "bfloat16" if has_it and device.type == "cuda" else "float32"
    return "bfloat16" if precision == "bfloat16" else "float32"
