"""Several processes for one training, as `compute.processes` asks for."""

import logging
import os
import signal
import sys
from pathlib import Path

from hnm.errors import HnmError, MachineError
from hnm.output import forgive_output
from hnm.params import load_params
from hnm.processes import STAGE_GOES_ON, die_with_parent, ending_in_a_line


def share_among_processes(module: str) -> None:
    """Puts torchrun over `compute.processes` processes of `module`, with this process's arguments,
    in the place of this process.

    Nothing happens where one is asked for, in the processes that torchrun has started, and where
    params.yaml cannot be read, which the stage itself will say. Only the first process is tracked.
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
        torchrun = [
            "-m",
            "hnm.loop.launch",
            "--standalone",
            f"--nproc-per-node={processes}",
            "-m",
            module,
        ]
        os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv[1:]])


def main() -> None:
    """Runs torchrun with this process's arguments; where one of its processes ends badly, so does
    this, without torchrun's tracebacks.
    """
    die_with_parent()
    forgive_output(everything=True)
    with ending_in_a_line(STAGE_GOES_ON):
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        logging.disable(logging.ERROR)  # each process has said what ended it
        try:
            run.main(sys.argv[1:])
        except SignalException as error:
            raise SystemExit(128 + int(error.sigval)) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                raise SystemExit(failure.exitcode) from None
            raise MachineError(
                f"process {rank} of the training was killed"
                f" ({signal.Signals(-failure.exitcode).name}), most often for want of memory; free"
                " some, or lower compute.processes. The same command begins the training again"
            ) from None


if __name__ == "__main__":
    main()
