"""How the processes of a run end."""

import ctypes
import os
import signal
import sys


def die_with_parent() -> None:
    """Ends this process when the one that started it is killed; else it would go on and write its outputs later."""
    if sys.platform == "linux":
        parent, pr_set_pdeathsig = os.getppid(), 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)
