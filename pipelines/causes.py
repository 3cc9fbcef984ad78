"""Stage `causes`: what can change the results of each other stage, beside its inputs and params.

It always runs. A stage runs again only where its file has other bytes than at its last run.
"""

from pathlib import Path

from hnm.causes import causes_of
from hnm.files import write_json
from hnm.loop.paths import CausesFiles
from hnm.output import say
from hnm.params import Compute
from hnm.repository.reruns import reruns
from pipelines import stage


def main(files: CausesFiles, *, compute: Compute) -> None:
    """Writes one file a stage: its code, the versions of its libraries and, where torch computes,
    the machine. Says what differs from the stages' last runs.
    """
    for name, path in vars(files).items():
        write_json(causes_of(f"pipelines.{name}", compute.device), path)
    for line in reruns(Path.cwd(), compute.device):
        say(line)


if __name__ == "__main__":
    stage.run(main, tracked=False)
