"""Several processes for one training, as `compute.processes` asks for."""

import os
import sys
from pathlib import Path

from hnm.errors import HnmError
from hnm.params import load_params
from hnm.processes import die_with_parent


def share_among_processes(module: str) -> None:
    """Puts torchrun over `compute.processes` processes of `module`, with this process's arguments, in the place of this process.

    Nothing happens where one is asked for, in the processes that torchrun has started, and where params.yaml cannot be
    read, which the stage itself will say. Only the first process is tracked.
    """
    if "WORLD_SIZE" in os.environ:
        if os.environ["RANK"] != "0":
            os.environ["HNM_TRACKING"] = "off"
        return
    try:
        processes = load_params(Path("params.yaml")).compute.processes
    except HnmError:
        return
    if processes > 1:
        die_with_parent()
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", module]
        os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv[1:]])
