"""How torch computes: on which device, with how many threads, and the same way each time."""

import torch

from hnm import params
from hnm.errors import EncoderError


def set_up_torch(section: params.Compute) -> torch.device:
    """Fixes torch's threads and its deterministic algorithms for this process, and picks the device."""
    torch.set_num_threads(section.threads)
    torch.use_deterministic_algorithms(True)
    # nothing here reads memory that was not written, and filling it takes a fifth of an encoder's time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return pick_device(section.device)


def pick_device(device: str) -> torch.device:
    """The device that `compute.device` asks for; `auto` is the GPU where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EncoderError("compute.device=cuda, but torch sees no GPU; set compute.device to auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
