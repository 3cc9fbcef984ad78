"""A stage that tests interrupt: `python stage.py --folder FOLDER` has two workers write their
process ids to FOLDER and wait.
"""

import os
import sys
import time
from pathlib import Path

from hnm.errors import CohortError
from hnm.params import Cohort
from hnm.slides.workers import each
from pipelines import stage


def wait(path: Path) -> int:
    """What a worker does."""
    path.write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60.0)
    return 0


def main(folder: Path, *, cohort: Cohort) -> None:
    """Does what the variable TINY_STAGE says."""
    does = os.environ.get("TINY_STAGE", "wait")
    if does == "wait":
        for _ in each(
            wait,
            [folder.absolute() / "a.pid", folder.absolute() / "b.pid"],
            seconds=60.0,
            step="open",
        ):
            pass
    elif does == "defect":
        try:
            raise ValueError("cannot read https://host/x?token=abc123")
        except ValueError as error:
            raise RuntimeError("the password=hunter22") from error
    elif does == "error":
        raise CohortError("the thing is wrong; mend it")
    else:
        print("10 µm", flush=True)
        time.sleep(float(os.environ.get("TINY_SECONDS", "0")))
        for _ in range(2000):
            print("said of a slide with µ", os.environ.get("TINY_NAME", ""))
        sys.stdout.flush()
        (folder / "done").touch()


if __name__ == "__main__":
    stage.run(main)
